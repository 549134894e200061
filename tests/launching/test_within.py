"""What runs inside an allocation: which jobs, how it ends for whom, and what it waits for."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from ends import begun, done, failed
from fake_jobs import by_name, run, score, train

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.launching import local
from prism_sweeps.launching.foreground import run_here
from prism_sweeps.launching.local import Outcome
from prism_sweeps.launching.pool import StopRequests, stop_requests
from prism_sweeps.launching.slurm import within
from prism_sweeps.launching.slurm.within import Work, given_up, wait_for_first, wait_for_parents
from prism_sweeps.tracking.records import NEW_STATE, JobRecord, Store

FORK = multiprocessing.get_context("fork")
ENGINE = Engine(retries=1, device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for name in ("made", "marks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return Store.open(tmp_path)


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, whose jobs are fake; torch is not imported for it."""

    def run_together(jobs: Mapping[str, Job], store: Store, engine: Engine, display: Any) -> Outcome:
        return run_here(jobs, store, engine, display, run=run)

    monkeypatch.setitem(sys.modules, "prism_sweeps.launching.together", SimpleNamespace(run_together=run_together))
    monkeypatch.setattr(within, "LOOK_SECONDS", 0.01)
    monkeypatch.delenv("SLURM_PROCID", raising=False)


def work(store: Store, *jobs: Job, slots: int = 1) -> Work:
    return Work(store.root, store.data, by_name(*jobs), ENGINE, slots)


def ends_with(task: Work, *signals: int, when: Callable[[], object] = lambda: True) -> int:
    """The exit code of a process that does this, and is sent these signals at some time."""
    process = FORK.Process(target=task)
    process.start()
    if signals:
        wait_until(when)
    for number in signals:
        os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def wait_until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_all_done(store: Store) -> None:
    assert ends_with(work(store, train("a"), score("b", "a"))) == 0
    assert [store.job(name).state()["status"] for name in "ab"] == ["done", "done"]


@pytest.mark.parametrize("title", ["raises", "bad data", "dies"])
def test_a_failure_is_told_by_the_exit_code(title: str, store: Store) -> None:
    """submitit alone would write down a result and end with 0; what needs the job would run."""
    code = ends_with(work(store, train("a", title=title)))
    assert code == (-signal.SIGKILL if title == "dies" else 1)


def test_one_that_cannot_be_helped_leaves_the_others_be(store: Store) -> None:
    done(store, train("a"))
    task = work(store, score("b", "a", "bad data"), score("c", "a"))
    assert ends_with(task) == 1
    assert [store.job(name).state()["status"] for name in "bc"] == ["failed", "done"]


def test_what_was_given_up_is_not_begun_again_and_the_others_are_done(store: Store) -> None:
    """The allocation has spent its tries on the first of its jobs."""
    done(store, train("a"))
    for _ in range(2):
        failed(store, score("b", "a", "raises"))
    task = work(store, score("b", "a", "raises"), score("c", "a"))
    assert ends_with(task) == 1
    assert [store.job(name).state()["attempts"] for name in "bc"] == [2, 1]
    assert store.job("c").state()["status"] == "done"


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        ({"status": "failed", "failures": 1}, False),
        ({"status": "failed", "failures": 2}, True),
        ({"status": "failed", "failures": 1, "final": True}, True),
        ({"status": "failed", "failures": 0}, False),  # forgiven
        ({"status": "interrupted", "failures": 2}, False),
        ({"status": "new"}, False),
    ],
)
def test_given_up(state: dict[str, Any], answer: bool) -> None:
    assert given_up(NEW_STATE | state, retries=1) == answer


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGUSR2], [signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM]]
)
def test_told_to_make_room(signals: list[int], store: Store) -> None:
    task = work(store, train("a", title="slow"), score("b", "a"))
    assert ends_with(task, *signals, when=(store.root / "slow").exists) == 75
    assert [store.job(name).state()["status"] for name in "ab"] == ["interrupted", "new"]


def test_told_to_make_room_while_it_waits_for_weights(store: Store) -> None:
    with JobRecord(store.job("a").path).claim():
        begin_elsewhere(store)
        assert ends_with(work(store, score("b", "a")), signal.SIGTERM, when=lambda: time.sleep(0.3) or True) == 75
    assert store.job("b").state()["status"] == "new"


def begin_elsewhere(store: Store) -> None:
    store.job("a").begin(train("a"), ENGINE)


