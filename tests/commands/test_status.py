"""prism status: one table of records, journal and SLURM together."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from desk import Desk
from ends import begun, done, failed

from prism_sweeps.commands import status
from prism_sweeps.tracking.records import JobRecord


@contextmanager
def held(record: JobRecord) -> Iterator[None]:
    """Its lock, as while it runs."""
    descriptor = os.open(record.path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def cells(said: object) -> dict[str, dict[str, object]]:
    return {cell["label"]: cell for cell in said.json["cells"]}  # type: ignore[attr-defined]


def test_a_submitted_study_waits_and_says_why(desk: Desk) -> None:
    desk.sweep()
    found = desk.prism("status", "nano/tiny", "--json").json
    assert found["counts"] == {"queued": len(found["jobs"])}
    assert found["slurm_answers"] is True
    assert len(found["report_jobs"]) == 1
    evaluation = next(job for job in found["jobs"] if job["kind"] == "evaluate")
    assert evaluation["reason"] == "Dependency"
    assert evaluation["slurm_id"] == desk.slurm_id(evaluation["fingerprint"])
    shown = desk.prism("status", "nano/tiny").out
    assert "(Dependency)" in shown
    assert "report and MLflow once all have ended" in shown


def test_a_running_job_tells_step_loss_speed_node_and_time_left(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    desk.slurm.start(desk.slurm_id(job), "n3")
    record = begun(desk.store, job)
    record.beat(120, 400, "loss 2.000")
    rows = [
        {"step": step, "loss": 2.0 - step / 200, "seconds": 0.5, "tokens_per_second": 6400.0} for step in range(1, 122)
    ]
    record.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 122, "lo')
    with held(record):
        found = desk.prism("status", "nano/tiny", "--json").json
        shown = desk.prism("status", "nano/tiny").out
    row = next(each for each in found["jobs"] if each["fingerprint"] == job.fingerprint)
    assert (row["state"], row["done"], row["total"]) == ("running", 121, 400)
    assert row["loss"] == pytest.approx(2.0 - 121 / 200)
    assert row["seconds_left"] == pytest.approx(0.5 * (400 - 121))
    assert "finetune 121/400, loss 1.395, 6.4 k tokens/s, 2m20s left (n3, " in shown
    assert found["cells"][0]["state"] == "running"


def test_a_silent_job_is_told_and_how_to_end_it(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    desk.slurm.start(desk.slurm_id(job))
    record = begun(desk.store, job)
    long_ago = time.time() - 4000
    os.utime(record.heartbeat, (long_ago, long_ago))
    with held(record):
        shown = desk.prism("status", "nano/tiny").out
    assert "no sign of life for 4" in shown
    assert "to end them and try again: prism retry nano/tiny" in shown


def test_a_failure_is_told_with_the_end_of_its_own_log(desk: Desk) -> None:
    plan = desk.sweep()
    job = desk.train()
    desk.slurm.start(desk.slurm_id(job))
    record = failed(desk.store, job, final=True)
    record.log.write_text("".join(f"line {number}\n" for number in range(50)))
    desk.slurm.finish(desk.slurm_id(job), "FAILED", "1:0")
    found = desk.prism("status", "nano/tiny", "--json")
    row = next(each for each in found.json["jobs"] if each["fingerprint"] == job.fingerprint)
    assert (row["state"], row["reason"]) == ("failed", "RuntimeError: no such luck")
    assert row["last_lines"][-1] == "line 49"
    assert found.json["counts"]["skipped"] == sum(job.fingerprint in each.parents for each in plan.jobs.values())
    shown = desk.prism("status", "nano/tiny").out
    assert "line 49" in shown
    assert str(record.log) in shown
    assert "prism retry nano/tiny" in shown
    assert shown.index(" failed ") < shown.index(" queued ")


def test_a_job_that_never_began_is_told_with_slurms_output(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    slurm_id = desk.slurm_id(job)
    desk.slurm.start(slurm_id)
    output = desk.store.root / "slurm/nano/tiny" / f"{slurm_id}_0_log.out"
    output.write_text("slurmstepd: error: no module torch\n")
    desk.slurm.finish(slurm_id, "NODE_FAIL", "0:0")
    shown = desk.prism("status", "nano/tiny").out
    assert "its node failed" in shown
    assert "slurmstepd: error: no module torch" in shown
    assert str(output) in shown


def test_an_old_log_does_not_speak_for_a_new_allocation(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    record = failed(desk.store, job, final=True)
    record.log.write_text("of yesterday\n")
    state = json.loads((record.path / "state.json").read_text())
    (record.path / "state.json").write_text(
        json.dumps(state | {"attempt_started": 1.0, "failures": 0, "status": "new"})
    )
    slurm_id = desk.slurm_id(job)
    (desk.store.root / "slurm/nano/tiny" / f"{slurm_id}_0_log.out").write_text("of today\n")
    desk.slurm.start(slurm_id)
    desk.slurm.finish(slurm_id, "OUT_OF_MEMORY", "0:125")
    shown = desk.prism("status", "nano/tiny").out
    assert "of today" in shown
    assert "of yesterday" not in shown


def test_without_slurm_records_alone_speak(desk: Desk) -> None:
    desk.sweep()
    done(desk.store, desk.train())
    desk.slurm.down(times=100)
    shown = desk.prism("status", "nano/tiny")
    assert shown.code == 0
    assert shown.out.count("SLURM does not answer: states are by records alone") == 1
    found = desk.prism("status", "nano/tiny", "--json").json
    assert found["counts"]["done"] == 1
    assert set(found["counts"]) == {"done", "unknown"}


def test_a_local_study_needs_no_slurm(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from prism_sweeps.planning.plan import make_plan

    monkeypatch.setenv("PATH", "/usr/bin:/bin" if not os.path.exists("/usr/bin/squeue") else "/nowhere")  # noqa: PTH110
    plan = make_plan(["nano/tiny", "suite=easy-vqa"])
    desk.store.study(plan.study).write_plan(plan.to_plain())
    failed(desk.store, desk.train())
    found = desk.prism("status", "nano/tiny", "--json").json
    assert found["slurm_answers"] is True
    assert set(found["counts"]) == {"failed", "skipped", "new"}


def test_done_cells_of_a_long_table_are_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "SHOWN_CELLS", 2)
    plan = desk.sweep()
    done(desk.store, *(plan.jobs[name] for name in (*plan.cells[0].train, *plan.cells[0].evaluate)))
    shown = desk.prism("status", "nano/tiny").out
    assert "1 cell done, mean scores 50.0 to 50.0" in shown
    assert "2 cells more: 2 queued (--all shows them)" in shown
    assert plan.cells[0].id not in shown
    every = desk.prism("status", "nano/tiny", "--all").out
    assert all(cell.id in every for cell in plan.cells)


def test_mlflow_is_fed_after_everything_is_shown(desk: Desk) -> None:
    desk.sweep()
    desk.prism("status", "nano/tiny")
    assert desk.updated == ["nano/tiny"]


def test_unknown_studies_name_the_nearest(desk: Desk) -> None:
    desk.sweep()
    for command in ("status", "cancel", "retry", "clean"):
        said = desk.prism(command, "nano/tini")
        assert said.code == 2
        assert "did you mean 'nano/tiny'" in said.err
