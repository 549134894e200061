"""What the benchmarks take for equal before they time it, at sizes that take seconds."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark_named(monkeypatch: pytest.MonkeyPatch):
    """Imports a script of `benchmarks/`, and what lies beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def imported(name: str) -> ModuleType:
        return importlib.import_module(name)

    return imported


# ---- train: beside transformers' Trainer


def test_all_ways_of_a_step_are_on_the_curve_of_transformers_trainer(benchmark_named, tmp_path: Path):
    train = benchmark_named("train")
    setting = train.setting_in(tmp_path, train.SMALL, 4, "grouped")
    ways = ("ours", "all logits", "AdamW not fused", "packed, cached")
    turns = train.compared(setting, {name: train.our_step(setting, train.OURS[name]) for name in ways})
    theirs = turns.losses[train.PEER]
    assert max(theirs) - min(theirs) > 0.01  # else equal curves would show little
    for name in ways:
        assert turns.losses[name] == pytest.approx(theirs, abs=1e-4), name
        assert len(turns.seconds[name]) == 4


def test_a_side_that_begins_elsewhere_is_found_out(benchmark_named, tmp_path: Path):
    train = benchmark_named("train")
    setting = train.setting_in(tmp_path, train.SMALL, 1, "grouped")
    ours = train.our_step(setting, set())
    with pytest.raises(AssertionError, match="other begins at"):
        train.compared(setting, {"other": lambda number: ours(number) + 2e-4})
