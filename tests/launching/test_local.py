"""Sweeps of fake jobs on real worker processes: order, failures, deaths, interruption, two sweeps at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from fake_jobs import by_name, order, run, score, sweep, train

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.launching import machine
from prism_sweeps.launching.local import Outcome, datasets, run_jobs
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.progress import LineDisplay
from prism_sweeps.tracking.records import Store

ENGINE = Engine(workers=2, retries=1, device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for name in ("made", "marks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return Store.open(tmp_path)


def swept(store: Store, *jobs: Job, engine: Engine = ENGINE) -> Outcome:
    return run_jobs(by_name(*jobs), store, engine, LineDisplay(), run=run, preload=())


def started(store: Store, *jobs: Job) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=sweep, args=(str(store.root), by_name(*jobs), ENGINE))
    process.start()
    return process


def wait_until(ready: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_sweep_with_failures_ends_with_all_that_could_be_done(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sweep, because starting workers takes a second: dependencies, retries, deaths and skipped jobs together."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it would hide a log that is written in blocks
    jobs = [
        train("t1"), score("e1", "t1"), score("e2", "t1", "raises once"), score("e3", "t1", "dies once"),
        score("bad", "t1", "bad data"),
        train("t2", title="raises"), score("e4", "t2"),
        train("t3", title="dies"), train("t4", "t3"), score("e5", "t4"),
    ]  # fmt: skip
    outcome = swept(store, *jobs)
    assert sorted(outcome.done) == ["e1", "e2", "e3", "t1"]
    assert sorted(outcome.skipped) == ["e4", "e5", "t4"]
    assert not outcome.interrupted
    assert outcome.failed["t2"] == "RuntimeError: no such luck"
    assert outcome.failed["bad"] == "chat.json, entry 3: no image"
    assert "killed by signal 9" in outcome.failed["t3"]
    assert {name: store.job(name).state()["status"] for name in ("t2", "t3", "bad")} == dict.fromkeys(
        ("t2", "t3", "bad"), "failed"
    )
    attempts = [name for name, _, _ in order(store.root)]
    assert {name: attempts.count(name) for name in ("t1", "e2", "e3", "bad", "t2", "t3")} == {
        "t1": 1, "e2": 2, "e3": 2, "bad": 1, "t2": 2, "t3": 2,
    }  # fmt: skip
    assert store.job("e1").log.read_text() == "working on e1\nfrom below\n"
    shown = capsys.readouterr().err
    assert "failed t2" not in shown
    assert "RuntimeError: no such luck" in shown
    assert "skipped because of it: 2 jobs" in shown
    assert {threads for _, _, threads in order(store.root)} == {max(1, machine.cores() // 2)}

    again = swept(store, *(job for job in jobs if job.fingerprint in outcome.done))
    assert again.done == [job.fingerprint for job in jobs if job.fingerprint in outcome.done]
    assert len(order(store.root)) == len(attempts)


def test_ctrl_c_interrupts_and_the_next_sweep_goes_on(store: Store) -> None:
    process = started(store, train("t1", title="slow"), score("e1", "t1"))
    wait_until((store.root / "slow").exists)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert store.job("t1").state()["status"] == "interrupted"
    (store.root / "go").touch()
    assert sorted(swept(store, train("t1", title="slow"), score("e1", "t1")).done) == ["e1", "t1"]
    assert store.job("t1").state()["attempts"] == 2


def test_workers_of_a_killed_sweep_end_and_let_go(store: Store) -> None:
    process = started(store, train("t1", title="slow"))
    wait_until((store.root / "slow").exists)
    worker = order(store.root)[0][1]
    process.kill()
    process.join()
    wait_until(lambda: not alive(worker), seconds=15)
    assert not store.job("t1").busy()
    assert store.job("t1").state()["status"] == "interrupted"


def test_two_sweeps_share_a_job_and_run_it_once(store: Store) -> None:
    shared = [train("t1", title="slow"), score("e1", "t1")]
    first, second = started(store, *shared), started(store, *shared, score("e2", "t1"))
    wait_until((store.root / "slow").exists)
    time.sleep(1.0)
    (store.root / "go").touch()
    first.join(60)
    second.join(60)
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert sorted(name for name, _, _ in order(store.root)) == ["e1", "e2", "t1"]


def test_workers_that_cannot_start_are_an_error_not_a_loop(store: Store) -> None:
    with pytest.raises(LaunchError, match=r"workers\.log"):
        run_jobs(by_name(train("t1")), store, ENGINE, LineDisplay(), run=run, preload=("no_such_module",))
    assert "no_such_module" in (store.root / "logs" / "workers.log").read_text()


def test_datasets_are_those_the_jobs_read() -> None:
    assert datasets(by_name(train("t1"), score("e1", "t1"))) == ["made", "marks"]


def test_worker_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert machine.worker_count(Engine(), 100) == 2
    assert machine.worker_count(Engine(device="cpu"), 100) == 8
    assert machine.worker_count(Engine(workers=4), 3) == 3
    environment = machine.worker_environment(Engine(), 2, 4)
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]) == ("3", "2")
    assert "CUDA_VISIBLE_DEVICES" not in machine.worker_environment(Engine(device="cpu"), 0, 16)
