"""Somebody at a terminal, with a store whose study is handed to the double of SLURM."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from prism_sweeps import cli
from prism_sweeps.config.specs import Job
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

GRID = ("nano/tiny", "suite=easy-vqa")
"""Four cells: two towers by one and two stages, two evaluations each."""


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Desk:
    """Somebody at a terminal, a store, and the double of SLURM."""

    store: Store
    slurm: FakeSlurm
    capture: pytest.CaptureFixture[str]
    updated: list[str] = field(default_factory=list)
    """Studies that MLflow was fed with."""

    def prism(self, *arguments: str) -> Said:
        self.capture.readouterr()
        code = cli.main([*arguments, "--store", str(self.store.root)])
        return Said(code, *self.capture.readouterr())

    def sweep(self, *more: str, place: str = "slurm") -> Plan:
        said = self.prism("sweep", *GRID, f"cluster={place}", *more)
        assert said.code == 0, said.err
        return self.plan()

    def plan(self, study: str = "nano/tiny") -> Plan:
        return Plan.from_plain(self.store.study(study).plan())

    def slurm_id(self, job: Job | str) -> str:
        name = job if isinstance(job, str) else job.fingerprint
        return submissions.read(self.store.root).newest()[name].slurm_id

    def cell(self, **overrides: str) -> Any:
        return next(cell for cell in self.plan().cells if cell.overrides == overrides)

    def train(self, number: int = 0, **overrides: str) -> Job:
        """A training job of the cell with these overrides."""
        return self.plan().jobs[self.cell(**overrides).train[number]]
