"""The journal of submissions: what it says after every crash, and who may write into it."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism_sweeps.config.errors import StoreError
from prism_sweeps.config.schema import Request
from prism_sweeps.planning.allocations import Allocation
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.submissions import (
    FILE,
    LOCK,
    Allotted,
    intend,
    intended,
    read,
    submitted,
    submitting,
    withdrawn,
)

FORK = multiprocessing.get_context("fork")
A, B, C = (Allocation((name,), Request(), needs=("p",)) for name in "abc")


def test_nothing_was_ever_submitted(tmp_path: Path) -> None:
    journal = read(tmp_path)
    assert (journal.allotted, journal.unanswered, journal.newest(), journal.last_jobs) == ([], {}, {}, {})


def test_what_was_submitted(tmp_path: Path) -> None:
    packed = Allocation(("a", "b"), Request(), slots=2)
    batch = intend(tmp_path, "study", [packed, C], Request(time="60"), retries=3)
    submitted(tmp_path, batch, ["7_0", "7_1"])
    journal = read(tmp_path)
    first, second = journal.allotted
    assert first == Allotted("7_0", ("a", "b"), "study", batch, getpass.getuser(), first.time, 2, 3)
    assert abs(first.time - time.time()) < 60
    assert (second.slurm_id, second.jobs, second.slots) == ("7_1", ("c",), 1)
    assert journal.newest() == {"a": first, "b": first, "c": second}
    assert journal.unanswered == {}


def test_what_a_batch_was_intended_with(tmp_path: Path) -> None:
    intend(tmp_path, "other", [B], Request(), retries=0)
    batch = intend(tmp_path, "study", [A], Request(time="60", exclude="n1"), retries=3)
    row = intended(tmp_path, batch)
    assert (row["allocations"], row["slots"], row["retries"]) == ([["a"]], [1], 3)
    assert (row["request"]["time"], row["request"]["exclude"]) == ("60", "n1")
    assert row["host"]
    with pytest.raises(StoreError, match="does not know batch 123"):
        intended(tmp_path, "123")


def test_a_job_belongs_to_the_allocation_it_was_given_last(tmp_path: Path) -> None:
    for number in ("7", "8"):
        submitted(tmp_path, intend(tmp_path, "study", [A], Request(), 0), [number])
    journal = read(tmp_path)
    assert [each.slurm_id for each in journal.allotted] == ["7", "8"]
    assert journal.newest()["a"].slurm_id == "8"


def test_batches_that_nobody_has_answered_for(tmp_path: Path) -> None:
    first, second, third = (intend(tmp_path, "study", [each], Request(), 0) for each in (A, B, C))
    submitted(tmp_path, first, ["7"])
    withdrawn(tmp_path, second)
    journal = read(tmp_path)
    assert journal.unanswered == {third: getpass.getuser()}
    assert journal.withdrawn == {second: getpass.getuser()}
    assert list(journal.newest()) == ["a"]


def test_report_jobs(tmp_path: Path) -> None:
    for number in ("7", "8"):
        submitted(tmp_path, intend(tmp_path, "study", [], Request(), 0), [number])
    journal = read(tmp_path)
    assert journal.last_jobs == {"study": ["7", "8"]}
    assert journal.allotted == []


def test_ids_that_a_new_cluster_has_given_again(tmp_path: Path) -> None:
    batch = intend(tmp_path, "study", [A, B], Request(), 0)
    submitted(tmp_path, batch, ["7_0", "7_1"])
    journal = read(tmp_path)
    assert journal.of_another("7_0", "prism-0123456789ab")
    assert not journal.of_another("7_0", f"prism-{batch}")
    assert not journal.of_another("7_0", "(null)")  # some clusters keep no comments
    assert not journal.of_another("8", "prism-0123456789ab")


def test_batches_differ(tmp_path: Path) -> None:
    assert len({intend(tmp_path, "study", [A], Request(), 0) for _ in range(50)}) == 50


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1))
def test_cut_at_any_byte_it_knows_what_came_before_and_goes_on(tmp_path: Path, cut: float) -> None:
    path = tmp_path / FILE
    path.unlink(missing_ok=True)
    batches = [intend(tmp_path, "study", [each], Request(), 0) for each in (A, B)]
    for number, batch in enumerate(batches):
        submitted(tmp_path, batch, [str(number)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    events = [(row["event"], row["batch"]) for row in map(json.loads, path.read_bytes().split(b"\n")[:-1])]
    journal = read(tmp_path)
    noted = [batch for event, batch in events if event == "submitted"]
    assert [each.batch for each in journal.allotted] == noted
    assert set(journal.unanswered) == {batch for event, batch in events if event == "intended"} - set(noted)
    later = intend(tmp_path, "study", [C], Request(), 0)
    assert later in read(tmp_path).unanswered
    assert [each.batch for each in read(tmp_path).allotted] == noted


def test_a_damaged_line_is_told_with_its_number(tmp_path: Path) -> None:
    intend(tmp_path, "study", [A], Request(), 0)
    with (tmp_path / FILE).open("a") as stream:
        stream.write("nonsense\n")
    intend(tmp_path, "study", [B], Request(), 0)
    with pytest.raises(StoreError, match=r"submissions.jsonl, line 2 is not valid JSON"):
        read(tmp_path)


# ---- one at a time


def submit_for_long(root: Path, inside: Any, go: Any) -> None:
    with submitting(root, lambda text: None):
        inside.set()
        go.wait(60)


def test_others_wait_and_are_told_for_whom(tmp_path: Path) -> None:
    inside, go, said = FORK.Event(), FORK.Event(), []
    child = FORK.Process(target=submit_for_long, args=(tmp_path, inside, go))
    child.start()
    assert inside.wait(60)

    def say(text: str) -> None:
        said.append(text)
        go.set()

    with submitting(tmp_path, say):
        assert said == [f"waiting for another submission into this store ({getpass.getuser()}, process {child.pid})"]
    child.join()
    assert child.exitcode == 0


def test_a_submission_that_is_killed_lets_go(tmp_path: Path) -> None:
    inside, go = FORK.Event(), FORK.Event()
    child = FORK.Process(target=submit_for_long, args=(tmp_path, inside, go))
    child.start()
    assert inside.wait(60)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    said: list[str] = []
    with submitting(tmp_path, said.append):
        assert said == []


def test_so_does_one_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), submitting(tmp_path, print):
        raise RuntimeError
    with submitting(tmp_path, print):
        pass


def test_a_holder_that_cannot_be_read_is_not_named(tmp_path: Path) -> None:
    said: list[str] = []
    with submitting(tmp_path, print):
        (tmp_path / f"{LOCK}.holder").write_text("{")
        thread = threading.Thread(target=lambda: submitting(tmp_path, said.append).__enter__())
        thread.start()
        end = time.monotonic() + 30
        while not said and time.monotonic() < end:
            time.sleep(0.01)
    thread.join(30)
    assert said == ["waiting for another submission into this store"]


def test_a_store_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(submissions.os, "open", refuse)
    with (
        pytest.raises(StoreError, match=r"cannot lock .*submit.lock: Permission denied; nothing was submitted"),
        submitting(tmp_path, print),
    ):
        pass
