"""The command line on a store of its own, with the double of SLURM on PATH."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "launching"))
from desk import Desk
from fake_slurm import FakeSlurm

from prism_sweeps.commands import status, submitting
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.tracking.records import Store


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(fake.bin), prepend=":")
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.delenv("PRISM_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduler, "PAUSES", (0.0,) * len(scheduler.PAUSES))
    monkeypatch.setattr("prism_sweeps.launching.slurm.submit.snapshot", lambda store: store.root / "snapshots" / "now")
    monkeypatch.setattr("prism_sweeps.launching.slurm.sweep.prepare_data", lambda *_: None)
    found = Desk(Store.open(tmp_path / "store"), fake, capsys)
    feed: Callable[..., None] = lambda store, seen: found.updated.append(seen.outline.study)  # noqa: E731
    monkeypatch.setattr(status, "bring_up", feed)
    monkeypatch.setattr(submitting, "bring_up", feed)
    return found
