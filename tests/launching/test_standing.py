"""Where jobs stand: record, journal and SLURM read together, for everything that has been seen to happen to a job."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from ends import begun, done, failed, interrupted
from fake_jobs import by_name, score, train
from fake_slurm import FakeSlurm
from sweeps import Planned, Sweeps
from sweeps import train as training

from prism_sweeps.config.schema import Engine
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm.scheduler import Ended, Queued, SchedulerDown
from prism_sweeps.launching.standing import QUIET_SECONDS, RETRIED_ALONE, Known, Standing, known_of, look, standings
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import NEW_STATE, Store
from prism_sweeps.tracking.submissions import Allotted, Journal

NAME = "0" * 16
JOB = train(NAME)


def state(status: str, **changes: object) -> dict[str, object]:
    return NEW_STATE | {"status": status} | changes


def queued(state: str, reason: str = "None", nodes: str = "") -> Queued:
    return Queued("7", state, reason, nodes, "prism-x", "root")


def ended(state: str, by: str = "") -> Ended:
    return Ended("7", state, "0:0", "n1", by)


def stands(
    record: dict[str, object], queue: Queued | None = None, history: Ended | None = None, **known: object
) -> Standing:
    """Of a job that was submitted as job 7."""
    return standings(
        {NAME: JOB},
        Known(
            states={NAME: record},
            allotted={NAME: Allotted("7", (NAME,), "study", "x", "root", 0.0, retries=1)},
            queue={"7": queue} if queue else {},
            history={"7": history} if history else {},
            **known,  # type: ignore[arg-type]
        ),
    )[NAME]


q, e = queued, ended
TABLE = [
    # How a job ended (each was seen on a real cluster, squeue and sacct as they were then), and how it stands.
    ("an exception", "failed", q("FAILED", "NonZeroExitCode", "n1"), e("FAILED"), "failed", "boom"),
    ("killed by the kernel", "failed", q("FAILED", "NonZeroExitCode"), e("OUT_OF_MEMORY"), "failed", "boom"),
    ("killed with its script", "interrupted", q("OUT_OF_MEMORY"), e("OUT_OF_MEMORY"), "lost", "needed more memory"),
    ("over its time limit", "interrupted", q("TIMEOUT", "TimeLimit"), e("TIMEOUT"), "lost", "its time limit was over"),
    ("just being ended for that", "interrupted", q("COMPLETING", "TimeLimit"), e("TIMEOUT"), "queued", ""),
    ("its node died, queued again", "interrupted", q("PENDING", "BeginTime"), e("NODE_FAIL"), "queued", "BeginTime"),
    ("its node died, running again", "interrupted", q("RUNNING"), e("NODE_FAIL"), "queued", "starting"),
    ("its node died, for good", "interrupted", q("NODE_FAIL"), e("NODE_FAIL"), "lost", "its node failed"),
    ("only slurmd was killed", "done", q("COMPLETED"), e("COMPLETED"), "done", ""),
    ("preempted, queued again", "interrupted", q("PENDING", "BeginTime"), e("PREEMPTED"), "queued", "BeginTime"),
    ("preempted, for good", "interrupted", q("PREEMPTED"), e("PREEMPTED"), "lost", "had to make room"),
    ("cancelled while it waited", "new", q("CANCELLED", "Dependency"), e("CANCELLED", "0"), "cancelled", "by user 0"),
    ("cancelled while it ran", "interrupted", q("CANCELLED"), e("CANCELLED", "1000"), "cancelled", "by user 1000"),
    ("a parent failed", "new", q("CANCELLED", "DependencyNeverSatisfied"), None, "cancelled", "cancelled"),
    ("no accounts, forgotten", "new", None, None, "lost", "SLURM does not know it any more"),
    ("no accounts, not yet forgotten", "new", q("BOOT_FAIL"), None, "lost", "its node did not start"),
    ("its script died before it", "new", q("FAILED", "NonZeroExitCode"), e("FAILED"), "lost", "ended before it began"),
    ("its script left it out", "new", None, e("COMPLETED"), "lost", "ended without it"),
    ("a word of later versions", "new", q("REVOKED"), None, "lost", "SLURM says REVOKED"),
    ("waiting for a parent", "new", q("PENDING", "Dependency"), None, "queued", "Dependency"),
    ("waiting for room", "new", q("PENDING", "Resources"), None, "queued", "Resources"),
    ("held", "new", q("PENDING", "JobHeldUser"), None, "queued", "JobHeldUser"),
    ("starting", "new", q("CONFIGURING"), None, "queued", "starting"),
    ("suspended before it began", "new", q("SUSPENDED"), None, "queued", "starting"),
    ("at work", "running", q("RUNNING"), e("RUNNING"), "running", ""),
    ("queued again while its old process still writes", "running", q("PENDING"), None, "queued", ""),
    ("done, and SLURM is clearing up", "done", q("COMPLETING"), e("RUNNING"), "done", ""),
    ("sacct is behind", "interrupted", q("TIMEOUT", "TimeLimit"), e("RUNNING"), "lost", "its time limit was over"),
    ("the next attempt of one that failed", "failed", q("PENDING", "BeginTime"), e("REQUEUED"), "queued", ""),
    ("forgiven, and its allocation starts", "forgiven", q("RUNNING"), None, "queued", "starting"),
    ("between two tries", "failed", q("RUNNING"), None, "queued", "tried again after: boom"),
    ("failed for good in an allocation that goes on", "given up", q("RUNNING"), None, "failed", "boom"),
    ("failed so that trying again cannot help", "final", q("RUNNING"), None, "failed", "boom"),
]  # fmt: skip
RECORDS = {
    "failed": state("failed", failures=1, error="boom"),
    "given up": state("failed", failures=2, error="boom"),
    "final": state("failed", failures=1, final=True, error="boom"),
    "forgiven": state("failed", error="boom"),
}


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_a_job_that_was_submitted(row: tuple[str, str, Queued | None, Ended | None, str, str]) -> None:
    _, record, queue, history, word, reason = row
    found = stands(RECORDS.get(record) or state(record), queue, history)
    assert found.state == word
    assert reason in found.reason
    assert found.slurm_id == ("7" if word != "done" else None)


def test_what_the_cluster_ended_is_told_from_what_the_user_did() -> None:
    words = {row[3].state for row in TABLE if row[3] and row[4] == "lost"}
    assert words >= {"TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
    assert {stands(state("new"), None, ended(word)).ended for word in RETRIED_ALONE} == RETRIED_ALONE
    assert not RETRIED_ALONE & {"CANCELLED", "FAILED", "COMPLETED"}


@pytest.mark.parametrize("status", ["new", "running", "done", "interrupted", "failed"])
def test_a_job_that_slurm_never_had(status: str) -> None:
    record = RECORDS.get(status) or state(status)
    assert standings({NAME: JOB}, Known(states={NAME: record}))[NAME].state == status


def test_slurm_is_silent() -> None:
    """What a record knows is told; of the others nothing is."""
    table = {
        "new": "unknown",
        "interrupted": "unknown",
        "forgiven": "unknown",
        "failed": "failed",
        "running": "running",
        "done": "done",
    }
    for record, word in table.items():
        known = Known(
            states={NAME: RECORDS.get(record) or state(record)},
            allotted={NAME: Allotted("7", (NAME,), "study", "x", "root", 0.0)},
            queue=None,
        )
        assert standings({NAME: JOB}, known)[NAME].state == word


def test_signs_of_life_are_told() -> None:
    beats = {NAME: {"done": 3, "total": 9, "text": "loss 1.5", "host": "n2"}}
    found = stands(state("running"), queued("RUNNING"), beats=beats, silences={NAME: 4.0})
    assert (found.state, found.done, found.total, found.text, found.host, found.silence) == (
        "running", 3, 9, "loss 1.5", "n2", 4.0,
    )  # fmt: skip
    found = stands(state("running"), queued("RUNNING"), beats=beats, silences={NAME: QUIET_SECONDS + 5})
    assert (found.state, found.reason) == ("silent", "no sign of life for 185 s")


def test_what_needs_a_job_that_ended_badly_is_skipped() -> None:
    jobs = by_name(train("a"), train("b", "a"), score("c", "b"), train("d"), score("e", "d"))
    states = {name: state("new") for name in jobs} | {"a": RECORDS["failed"], "d": state("done")}
    found = standings(jobs, Known(states=states))
    assert {name: each.state for name, each in found.items()} == {
        "a": "failed", "b": "skipped", "c": "skipped", "d": "done", "e": "new",
    }  # fmt: skip
    assert found["b"].reason == "needs fine"


@pytest.mark.parametrize(("reason", "word"), [("Dependency", "skipped"), ("Priority", "queued")])
def test_what_waits_in_vain_is_skipped_before_slurm_ends_it(reason: str, word: str) -> None:
    jobs = by_name(train("a"), score("b", "a"))
    known = Known(
        states={"a": RECORDS["failed"], "b": state("new")},
        allotted={"b": Allotted("7", ("b",), "study", "x", "root", 0.0)},
        queue={"7": queued("PENDING", reason)},
    )
    assert standings(jobs, known)["b"].state == word


# ---- read from a store and the double


@pytest.fixture
def one(sweep: Sweeps, planned: Planned) -> Plan:
    plan = planned("suite=easy-vqa")
    sweep(plan)
    return plan


def of_training(sweep: Sweeps, plan: Plan) -> Standing:
    return look(plan, sweep.store)[training(plan)[0]]


def slurm_id(sweep: Sweeps, plan: Plan) -> str:
    return submissions.read(sweep.store.root).newest()[training(plan)[0]].slurm_id


def test_a_job_that_ends_while_slurm_is_asked_is_not_lost(
    one: Plan, sweep: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask: Callable[..., dict[str, Queued]] = scheduler.queue

    def slowly(users: object) -> dict[str, Queued]:
        done(sweep.store, one.jobs[training(one)[0]])
        sweep.slurm.finish(slurm_id(sweep, one))
        return ask(users)

    monkeypatch.setattr(scheduler, "queue", slowly)
    assert of_training(sweep, one).state == "done"


def test_locks_that_are_kept_to_each_machine(one: Plan, sweep: Sweeps) -> None:
    """Seen from elsewhere nobody holds the lock of a job that runs: its signs of life tell."""
    record = begun(sweep.store, one.jobs[training(one)[0]])
    assert record.state()["status"] == "interrupted"
    assert of_training(sweep, one).state == "queued"
    sweep.slurm.start(slurm_id(sweep, one))
    found = of_training(sweep, one)
    assert (found.state, found.done, found.total, found.text) == ("running", 1, 4, "loss 2.0")
    os.utime(record.heartbeat, (time.time() - 500, time.time() - 500))
    assert of_training(sweep, one).state == "silent"


@pytest.mark.parametrize("error", [-3600.0, 3600.0], ids=["slow", "fast"])
def test_clocks_that_are_wrong(one: Plan, sweep: Sweeps, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an hour, on the node and here: the file system's own clock is asked."""
    record = sweep.store.job(training(one)[0])
    sweep.slurm.start(slurm_id(sweep, one))
    real = time.time
    with record.claim():
        monkeypatch.setattr(time, "time", lambda: real() + error)
        record.begin(one.jobs[record.fingerprint], Engine())
        record.beat(1, 2, "")
        found = of_training(sweep, one)
        assert found.state == "running"
        assert found.silence is not None
        assert found.silence < 20


