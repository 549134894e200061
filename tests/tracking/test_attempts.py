"""What a record tells of attempts: signs of life, failures and where they were, how far it got."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from records_of import JOB

from prism_sweeps.config.schema import Engine
from prism_sweeps.tracking.files import append_rows
from prism_sweeps.tracking.records import JobBusy, JobRecord


@pytest.fixture
def alive(record: JobRecord) -> JobRecord:
    """A job that somebody works on, as far as files tell."""
    record.path.mkdir(parents=True)
    record.begin(JOB, Engine())
    record.beat(3, 9, "loss 1.5")
    return record


def test_a_sign_of_life_says_how_far_it_is(alive: JobRecord) -> None:
    beat = alive.last_beat()
    assert beat is not None
    assert (beat["done"], beat["total"], beat["text"], beat["pid"]) == (3, 9, "loss 1.5", os.getpid())
    alive.beat(4, 9, "")
    assert (alive.last_beat() or {})["done"] == 4
    assert [path.name for path in alive.path.glob(".heartbeat*")] == []


@pytest.mark.parametrize("end", ["finish", "fail", "interrupt"])
def test_it_ends_with_the_attempt(end: str, alive: JobRecord) -> None:
    {"finish": lambda: alive.finish({}), "fail": lambda: alive.fail("boom"), "interrupt": alive.interrupt}[end]()
    assert (alive.last_beat(), alive.silence()) == (None, None)


def test_silence_is_told_by_the_clock_of_the_file_system(alive: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which all machines have the same; their own may be hours apart."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    silence = alive.silence()
    assert silence is not None
    assert silence < 20
    past = alive.heartbeat.stat().st_mtime - 100
    os.utime(alive.heartbeat, (past, past))
    assert 100 <= (alive.silence() or 0) < 120
    future = past + 4000
    os.utime(alive.heartbeat, (future, future))
    assert alive.silence() == 0


def test_who_may_not_write_asks_his_own_clock(alive: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("prism_sweeps.tracking.records.tempfile.TemporaryFile", refuse)
    now = alive.heartbeat.stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: now + 55)
    assert alive.silence() == 55


def test_a_sign_that_is_cut_off_or_gone_between_two_looks_is_none(
    alive: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive.heartbeat.write_text('{"done": 3')
    assert alive.last_beat() is None
    alive.heartbeat.unlink()
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert alive.last_beat() is None


def age(record: JobRecord, seconds: float) -> None:
    then = record.heartbeat.stat().st_mtime - seconds
    os.utime(record.heartbeat, (then, then))


def test_where_locks_are_kept_to_each_machine_a_living_job_is_not_taken(
    alive: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody here holds its lock. Another machine's signs of life tell, until they have stopped for a while."""
    host = alive.state()["host"]
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    with pytest.raises(JobBusy, match=rf"was alive on {host} \d+ s ago"), alive.claim():
        pass
    age(alive, 29)
    with pytest.raises(JobBusy), alive.claim():
        pass
    age(alive, 2)
    with alive.claim():
        pass


def test_on_its_own_machine_the_lock_is_believed(alive: JobRecord) -> None:
    with alive.claim():
        pass


def test_an_attempt_that_ended_in_order_is_taken_up_anywhere(alive: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    alive.interrupt()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    with alive.claim():
        pass


def test_failures_count_with_their_nodes(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("n1", "n2", "n1"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        with record.claim():
            record.begin(JOB, Engine())
            record.fail("boom")
    state = record.state()
    assert state["failures"] == 3
    assert [host for host, _ in state["failed_on"]] == ["n1", "n2", "n1"]
    assert [when for _, when in state["failed_on"]] == sorted(when for _, when in state["failed_on"])


def test_a_failure_elsewhere_counts_there(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("n2", "", None):
        monkeypatch.setattr("socket.gethostname", lambda: "n1")
        with record.claim():
            record.begin(JOB, Engine())
            record.fail("boom", host=host)
    assert [host for host, _ in record.state()["failed_on"]] == ["n2", "", "n1"]


def test_what_another_process_puts_down_tells_its_node(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    with record.claim():
        record.begin(JOB, Engine())
        assert record.failure_of_others() is None
        monkeypatch.setattr("socket.gethostname", lambda: "n2")
        record.put_down_failure(3, "process 3 of 4: boom\nin two lines")
        assert record.failure_of_others() == ("process 3 of 4: boom\nin two lines", "n2")
        record.begin(JOB, Engine())
        assert record.failure_of_others() is None


def test_a_job_can_fail_before_it_began(record: JobRecord) -> None:
    """Its node died under it."""
    with record.claim():
        record.fail("its node failed")
    state = record.state()
    assert (state["status"], state["failures"], state["attempts"], state["host"]) == ("failed", 1, 0, None)


def test_forgiven_it_has_all_its_tries_again_and_its_history(record: JobRecord) -> None:
    for _ in range(2):
        with record.claim():
            record.begin(JOB, Engine())
            record.fail("boom", final=True)
    record.forgive()
    state = record.state()
    assert (state["status"], state["failures"], state["final"], state["error"]) == ("failed", 0, False, "boom")
    assert len(state["failed_on"]) == 2


def test_forgiving_a_job_without_failures_writes_nothing(record: JobRecord) -> None:
    record.forgive()
    assert not record.path.exists()


def test_a_mark_changes_when_the_job_gets_further_for_good(record: JobRecord) -> None:
    marks = [record.mark()]
    (record.checkpoints / "step-00000005").mkdir(parents=True)
    marks.append(record.mark())
    (record.checkpoints / "step-00000010").mkdir()
    marks.append(record.mark())
    append_rows(record.answers / "writer.jsonl", [{"request": "1"}], durable=False)
    marks.append(record.mark())
    assert len(set(marks)) == 4
    record.append_metrics({"step": 11, "loss": 1.0})
    assert record.mark() == marks[-1]
    assert marks[0].startswith("no checkpoint")


def test_stalls_in_a_row(record: JobRecord) -> None:
    with record.claim():
        record.begin(JOB, Engine())
        record.interrupt()
    assert [record.count_stall(mark) for mark in ("a", "a", "b", "b", "b", "a")] == [1, 2, 1, 2, 3, 1]
    with record.claim():
        record.begin(JOB, Engine())
        record.interrupt()
    assert record.count_stall("a") == 2
