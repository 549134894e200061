"""prism retry: what has ended badly once more, and nothing else."""

from __future__ import annotations

import fcntl
import os
import time

import pytest
from desk import GRID, Desk
from ends import begun, done, failed, interrupted

from prism_sweeps.launching import retrying
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.retrying import to_retry
from prism_sweeps.launching.standing import Standing


def fail(desk: Desk) -> str:
    """The first training job fails for good, as SLURM tells it; returns its fingerprint."""
    job = desk.train()
    desk.slurm.start(desk.slurm_id(job))
    failed(desk.store, job, final=True)
    desk.slurm.finish(desk.slurm_id(job), "FAILED", "1:0")
    return job.fingerprint


def test_failed_jobs_and_what_was_skipped_are_submitted_again(desk: Desk) -> None:
    plan = desk.sweep()
    name = fail(desk)
    needs_it = {other for other, job in plan.jobs.items() if name in job.parents}
    said = desk.prism("retry", "nano/tiny", "--json").json
    assert set(said["submitted"]) == {name} | needs_it
    state = desk.store.job(name).state()
    assert (state["failures"], state["final"]) == (0, False)
    assert desk.prism("status", "nano/tiny", "--json").json["counts"] == {"queued": len(plan.jobs)}


def test_new_cells_are_not_started(desk: Desk) -> None:
    assert desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip").code == 0
    name = fail(desk)
    first = set(desk.plan().jobs)
    from prism_sweeps.planning.plan import make_plan

    both = make_plan([*GRID, "cluster=slurm"])
    desk.store.study(both.study).write_plan(both.to_plain())
    submitted = set(desk.prism("retry", "nano/tiny", "--json").json["submitted"])
    assert name in submitted
    assert submitted <= first


def test_only_the_cells_and_jobs_that_are_named(desk: Desk) -> None:
    desk.sweep()
    fail(desk)
    other = desk.cell(backbone="nano-in1k")
    said = desk.prism("retry", "nano/tiny", "--cell", other.id)
    assert said.code == 0
    assert "nothing of nano/tiny to try again: 1 failed" in said.out
    assert desk.prism("retry", "nano/tiny", "--cell", desk.cell().id, "--json").json["submitted"]


def test_an_evaluation_brings_the_training_that_it_needs(desk: Desk) -> None:
    plan = desk.sweep()
    name = fail(desk)
    evaluation = next(other for other, job in plan.jobs.items() if name in job.parents and job.kind == "evaluate")
    said = desk.prism("retry", "nano/tiny", "--job", evaluation, "--json").json
    assert set(said["submitted"]) == {name, evaluation}


def test_cancelled_jobs_go_on(desk: Desk) -> None:
    plan = desk.sweep()
    desk.prism("cancel", "nano/tiny", "--yes")
    said = desk.prism("retry", "nano/tiny")
    assert f"{len(plan.jobs)} jobs submitted again" in said.out


def test_silent_jobs_are_ended_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.sweep()
    job = desk.train()
    slurm_id = desk.slurm_id(job)
    desk.slurm.start(slurm_id)
    record = begun(desk.store, job)
    long_ago = time.time() - 4000
    os.utime(record.heartbeat, (long_ago, long_ago))
    descriptor = os.open(record.path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    cancel = retrying.scheduler.cancel

    def ended(ids: object) -> None:
        cancel(ids)  # type: ignore[arg-type]
        os.close(descriptor)

    monkeypatch.setattr(retrying.scheduler, "cancel", ended)
    said = desk.prism("retry", "nano/tiny")
    assert said.code == 0, said.err
    assert f"cancelling {slurm_id}, of which there is no sign of life" in said.err
    assert slurm_id not in desk.slurm.live()
    assert desk.slurm_id(job) != slurm_id
    assert desk.slurm_id(job) in desk.slurm.live()


def test_a_node_that_does_not_let_go_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.sweep()
    slurm_id = desk.slurm_id(desk.train())
    monkeypatch.setattr(retrying, "LET_GO_SECONDS", 0.0)
    monkeypatch.setattr(retrying.scheduler, "cancel", lambda ids: None)
    with pytest.raises(LaunchError, match=f"not let go of {slurm_id}"):
        retrying.end_silent(desk.store, [slurm_id], lambda text: None, lambda seconds: None)


def test_a_local_study_is_retried_here(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from prism_sweeps.commands import sweep
    from prism_sweeps.launching.local import Outcome
    from prism_sweeps.planning.plan import make_plan

    plan = make_plan([*GRID, "tracking.mlflow=false"])
    desk.store.study(plan.study).write_plan(plan.to_plain())
    job = desk.train()
    failed(desk.store, job, final=True)
    ran: list[str] = []

    def run_jobs(jobs: dict[str, object], *_: object, **__: object) -> Outcome:
        ran.extend(jobs)
        return Outcome(list(jobs), {}, [], [])

    monkeypatch.setattr(sweep, "run_jobs", run_jobs)
    assert desk.prism("retry", "nano/tiny").code == 0
    assert set(ran) == {job.fingerprint} | {n for n, each in plan.jobs.items() if job.fingerprint in each.parents}
    assert desk.store.job(job.fingerprint).state()["failures"] == 0
    interrupted(desk.store, desk.train(backbone="nano-in1k"))
    done(desk.store, *(plan.jobs[name] for name in ran))
    ran.clear()
    assert "nothing of nano/tiny to try again" in desk.prism("retry", "nano/tiny").out
    assert not ran


def test_a_silent_job_outside_of_slurm_is_out_of_reach(desk: Desk) -> None:
    desk.sweep()
    jobs = desk.plan().jobs
    name = desk.train().fingerprint
    found = {each: Standing("new") for each in jobs} | {name: Standing("silent")}
    retry = to_retry(jobs, found, None, {})
    assert retry.out_of_reach == (name,)
    assert not retry.jobs


def test_a_silent_job_whose_number_is_anothers_by_now_cancels_nobody(desk: Desk) -> None:
    desk.sweep()
    slurm_id = desk.slurm_id(desk.train())
    with desk.slurm.world() as world:
        world.jobs[slurm_id]["comment"] = "(null)"
    said: list[str] = []
    retrying.end_silent(desk.store, [slurm_id], said.append, lambda seconds: None)
    assert slurm_id in desk.slurm.live()
    assert not said