def test_a_signal_between_two_pieces_of_code_is_not_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives after submitit's handlers were replaced and before the jobs' own are set."""
    real = wait_for_parents

    def told_meanwhile(*arguments: Any) -> bool:
        found = real(*arguments)
        os.kill(os.getpid(), signal.SIGUSR2)
        return found

    monkeypatch.setattr(within, "wait_for_parents", told_meanwhile)
    assert ends_with(work(store, train("a"))) == 75
    assert store.job("a").state()["status"] == "new"


def test_several_side_by_side(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], int]] = []

    def run_jobs(jobs: Mapping[str, Job], store: Store, engine: Engine, display: Any) -> Outcome:
        seen.append((list(jobs), engine.workers))
        return told[len(seen) - 1]

    monkeypatch.setattr(local, "run_jobs", run_jobs)
    task = work(store, train("a"), train("b"), train("c"), slots=3)
    told = [
        Outcome(["a", "b", "c"], {}, [], []),
        Outcome(["a", "b"], {"c": "boom"}, [], []),
        Outcome(["a"], {}, [], ["b", "c"], 75),
        Outcome(["a"], {"c": "boom"}, [], ["b"], 75),
    ]
    assert [task.run(StopRequests()) for _ in told] == [0, 1, 75, 75]
    assert seen == [(["a", "b", "c"], 3)] * 4


# ---- processes that are not the first


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """This process is the second, whose jobs end with an exit code."""
    monkeypatch.setenv("SLURM_PROCID", "1")

    def leaving(code: int) -> None:
        def run_together(*_: Any) -> NoReturn:
            sys.exit(code)

        monkeypatch.setitem(sys.modules, "prism_sweeps.launching.together", SimpleNamespace(run_together=run_together))

    return leaving


def test_a_process_that_is_not_the_first_lets_it_write_its_record(
    store: Store, follower: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun ends all tasks of a step once one has ended with an error, 75 included."""
    follower(75)
    monkeypatch.setattr(within, "FAREWELL_SECONDS", 30.0)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(work(store, train("a")).run(StopRequests())))
    with store.job("a").claim():
        thread.start()
        time.sleep(0.3)
        assert codes == []
    thread.join(20)
    assert codes == [75]


@pytest.mark.parametrize("code", [0, 1])
def test_otherwise_it_leaves_at_once(code: int, store: Store, follower: Callable[[int], None]) -> None:
    follower(code)
    with store.job("a").claim():
        began = time.monotonic()
        assert work(store, train("a")).run(StopRequests()) == code
        assert time.monotonic() - began < 20


# ---- waiting for weights


def never() -> bool:
    return False


def test_weights_that_are_there(store: Store) -> None:
    done(store, train("a"))
    assert wait_for_parents(by_name(score("b", "a")), store, never)


def test_weights_of_the_allocations_own_jobs_are_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "PARENT_SECONDS", 1e9)
    assert wait_for_parents(by_name(train("a"), train("b", "a")), store, never)


def test_weights_that_a_network_file_system_shows_late(store: Store) -> None:
    begun(store, train("a"))
    threading.Timer(0.1, lambda: store.job("a").weights.mkdir()).start()
    assert wait_for_parents(by_name(score("b", "a")), store, never)
    assert store.job("a").weights.is_dir()


def test_weights_that_never_come_are_waited_for_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(within, "PARENT_SECONDS", 0.05)
    assert wait_for_parents(by_name(score("b", "a")), store, never)
    assert ends_with(work(store, score("b", "a"))) == within.CANNOT_START
    assert "there are no weights of a; what needs them is left out" in capfd.readouterr().out
    assert store.job("b").state()["status"] == "new"


def test_a_parent_that_somebody_works_on_is_waited_for_as_long_as_it_takes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(within, "PARENT_SECONDS", 0.02)
    looks = 0

    def later() -> bool:
        nonlocal looks
        looks += 1
        time.sleep(0.02)
        if looks == 10:
            store.job("a").weights.mkdir()
        return False

    with store.job("a").claim():
        store.job("a").begin(train("a"), ENGINE)
        assert wait_for_parents(by_name(score("b", "a")), store, later)
    assert looks == 10


def test_a_request_to_stop_ends_the_wait(store: Store) -> None:
    assert not wait_for_parents(by_name(score("b", "a")), store, lambda: True)


def test_the_first_process_is_not_waited_for_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "FAREWELL_SECONDS", 0.05)
    with store.job("a").claim():
        wait_for_first(by_name(train("a")), store)


# ---- requests to stop


def test_a_block_inside_another_shares_its_requests() -> None:
    with stop_requests() as outer:
        os.kill(os.getpid(), signal.SIGUSR2)
        with stop_requests() as inner:
            assert inner is outer
            assert inner.count == 1
        os.kill(os.getpid(), signal.SIGTERM)
        assert (outer.count, outer.by_scheduler, outer.exit_code) == (1, True, 75)


def test_afterwards_signals_mean_what_they_meant() -> None:
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    with stop_requests(), stop_requests():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_task_is_found_again_by_whoever_unpacks_it(store: Store) -> None:
    """submitit pickles it here and unpacks it there."""
    task = work(store, train("a"), score("b", "a"))
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_job_whose_parent_has_failed_is_left_out_at_once(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    failed(store, train("p"))
    done(store, train("q"))
    assert ends_with(work(store, score("b", "p"))) == within.CANNOT_START
    assert "there are no weights of p; what needs them is left out" in capfd.readouterr().out
    assert ends_with(work(store, score("b", "p"), score("c", "q"))) == 1
    assert [store.job(name).state()["status"] for name in "bc"] == ["new", "done"]
