"""Jobs that take no time and need no torch, told by their titles what to do; importable by spawned workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_jobs import MODEL, STAGE

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import Engine, Source
from prism_sweeps.config.specs import EvaluationSpec, Job, StageSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.launching.run_job import check_parents, describe
from prism_sweeps.tracking.records import Interrupted, Report, Store


def train(name: str, *parents: str, title: str = "fine") -> Job:
    spec = StageSpec(name, MODEL, STAGE, {"a": Source("made", "chat.json")}, seed=1, parent=next(iter(parents), None))
    return Job(name, title, spec, list(parents))


def score(name: str, parent: str, title: str = "fine") -> Job:
    benchmark = Benchmark("pope", "marks/pope", prompt="{question}", answer="generate", scorer="exact")
    return Job(name, title, EvaluationSpec(MODEL, benchmark, "real", parent), [parent])


def by_name(*jobs: Job) -> dict[str, Job]:
    return {job.fingerprint: job for job in jobs}


def run(job: Job, store: Store, engine: Engine, report: Report, stop: Callable[[], bool]) -> dict[str, Any]:
    """Same frame as the real `run_job`, with `act` in the place of training and evaluation."""
    record = store.job(job.fingerprint)
    with record.claim():
        if record.state()["status"] == "done":
            return dict(record.state()["result"])
        check_parents(job, store)
        record.begin(job, engine)
        try:
            act(job, store, report, stop)
        except Interrupted:
            record.interrupt()
            raise
        except BaseException as error:
            record.fail(describe(error))
            raise
        if job.kind == "train":
            with record.writing_weights() as folder:
                (folder / "projector.safetensors").write_bytes(b"")
        record.finish({"loss": 1.0})
        return {"loss": 1.0}


def act(job: Job, store: Store, report: Report, stop: Callable[[], bool]) -> None:
    print(f"working on {job.fingerprint}")
    os.write(2, b"from below\n")
    with (store.root / "order").open("a") as order:
        order.write(f"{job.fingerprint} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    attempt = store.job(job.fingerprint).state()["attempts"]
    report(1, 2, "loss 1.0")
    if job.title == "raises":
        raise RuntimeError("no such luck")
    if job.title == "bad data":
        raise DataError("chat.json, entry 3: no image")
    if job.title == "raises once" and attempt == 1:
        raise RuntimeError("first time")
    if job.title == "dies once" and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.title == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.title == "slow":
        (store.root / "slow").touch()
        wait_for(lambda: (store.root / "go").exists(), stop)


def wait_for(ready: Callable[[], bool], stop: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        if stop():
            raise Interrupted
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def order(root: Path) -> list[tuple[str, int, int]]:
    """(fingerprint, pid of the worker, its threads) of every attempt, in the order of their starts."""
    lines = [line.split() for line in (root / "order").read_text().splitlines()]
    return [(name, int(pid), int(threads)) for name, pid, threads in lines]


def sweep(root: str, jobs: dict[str, Job], engine: Engine) -> None:
    """A whole sweep in a process of its own."""
    from prism_sweeps.launching.local import run_jobs
    from prism_sweeps.launching.progress import LineDisplay

    # Tests that run in the background of a shell begin with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcome = run_jobs(jobs, Store.open(Path(root)), engine, LineDisplay(), run=run, preload=())
    raise SystemExit(130 if outcome.interrupted else len(outcome.failed))
