"""`hydra/launcher=prism_slurm`: a Hydra multirun is the sweep of the same overrides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from hydra_plugins.prism_slurm import PrismSlurmLauncher
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.planning.plan import Plan, make_plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

SCRIPT = Path(__file__).parents[2] / "launch" / "train.py"
SMALL = [f"data_mix.instruct.{name}.dataset=nano-world-64" for name in ("captions", "instruct", "language")]
GRID = ["resize=letterbox,naive", "seed=1,2", "suite.conditions=[real]", *SMALL]


def launcher(*task: str, wait: bool = False) -> PrismSlurmLauncher:
    made = PrismSlurmLauncher(wait=wait)
    config = OmegaConf.create({"hydra": {"overrides": {"task": list(task)}}})
    made.setup(hydra_context=None, task_function=None, config=config)  # type: ignore[arg-type]
    return made


def cells(*resizes: str) -> list[list[str]]:
    return [[f"resize={resize}", f"seed={seed}", *GRID[2:]] for resize in resizes for seed in (1, 2)]


@pytest.fixture
def kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PRISM_STORE", str(store.root))
    monkeypatch.setattr("prism_sweeps.launching.slurm.sweep.prepare_data", lambda jobs, store, display: None)
    return store


def test_the_script_submits_the_cells_of_a_multirun_once(slurm: FakeSlurm, kept: Store, tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "-m", *GRID, "hydra/launcher=prism_slurm", "cluster=slurm"]
    for words in ("70 jobs submitted in 8 allocations", "nothing to submit"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)
        assert done.returncode == 0, done.stderr
        assert words.replace("70", str(4 + 4 * 13)) in done.stderr
    plan = make_plan([*GRID, "cluster=slurm"])
    given = Counter(name for each in submissions.read(kept.root).allotted for name in each.jobs)
    assert given == Counter(dict.fromkeys(plan.jobs, 1))
    assert Plan.from_plain(kept.study(plan.study).plan()).cells == plan.cells


def test_it_submits_without_being_told_the_cluster(slurm: FakeSlurm, kept: Store):
    returned = launcher(*GRID).launch(cells("letterbox", "naive"), 0)
    assert len(returned) == 4
    assert slurm.live()
    assert {each.status for each in returned} == {JobStatus.COMPLETED}
    assert {each.return_value for each in returned} == {None}


def test_waiting_it_returns_scores_and_raises_what_failed(slurm: FakeSlurm, kept: Store):
    plan = make_plan([*GRID, "cluster=slurm"])
    end(plan, kept, {cell.id: 10.0 * number for number, cell in enumerate(plan.cells)})
    order = [make_plan(each).cells[0].id for each in cells("letterbox", "naive")]
    wanted = {cell.id: 10.0 * number for number, cell in enumerate(plan.cells)}
    returned = launcher(*GRID, wait=True).launch(cells("letterbox", "naive"), 0)
    assert [each.return_value for each in returned] == [wanted[name] for name in order]


def end(plan: Plan, store: Store, scores: dict[str, float]) -> None:
    """Every job of the plan done, with the cell's score."""
    for cell in plan.cells:
        for name in (*cell.train, *cell.evaluate):
            record = store.job(name)
            with record.claim():
                record.begin(plan.jobs[name], plan.engine)
                result: dict[str, Any] = {"score": scores[cell.id]} if name in cell.evaluate else {"loss": 1.0}
                record.finish(result)


def test_a_failed_cell_is_told_to_hydra(slurm: FakeSlurm, kept: Store, monkeypatch: pytest.MonkeyPatch):
    plan = make_plan([*GRID, "cluster=slurm"])

    def fail(store: Store, *others: object) -> None:
        record = store.job(plan.cells[0].train[0])
        with record.claim():
            record.begin(plan.jobs[plan.cells[0].train[0]], plan.engine)
            record.fail("the disk is full", final=True)

    monkeypatch.setattr("prism_sweeps.commands.watching.follow", fail)
    returned = launcher(*GRID, wait=True).launch(cells("letterbox", "naive"), 0)
    bad = [make_plan(each).cells[0].id for each in cells("letterbox", "naive")].index(plan.cells[0].id)
    with pytest.raises(RuntimeError, match="the disk is full"):
        _ = returned[bad].return_value


def test_other_sweepers_and_clusters_are_refused(slurm: FakeSlurm, kept: Store):
    with pytest.raises(ConfigError, match="hydra/sweeper=basic"):
        launcher(*GRID).launch(cells("letterbox"), 0)
    with pytest.raises(ConfigError, match="needs cluster=slurm"):
        launcher(*GRID, "cluster=local").launch(cells("letterbox", "naive"), 0)
