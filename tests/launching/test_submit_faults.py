"""Submissions while SLURM is away, refuses, or takes what it seemed not to; shells that are killed; two at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ends import failed
from fake_slurm import FakeSlurm
from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, JobPaths
from sweeps import SMALL, TWO_STAGES, Planned, Sweeps, run_in_order, train

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm import submit as submitting
from prism_sweeps.launching.slurm.last import submit_again
from prism_sweeps.launching.slurm.limits import LimitReachedError
from prism_sweeps.launching.slurm.scheduler import SchedulerDown
from prism_sweeps.launching.slurm.submit import submit
from prism_sweeps.launching.standing import look
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store


def test_a_controller_that_is_away_for_a_moment(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES)
    sweep.slurm.down(times=2, command="sbatch")
    sweep(plan)
    sweep.each_once(plan.jobs)
    assert "SLURM does not answer: " in sweep.said[0]
    run_in_order(sweep, plan)


def test_a_controller_that_stays_away(sweep: Sweeps, planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a submission: it ends with a message, and the same call goes on."""
    plan = planned(*TWO_STAGES)
    note = submissions.submitted
    with monkeypatch.context() as patch:

        def noted(root: Path, batch: str, ids: list[str]) -> None:
            note(root, batch, ids)
            sweep.slurm.down(times=10**6)

        patch.setattr(submissions, "submitted", noted)
        with pytest.raises(
            SchedulerDown, match="1 allocations are submitted, the others are not; the same command goes on"
        ):
            sweep(plan)
    with pytest.raises(SchedulerDown):
        sweep(plan)
    assert {each.state for each in look(plan, sweep.store).values()} == {"unknown", "new"}
    sweep.slurm.set(faults=[])
    assert len(sweep(plan).jobs) == len(plan.jobs) - 1
    sweep.each_once(plan.jobs)
    assert not sweep(plan).jobs


def test_an_sbatch_that_was_taken_though_it_said_otherwise(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES)
    sweep.slurm.accept_then_time_out()
    sweep(plan)
    sweep.each_once(plan.jobs)
    assert any(said.startswith("taking back 4,") or said.startswith("taking back ") for said in sweep.said)
    assert Counter(job["state"] for job in sweep.slurm.jobs.values())["CANCELLED"] == 1
    run_in_order(sweep, plan)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


def test_an_sbatch_that_was_taken_while_slurm_fell_silent(sweep: Sweeps, planned: Planned) -> None:
    """squeue does not answer either for a while: nothing is submitted a second time before it does."""
    plan = planned(*TWO_STAGES)
    sweep.slurm.accept_then_time_out()
    sweep.slurm.down(times=3, command="squeue")
    # No batch is noted yet, so the first squeue is the one after the failed sbatch.
    sweep(plan)
    sweep.each_once(plan.jobs)


