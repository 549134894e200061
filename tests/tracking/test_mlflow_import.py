"""A small study in MLflow's own store: what is there, and that importing twice changes nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_study import ALIGN, STEPS, a_plan, run, score

from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import mlflow_runs
from prism_sweeps.tracking.mlflow_import import TrackingError, import_study, tracking_uri
from prism_sweeps.tracking.records import Store


@pytest.fixture
def study(tmp_path: Path) -> tuple[Store, Plan]:
    """All is done but one evaluation."""
    store, plan = Store.open(tmp_path), a_plan()
    store.study(plan.study).write_plan(plan.to_plain())
    for job in plan.jobs.values():
        if job.fingerprint != "c1".ljust(16, "0"):
            run(store, job, {"loss": 0.25} if job.kind == "train" else score(62.5))
    return store, plan


def test_runs_hold_choices_scores_and_fingerprints(study: tuple[Store, Plan]) -> None:
    store, plan = study
    whole, part = mlflow_runs.cell_runs(plan, store)
    resize = {"resize": "naive", "resize.name": "naive", "resize.strategy": "naive"}
    assert whole.params == resize | {"seed": "1", "precision": "fp32"}
    metrics = {name: value for name, value, _, _ in whole.points}
    assert metrics["pope/real"] == metrics["refcoco_/real"] == metrics["mean/real"] == 62.5
    assert metrics["pope/real/standard_error"] == 1.5
    assert metrics["pope/real/F1 ___"] == 50.0
    assert whole.tags["prism.job/align"] == "a" * 16
    assert (whole.status, part.status) == ("FINISHED", "RUNNING")
    assert "mean/real" not in {name for name, *_ in part.points}
    losses = [point for point in whole.children[0].curve() if point[0] == "loss"]
    assert [step for *_, step in losses] == list(range(1, STEPS + 1))
    seconds = [row["seconds"] for row in store.job(ALIGN).read_metrics()]
    assert losses[9][2] - losses[0][2] == pytest.approx(1000 * sum(seconds[1:10]), abs=2)
    assert not [point for point in whole.children[0].curve() if point[0] == "grad_norm"]


@pytest.mark.slow
def test_import_is_complete_idempotent_and_follows_changes(study: tuple[Store, Plan]) -> None:
    from mlflow.tracking import MlflowClient

    store, plan = study
    first = import_study(store, plan.study)
    assert (first.runs, first.written) == (6, 6)
    client = MlflowClient(tracking_uri(store, None))

    def content() -> dict[str, Any]:
        runs = client.search_runs([first.experiment_id])
        return {run.data.tags["prism.run"]: run for run in runs}

    before = content()
    assert set(before) == {"b" * 8, "c" * 8, *(f"{c * 8}/{j * 16}" for c, j in ("ba", "bb", "ca", "cc"))}
    cell, stage = before["b" * 8], before[f"{'b' * 8}/{'b' * 16}"]
    assert cell.info.status == "FINISHED"
    assert cell.data.metrics["pope/real"] == 62.5
    assert stage.data.tags["mlflow.parentRunId"] == cell.info.run_id
    history = client.get_metric_history(stage.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 4.0 / step) for step in range(1, STEPS + 1)]
    assert client.get_experiment(first.experiment_id).name == plan.study

    assert import_study(store, plan.study).written == 0
    (store.study(plan.study).path / "mlflow.json").unlink()
    assert import_study(store, plan.study).written == 0
    after = content()
    assert {key: run.to_dictionary() for key, run in after.items()} == {
        key: run.to_dictionary() for key, run in before.items()
    }

    last = plan.jobs["c1".ljust(16, "0")]
    run(store, last, {"score": 37.5, "standard_error": None, "n": 40, "metrics": {}, "groups": {}})
    assert import_study(store, plan.study).written == 1
    assert content()["c" * 8].data.metrics["mean/real"] == 50.0
    assert content()["c" * 8].info.status == "FINISHED"


@pytest.mark.slow
def test_a_database_that_cannot_be_written_loses_nothing(study: tuple[Store, Plan]) -> None:
    store, plan = study
    (store.root / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db.*nothing is lost.*prism report nano/two"):
        import_study(store, plan.study)
    (store.root / "mlflow.db").unlink()
    # A new process, as the next `prism report` is: MLflow keeps the connection to the file that was there.
    assert imported_elsewhere(store)[0] == "6"


def imported_elsewhere(store: Store) -> list[str]:
    """What an import in a new process says: how many runs it wrote, and whether it loaded MLflow."""
    code = (
        "import sys; from pathlib import Path; from prism_sweeps.tracking.records import Store;"
        "from prism_sweeps.tracking.mlflow_import import import_study;"
        f"print(import_study(Store.open(Path({str(store.root)!r})), 'nano/two').written, 'mlflow' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_an_unchanged_study_is_recognised_without_mlflow(study: tuple[Store, Plan]) -> None:
    """A digest that was written down is trusted as long as the database is there."""
    from prism_sweeps.tracking import mlflow_import

    store, plan = study
    digest = mlflow_import.study_digest(store, store.study(plan.study).plan())
    note = mlflow_import.Imported(tracking_uri(store, None), "1", digest, 6, 6)
    mlflow_import.write_atomic(
        store.study(plan.study).path / "mlflow.json", mlflow_import.json.dumps(dataclasses.asdict(note))
    )
    (store.root / "mlflow.db").write_text("")
    assert imported_elsewhere(store) == ["0", "False"]