def test_slurm_does_not_answer(one: Plan, sweep: Sweeps) -> None:
    sweep.slurm.down(times=100)
    assert {each.state for each in look(one, sweep.store).values()} == {"unknown"}
    with pytest.raises(SchedulerDown):
        look(one, sweep.store, must_answer=True)


def test_a_machine_without_slurm_that_sees_the_store(
    one: Plan, sweep: Sweeps, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    record = sweep.store.job(training(one)[0])
    monkeypatch.setenv("PATH", str(tmp_path))
    with record.claim():
        record.begin(one.jobs[record.fingerprint], Engine())
        assert of_training(sweep, one).state == "running"
    assert of_training(sweep, one).state == "unknown"


def test_nobody_asks_slurm_of_what_it_never_had(slurm: FakeSlurm, store: Store) -> None:
    interrupted(store, train("1" * 16))
    failed(store, train("2" * 16))
    jobs = by_name(train("1" * 16), train("2" * 16), train("3" * 16))
    known = known_of(jobs, store, Journal(), must_answer=True)
    assert {name: each.state for name, each in standings(jobs, known).items()} == {
        "1" * 16: "interrupted", "2" * 16: "failed", "3" * 16: "new",
    }  # fmt: skip
    assert not slurm.calls("squeue")


def test_the_newest_allocation_counts(one: Plan, sweep: Sweeps) -> None:
    """The first was cancelled, the second waits."""
    first = slurm_id(sweep, one)
    sweep.slurm.cancel(first)
    sweep(one)
    found = of_training(sweep, one)
    assert (found.state, found.slurm_id) == ("queued", slurm_id(sweep, one))
    assert found.slurm_id != first


def test_what_slurm_holds_back_for_good_can_be_retried() -> None:
    """Seen on 22.05 after a Prolog that failed: PENDING, launch failed requeued held, also once the node was mended."""
    found = stands(state("interrupted"), q("PENDING", "launch failed requeued held"))
    assert found.state == "silent"
    assert "launch failed requeued held" in found.reason
    assert "scontrol release 7" in found.reason
    assert stands(state("new"), q("PENDING", "JobHeldUser")).state == "queued"


def test_a_state_that_is_not_known_is_of_a_job_that_has_its_allocation() -> None:
    for word in ("RESIZING", "POWER_UP_NODE", "EXPEDITING"):
        assert stands(state("new"), q(word)).state == "queued"


def test_what_the_accounts_call_running_is_not_submitted_again_because_the_queue_does_not_show_it() -> None:
    assert stands(state("interrupted"), None, e("RUNNING")).state == "unknown"


def test_a_job_that_lives_and_gets_no_further_is_silent() -> None:
    beat = {"done": 3, "total": 9, "text": "", "host": "n1", "pid": 1}
    known = {"silences": {NAME: 1.0}}
    assert stands(state("running"), q("RUNNING"), beats={NAME: beat | {"still": 60}}, **known).state == "running"
    found = stands(state("running"), q("RUNNING"), beats={NAME: beat | {"still": 3600}}, **known)
    assert (found.state, found.reason) == ("silent", "it lives, but has not got further for 60 min")
