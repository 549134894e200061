"""The last job of a sweep: what nodes and limits ended is submitted again, so often as a job may fail, and reported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from unittest.mock import Mock

import pytest
from ends import begun, done, failed, interrupted
from fake_slurm import FakeSlurm
from sweeps import SMALL, TWO_STAGES, Planned, Sweeps, run_in_order, train

from prism_sweeps.config.schema import Engine
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.slurm import last
from prism_sweeps.launching.slurm.last import Last, put_down_losses, submit_again
from prism_sweeps.launching.standing import RETRIED_ALONE, Standing, look
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import JobRecord, Store


@pytest.fixture
def plan(planned: Planned, sweep: Sweeps) -> Plan:
    plan = planned(*TWO_STAGES[:2], "engine.retries=1")
    sweep(plan)
    return plan


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last, "SILENT_SECONDS", 0.0)


def lose(sweep: Sweeps, plan: Plan, state: str = "TIMEOUT") -> str:
    """The first job of the plan is ended by SLURM without a word of its own."""
    (name, *_) = train(plan)
    begun(sweep.store, plan.jobs[name])
    sweep.slurm.finish(submissions.read(sweep.store.root).newest()[name].slurm_id, state)
    return name


@pytest.mark.parametrize("state", sorted(RETRIED_ALONE))
def test_what_a_node_or_a_limit_ended_is_submitted_again_with_all_that_needs_it(
    state: str, plan: Plan, sweep: Sweeps
) -> None:
    name = lose(sweep, plan, state)
    assert submit_again(plan, sweep.store) == len(plan.jobs)
    record = sweep.store.job(name).state()
    assert (record["status"], record["failures"]) == ("failed", 1)
    assert sweep.states(plan) == {"queued": len(plan.jobs)}
    assert submit_again(plan, sweep.store) == 0
    run_in_order(sweep, plan)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


def test_only_so_often_as_a_job_may_fail(plan: Plan, sweep: Sweeps) -> None:
    for expected in (len(plan.jobs), 0):
        name = lose(sweep, plan)
        assert submit_again(plan, sweep.store) == expected
    state = sweep.store.job(name).state()
    assert state["failures"] == 2
    assert state["error"].startswith("its time limit was over")
    assert sweep.states(plan) == {"failed": 1, "skipped": len(plan.jobs) - 1}


@pytest.mark.parametrize(
    "end",
    [
        lambda s, p, i: s.slurm.cancel(i),
        lambda s, p, i: (failed(s.store, p.jobs[train(p)[0]]), s.slurm.finish(i, "FAILED", "1:0")),
        lambda s, p, i: s.slurm.finish(i, "FAILED", "1:0"),
        lambda s, p, i: interrupted(s.store, p.jobs[train(p)[0]]),
        lambda s, p, i: s.end(p, i),
    ],
    ids=["cancelled", "failed", "died before it began", "queued again", "done"],
)
def test_what_the_user_or_the_job_itself_ended_is_not(
    end: Callable[[Sweeps, Plan, str], object], plan: Plan, sweep: Sweeps
) -> None:
    end(sweep, plan, submissions.read(sweep.store.root).newest()[train(plan)[0]].slurm_id)
    before = len(sweep.slurm.jobs)
    assert submit_again(plan, sweep.store) == 0
    assert len(sweep.slurm.jobs) == before


def lost(name: str, ended: str = "TIMEOUT", nodes: str = "n3") -> dict[str, Standing]:
    return {name: Standing("lost", "its time limit was over", "7", ended, host=nodes)}


@pytest.mark.parametrize(
    ("ended", "nodes", "blamed"),
    [
        ("NODE_FAIL", "n3", "n3"),
        ("BOOT_FAIL", "n3", "n3"),
        ("NODE_FAIL", "n[1-2]", ""),
        ("NODE_FAIL", "n1,m4", ""),
        ("BOOT_FAIL", "None assigned", ""),
        ("TIMEOUT", "n3", ""),
        ("OUT_OF_MEMORY", "n3", ""),
    ],
)
def test_a_loss_blames_its_node_where_that_failed(
    ended: str, nodes: str, blamed: str, plan: Plan, store: Store
) -> None:
    (name, *_) = train(plan)
    begun(store, plan.jobs[name])
    assert put_down_losses(lost(name, ended, nodes), plan, store) == {name}
    assert [host for host, _ in store.job(name).state()["failed_on"]] == [blamed]
    assert "its time limit was over" in store.job(name).log.read_text()


def test_a_job_that_was_lost_before_it_began(plan: Plan, store: Store) -> None:
    (name, *_) = train(plan)
    assert put_down_losses(lost(name, "BOOT_FAIL"), plan, store) == {name}
    assert store.job(name).state()["failures"] == 1


def test_a_young_sign_of_life_of_what_slurm_has_ended_is_waited_out(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed on another node a second ago; by its heartbeat alone it may still be at work there."""
    record = store.job(train(plan)[0])
    monkeypatch.setattr("socket.gethostname", lambda: "n2")
    with record.claim():
        record.begin(plan.jobs[record.fingerprint], Engine())
        record.beat(1, 2, "")
    monkeypatch.setattr("socket.gethostname", lambda: "n1")
    monkeypatch.setattr(last, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr("prism_sweeps.tracking.records.SILENT_SECONDS", 0.2)
    monkeypatch.setattr(last.time, "sleep", lambda seconds, real=last.time.sleep: real(min(seconds, 0.05)))
    assert put_down_losses(lost(record.fingerprint), plan, store) == {record.fingerprint}


def test_one_that_is_at_work_after_all_is_left_alone(plan: Plan, store: Store) -> None:
    """On a node that was cut off from the controller."""
    record = store.job(train(plan)[0])
    with JobRecord(record.path).claim():
        record.begin(plan.jobs[record.fingerprint], Engine())
        assert put_down_losses(lost(record.fingerprint, "NODE_FAIL"), plan, store) == set()
        assert record.state()["status"] == "running"


# ---- a stage that two studies share


@pytest.fixture
def two(planned: Planned, sweep: Sweeps) -> tuple[Plan, Plan]:
    """Swept, with one align stage for both; it was lost, and nothing can be done about that yet."""
    found = [planned(SMALL, "stages=nano-two-stage", f"tuning={each}", "engine.retries=1") for each in ("full", "lora")]
    found[0].study, found[1].study = "one", "two"
    for plan in found:
        sweep(plan)
    return found[0], found[1]


def put_down(sweep: Sweeps, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report job of a study gets no further than to the records."""
    with monkeypatch.context() as patch:
        patch.setattr("prism_sweeps.launching.slurm.submit.submit", Mock(side_effect=LaunchError))
        with pytest.raises(LaunchError):
            submit_again(plan, sweep.store)


@pytest.mark.parametrize("forgets", ["nothing", "squeue", "sacct"])
def test_the_second_study_goes_on_as_well(forgets: str, two: tuple[Plan, Plan], sweep: Sweeps) -> None:
    first, second = two
    lose(sweep, first)
    if forgets == "squeue":
        sweep.slurm.purge()
    sweep.slurm.set(accounts=forgets != "sacct")
    assert submit_again(first, sweep.store) == len(first.jobs)
    assert submit_again(second, sweep.store) == len(second.jobs) - 1
    assert sweep.states(second) == {"queued": len(second.jobs)}
    assert submit_again(second, sweep.store) == 0
    live = sweep.live()
    assert {name: len(ids) for name, ids in live.items()} == dict.fromkeys({**first.jobs, **second.jobs}, 1)


def test_whichever_study_puts_the_loss_down(
    two: tuple[Plan, Plan], sweep: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has noted it, and not submitted anything yet, when the other looks."""
    first, second = two
    lose(sweep, first)
    put_down(sweep, first, monkeypatch)
    assert submit_again(second, sweep.store) == len(second.jobs)
    assert submit_again(first, sweep.store) == len(first.jobs) - 1
    assert sweep.states(first) == {"queued": len(first.jobs)}


def test_what_a_user_cancelled_stays_so_with_what_needs_it(two: tuple[Plan, Plan], sweep: Sweeps) -> None:
    first, second = two
    sweep.slurm.cancel(sweep.of(second, "^align > "))
    lose(sweep, first)
    assert submit_again(first, sweep.store) == len(first.jobs)
    assert submit_again(second, sweep.store) == 0
    assert sweep.states(second) == {"queued": 1, "cancelled": 1, "skipped": len(second.jobs) - 2}


@pytest.mark.parametrize("accounts", [True, False])
def test_a_loss_does_not_bring_back_what_a_user_cancelled(accounts: bool, plan: Plan, sweep: Sweeps) -> None:
    sweep.slurm.set(accounts=accounts)
    sweep.slurm.cancel(sweep.of(plan, "^align > "))
    name = lose(sweep, plan)
    assert submit_again(plan, sweep.store) == 1
    assert {each for each, standing in look(plan, sweep.store).items() if standing.state == "queued"} == {name}


# ---- as submitit calls it


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that it would have run, those of SLURM excepted."""
    ran: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        if command[0] != sys.executable:
            return real(command, **options)  # type: ignore[call-overload]
        return ran.append(command)

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def call(plan: Plan, store: Store) -> None:
    Last(store.root, store.data, plan.study)()


def report_of(plan: Plan, store: Store) -> list[str]:
    return [sys.executable, "-m", "prism_sweeps.cli", "report", plan.study, "--store", str(store.root)]


def test_it_submits_again_and_reports(plan: Plan, sweep: Sweeps, commands: list[list[str]]) -> None:
    lose(sweep, plan)
    call(plan, sweep.store)
    assert commands == [report_of(plan, sweep.store)]
    assert sweep.states(plan) == {"queued": len(plan.jobs)}


def test_while_it_runs_itself_no_other_report_is_submitted(
    plan: Plan, sweep: Sweeps, commands: list[list[str]]
) -> None:
    done(sweep.store, *plan.jobs.values())
    for name, job in sweep.slurm.live().items():
        if job["dependency"].startswith("afterany"):
            report = name
        else:
            sweep.slurm.finish(name)
    sweep.slurm.start(report)
    call(plan, sweep.store)
    assert list(sweep.slurm.live()) == [report]
    assert len(commands) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        lambda slurm: slurm.refuse("sbatch: error: Batch job submission failed: Access/permission denied"),
        lambda slurm: slurm.down(times=10**6, command="sinfo"),
        lambda slurm: (slurm.bin / "sbatch").unlink(),
    ],
    ids=["no job may submit another", "SLURM is away", "no commands on nodes"],
)
def test_where_it_can_submit_nothing_it_still_reports(
    trouble: Callable[[FakeSlurm], object],
    plan: Plan,
    sweep: Sweeps,
    commands: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose(sweep, plan)
    trouble(sweep.slurm)
    monkeypatch.setenv("PATH", f"{sweep.slurm.bin}:/bin")
    call(plan, sweep.store)
    assert "nothing is submitted again from here: " in capsys.readouterr().err
    assert commands == [report_of(plan, sweep.store)]


def test_the_plan_is_the_one_that_was_swept_last(plan: Plan, planned: Planned, sweep: Sweeps) -> None:
    wider = planned(*TWO_STAGES, "engine.retries=1")
    wider.study = plan.study
    sweep(wider)
    lose(sweep, plan)
    found = Plan.from_plain(sweep.store.study(plan.study).plan())
    assert submit_again(found, sweep.store) == len(wider.jobs)
    assert {each.state for each in look(wider, sweep.store).values()} == {"queued"}
