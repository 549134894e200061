"""Estimate and reality: in status, in the report, and with what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prism_sweeps.planning.plan import Plan, summary
from prism_sweeps.reporting.cost import cost_lines, cost_rows
from prism_sweeps.reporting.cost_table import cost_table
from prism_sweeps.reporting.report import write_report
from prism_sweeps.tracking.kept_estimates import FILE, keep_estimates, read_estimates
from prism_sweeps.tracking.records import Store

STUDY = "nano/made-up"


@pytest.fixture
def run(store_of: Callable[..., Store], world: Any) -> tuple[Store, Plan]:
    """A study whose jobs are done: training 20 s of steps, evaluations whatever they took."""
    store = store_of(world(seeds=(1,), variants=({},), examples=20))
    plan = Plan.from_plain(store.study(STUDY).plan())
    train = plan.cells[0].train[0]
    result = {"loss": 1.0, "seconds": 20.0, "peak_memory": 3 << 30, "ranks": 2}
    state = store.job(train).state() | {"result": result, "gpu_seconds": 1800.0, "seconds": 1810.0}
    store.job(train)._write_state(state)
    return store, plan


def estimated(plan: Plan, **changes: Any) -> dict[str, Any]:
    """The summary of the plan where each job was expected to take 10 seconds."""
    found = summary(plan, {})
    rows = [
        row | {"seconds": 10.0, "gpu_hours": 0.5, "peak_memory": 2 << 30, "basis": "a guess"} for row in found["jobs"]
    ]
    return {**found, "jobs": [row | changes for row in rows]}


def test_a_training_job_is_compared_by_its_steps_and_all_its_devices(run: tuple[Store, Plan]) -> None:
    store, plan = run
    keep_estimates(store.study(STUDY), estimated(plan))
    found = cost_rows(store, plan)
    assert {row["fingerprint"] for row in found["jobs"]} == set(plan.jobs)
    row = next(row for row in found["jobs"] if row["kind"] == "train")
    assert row["seconds"] == {"estimated": 10.0, "real": 20.0, "ratio": 2.0}
    assert row["gpu_hours"] == {"estimated": 0.5, "real": 1.0, "ratio": 2.0}
    assert row["peak_memory"]["ratio"] == 1.5
    assert found["totals"]["seconds"]["estimated"] == 10.0 * len(plan.jobs)
    assert json.loads(json.dumps(found)) == found


def test_status_says_what_was_far_off(run: tuple[Store, Plan]) -> None:
    store, plan = run
    assert cost_lines(store, plan) == []
    keep_estimates(store.study(STUDY), estimated(plan, seconds=5.0))
    lines = cost_lines(store, plan)
    assert lines[0].startswith(f"time of {len(plan.jobs)} jobs: estimated {5.0 * len(plan.jobs):.3g} s, took ")
    assert "GPU-hours: estimated 2.5, took 1 (0.4 times the estimate)" in lines
    assert any("far off: finetune baseline seed 1: estimated 5 s, took 20 s (4 times the estimate)" in x for x in lines)


def test_what_was_not_estimated_has_no_ratio(run: tuple[Store, Plan]) -> None:
    store, plan = run
    keep_estimates(store.study(STUDY), estimated(plan, seconds=None, gpu_hours=None, peak_memory=None))
    found = cost_rows(store, plan)
    assert {row["seconds"]["ratio"] for row in found["jobs"]} == {None}
    assert found["totals"]["seconds"] == {"estimated": None, "real": None, "ratio": None}
    assert cost_lines(store, plan) == []
    assert cost_table(store, plan).rows == []


def test_a_job_that_has_begun_keeps_its_first_estimate(run: tuple[Store, Plan]) -> None:
    store, plan = run
    record, (first, second, *_) = store.study(STUDY), plan.jobs
    keep_estimates(record, estimated(plan))
    later = estimated(plan, seconds=99.0)
    later["jobs"] = [row | {"status": "done" if row["fingerprint"] == first else "new"} for row in later["jobs"]]
    keep_estimates(record, later)
    kept = read_estimates(record)
    assert (kept[first]["seconds"], kept[second]["seconds"]) == (10.0, 99.0)


def test_what_was_done_before_it_was_estimated_is_not_compared(run: tuple[Store, Plan]) -> None:
    store, plan = run
    keep_estimates(store.study(STUDY), estimated(plan, status="done"))
    assert read_estimates(store.study(STUDY)) == {}


def test_the_report_shows_what_it_cost(run: tuple[Store, Plan]) -> None:
    store, plan = run
    without = write_report(store, STUDY).read_text(encoding="utf-8")
    assert "What it cost" not in without
    keep_estimates(store.study(STUDY), estimated(plan))
    page = write_report(store, STUDY)
    text = page.read_text(encoding="utf-8")
    assert "What it cost" in text
    assert "Estimated by: a guess." in text
    table = cost_table(store, plan)
    assert [field.text for field in table.rows[1]] == [
        "finetune baseline seed 1", "10 s", "20 s", "2.00", "0.5", "1", "2.15 GB", "3.22 GB", "1.50"
    ]  # fmt: skip
    assert table.rows[1][3].tone == "strong"
    assert "What it cost" in (page.parent / "tables.md").read_text(encoding="utf-8")


def test_a_broken_file_of_estimates_is_named(run: tuple[Store, Plan]) -> None:
    store, plan = run
    path: Path = store.study(STUDY).path / FILE
    path.write_text("{", encoding="utf-8")
    with pytest.raises(Exception, match=f"{FILE}.*remove"):
        cost_rows(store, plan)
