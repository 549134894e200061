"""A SLURM to launch on, and plans to launch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from sweeps import Sweeps

from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.planning.plan import Plan, make_plan
from prism_sweeps.tracking.records import Store


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """The double of SLURM, first on PATH. Nobody waits between tries."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(fake.bin), prepend=":")
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(scheduler, "PAUSES", (0.0,) * len(scheduler.PAUSES))
    return fake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def sweep(slurm: FakeSlurm, store: Store, monkeypatch: pytest.MonkeyPatch) -> Sweeps:
    monkeypatch.setattr("prism_sweeps.launching.slurm.submit.snapshot", lambda store: store.root / "snapshots" / "now")
    return Sweeps(slurm, store)


@pytest.fixture(scope="session")
def planned() -> Callable[..., Plan]:
    """`make_plan` with `cluster=slurm`, each plan made once."""
    made = functools.cache(lambda *words: make_plan([*words, "cluster=slurm"]))
    return lambda *words: Plan.from_plain(made(*words).to_plain())