def test_an_sbatch_that_is_taken_after_slurm_was_asked_for_it(
    sweep: Sweeps, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller works on it after it has answered squeue: the next submission takes it back."""
    plan = planned(*TWO_STAGES)
    sweep.slurm.accept_then_time_out()
    with monkeypatch.context() as patch:
        patch.setattr("prism_sweeps.launching.slurm.submit.take_back", lambda *_: None)
        sweep(plan)
    assert len(sweep.live()[train(plan)[0]]) == 2
    assert not sweep(plan).jobs
    sweep.each_once(plan.jobs)


def test_a_refusal_ends_the_submission_and_the_next_goes_on(sweep: Sweeps, planned: Planned) -> None:
    text = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    plan = planned("nano/tiny", SMALL)
    sweep.slurm.refuse(text)
    with pytest.raises(LaunchError, match="SLURM refuses a job: ") as caught:
        sweep(plan)
    assert not isinstance(caught.value, SchedulerDown)
    assert "sbatch: error:" not in str(caught.value)
    assert "0 allocations are submitted" in str(caught.value)
    sweep(plan)
    sweep.each_once(plan.jobs)


def test_a_cluster_that_refuses_a_request_is_told_before_anything_is_submitted(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES, "cluster.overrides={evaluate: {partition: shrot}}")
    with pytest.raises(ConfigError, match=r"no partition 'shrot'.*short"):
        sweep(plan)
    assert not sweep.slurm.jobs
    assert not (sweep.store.root / submissions.FILE).exists()


def test_an_environment_of_another_job_is_not_handed_on(
    sweep: Sweeps, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where a job submits another: srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are
    mutually exclusive."""
    ours = {"SLURM_JOB_ID": "77", "SLURM_MEM_PER_NODE": "400", "SRUN_CPUS_PER_TASK": "3", "SLURM_CONF": "/x"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    sweep(planned(SMALL))
    assert [job["environment"] for job in sweep.slurm.jobs.values()] == [{"SLURM_CONF": "/x"}] * len(sweep.slurm.jobs)
    assert {name: os.environ[name] for name in ours} == ours


def test_a_machine_without_slurm(
    store: Store, planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no sbatch on PATH"):
        submit(planned(SMALL), store, print)


# ---- limits to how many jobs a user may have
# The text is that of slurm_errno.c and of clusters that have such limits.


@pytest.mark.parametrize("most", range(2, 15))
def test_as_many_as_a_limit_leaves_room_for_and_the_report_job_the_others(
    most: int, sweep: Sweeps, planned: Planned
) -> None:
    plan = planned(SMALL, "seed=1,2,3,4,5,6")  # six trainings, six allocations of evaluations, one report
    sweep.slurm.set(most=most)
    if most >= 13:
        assert sweep(plan).allocations == 12
    else:
        with pytest.raises(LimitReachedError, match="AssocMaxSubmitJobLimit") as caught:
            sweep(plan)
        there = len(sweep.slurm.live()) - len(sweep.reports())
        assert f"{there} allocations are submitted, {12 - there} are left" in str(caught.value)
        assert ("the job that reports submits the others" in str(caught.value)) == bool(sweep.reports())
        assert most - 1 <= len(sweep.slurm.live()) <= most
    rounds = 0
    while set(sweep.states(plan)) != {"done"}:
        reports = sweep.reports()
        run_in_order(sweep, plan, seed=rounds)
        if set(sweep.states(plan)) != {"done"}:
            with contextlib.suppress(LimitReachedError):
                submit_again(plan, sweep.store, left_of(sweep, reports[0])) if reports else sweep(plan)
        rounds += 1
        assert rounds < 20


def left_of(sweep: Sweeps, report: str) -> tuple[str, ...]:
    """Jobs that a report job was told to submit."""
    (path,) = (sweep.store.root / "slurm").rglob(f"{report}_submitted.pkl")
    return DelayedSubmission.load(path).function.left


def test_with_no_room_at_all(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(SMALL, "seed=1,2")
    sweep.slurm.set(most=0)
    with pytest.raises(LimitReachedError, match="0 allocations are submitted, 4 are left; no job that reports is"):
        sweep(plan)
    sweep.slurm.set(most=99)
    sweep(plan)
    sweep.each_once(plan.jobs)


# ---- several users


@pytest.fixture
def as_user(sweep: Sweeps, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets another user submit from now on, who may not cancel what the others have."""

    def become(name: str) -> None:
        for module in (submissions, scheduler):
            monkeypatch.setattr(module, "me", lambda: name)
        sweep.slurm.set(users=[name, *({"ann", "ben", "root"} - {name})])

    return become


def cut_off(sweep: Sweeps, plan: Plan, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """A submission that dies before it notes the ids of this batch."""
    note, seen = submissions.submitted, []

    def noted(*arguments: Any) -> None:
        seen.append(arguments)
        if len(seen) == batch:
            raise KeyboardInterrupt
        note(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(submissions, "submitted", noted)
        with pytest.raises(KeyboardInterrupt):
            sweep(plan)


@pytest.mark.parametrize("batch", [1, 2])
def test_what_another_user_left_half_way_counts_as_queued(
    batch: int, sweep: Sweeps, planned: Planned, as_user: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(*TWO_STAGES)
    as_user("ann")
    cut_off(sweep, plan, monkeypatch, batch)
    before = set(sweep.slurm.live())
    as_user("ben")
    result = sweep(plan)
    assert len(result.jobs) == len(plan.jobs) - len(before)
    assert sweep.slurm.calls("scancel") == []
    assert "by ann that was cut off half-way" in " ".join(sweep.said)
    sweep.each_once(plan.jobs)
    assert not sweep(plan).jobs  # as long as only ann can act
    as_user("ann")
    sweep(plan)
    newest = max(before).partition("_")[0]
    taken_back = {name for name, job in sweep.slurm.jobs.items() if job["by"] is not None}
    assert taken_back == {name for name in before if name.partition("_")[0] == newest}
    sweep.each_once(plan.jobs, reports=2)


def test_what_waits_in_vain_and_is_of_another_user_is_not_taken_out(
    sweep: Sweeps, planned: Planned, as_user: Callable[[str], None]
) -> None:
    plan = planned(SMALL, "seed=1,2", "cluster.overrides={train:{jobs_per_allocation:2}}", "engine.retries=0")
    as_user("ann")
    sweep(plan)
    bad = train(plan)[0]
    sweep.slurm.start(submissions.read(sweep.store.root).newest()[bad].slurm_id)
    failed(sweep.store, plan.jobs[bad])
    as_user("ben")
    assert set(sweep(plan).jobs) == {bad, *(name for name, job in plan.jobs.items() if bad in job.parents)}
    assert sweep.slurm.calls("scancel") == []


# ---- shells that are killed, and two at once

FORK = multiprocessing.get_context("fork")


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_line(root: Path, *_: Any) -> None:
    """A crash in the middle of a write."""
    with (root / submissions.FILE).open("a") as stream:
        stream.write('{"event": "subm')
    die()


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        function(*arguments)
        die()

    return both


POINTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "before it is noted": (submissions, "intend", die),
    "half-way in the note before": (submissions, "intend", half_a_line),
    "between note and sbatch": (submitting, "executor_for", die),
    "inside sbatch": (SlurmExecutor, "_make_submission_command", lambda self, path: ["sh", "-c", "kill -9 $PPID"]),
    "once SLURM has it": (SlurmExecutor, "_get_job_id_from_submission_command", die),
    "before its files are in place": (JobPaths, "move_temporary_file", die),
    "before its ids are noted": (submissions, "submitted", die),
    "half-way in the note after": (submissions, "submitted", half_a_line),
    "once its ids are noted": (submissions, "submitted", after(submissions.submitted)),
}


def killed_at(point: str, batch: int, plan: Plan, store: Store) -> None:
    """In a process of its own: submits, and dies at this point of this batch."""
    owner, name, death = POINTS[point]
    real, seen = submissions.intend, []

    def counted(*arguments: Any) -> str:
        seen.append(None)
        if len(seen) == batch:
            setattr(owner, name, death)
            if name == "intend":
                death(*arguments)
        return real(*arguments)

    submissions.intend = counted  # type: ignore[assignment]
    submit(plan, store, print)


@pytest.mark.parametrize("batch", [1, 2, 4], ids=["first", "second", "report"])
@pytest.mark.parametrize("point", POINTS)
def test_a_shell_that_is_killed(point: str, batch: int, sweep: Sweeps, planned: Planned) -> None:
    """The next sweep leaves one live SLURM job for each job of the plan, with its files, and one that reports."""
    plan = planned(*TWO_STAGES)
    child = FORK.Process(target=killed_at, args=(point, batch, plan, sweep.store))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    before = len(sweep.live())
    assert before < len(plan.jobs) or batch == 4
    sweep(plan)
    sweep.each_once(plan.jobs)
    assert not sweep(plan).jobs
    run_in_order(sweep, plan)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


def at_the_signal(plan: Plan, store: Store, begin: Any, slurm: FakeSlurm) -> None:
    os.environ["PATH"] = f"{slurm.bin}:{os.environ['PATH']}"
    begin.wait()
    submit(plan, store, lambda text: None)


def test_two_submissions_at_the_same_moment(sweep: Sweeps, planned: Planned, tmp_path: Path) -> None:
    """Of studies that share jobs: each job once, and what is shared before all that needs it."""
    first = planned(SMALL, "stages=nano-two-stage", "tuning=full", "cluster.report=false")
    second = planned(SMALL, "stages=nano-two-stage", "tuning=full,lora", "cluster.report=false")
    first.study, second.study = "one", "two"
    for number in range(20):
        both = Sweeps(FakeSlurm(tmp_path / f"slurm-{number}"), Store.open(tmp_path / f"store-{number}"))
        begin = FORK.Event()
        children = [
            FORK.Process(target=at_the_signal, args=(plan, both.store, begin, both.slurm)) for plan in (first, second)
        ]
        for child in children:
            child.start()
        begin.set()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        both.each_once(second.jobs, reports=0)
        run_in_order(both, second, seed=number)
