"""A long-lived process that works on one job after another.

Parent -> worker: a Job to run, or None to stop at the next safe point and end. Worker -> parent: the `Message`s below.
The end of the pipe means that the parent is gone: the worker then stops too, gracefully if it can, at once if not.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import PrismError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.launching.run_job import LINE, Run, describe
from prism_sweeps.tracking.files import make_folder
from prism_sweeps.tracking.records import Interrupted, JobBusy, Store

PRELOAD = ("torch", "prism_sweeps.training.stage", "prism_sweeps.evaluation.runner")
ORPHAN_SECONDS = 10.0
REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Message:
    """What a worker says: ready | progress | done | failed | busy | interrupted."""

    what: str
    fingerprint: str = ""
    progress: tuple[int, int, str] = (0, 0, "")
    error: str = ""
    final: bool = False
    """Of a failure: trying again cannot help (an error of the user's)."""


def work(
    connection: Connection,
    run: Run,
    store: Store,
    engine: Engine,
    environment: dict[str, str],
    preload: Sequence[str],
) -> None:
    """Body of the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    # To a file, Python would write blocks: lines out of order with those of C code, and the last ones lost in a kill.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    stop = threading.Event()
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, jobs, stop), daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        logging.basicConfig(level=logging.INFO, format=LINE, force=True)
        with output_to(make_folder(store.root / "logs") / "workers.log"):
            warm_up(preload)
        connection.send(Message("ready"))
        while (job := jobs.get()) is not None:
            with output_to(make_folder(store.job(job.fingerprint).path) / "log"):
                outcome = attempt(job, run, store, engine, connection, stop)
            connection.send(outcome)


def listen(connection: Connection, jobs: queue.SimpleQueue[Job | None], stop: threading.Event) -> None:
    """Thread: takes what the parent sends; when the parent is gone, ends this process after a last grace."""
    try:
        while (job := connection.recv()) is not None:
            jobs.put(job)
        stop.set()
        jobs.put(None)
        connection.recv()
    except (EOFError, OSError):
        stop.set()
        jobs.put(None)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)


def warm_up(modules: Sequence[str]) -> None:
    """Imports what every job needs, and lets torch use this worker's share of the cores only."""
    try:
        for name in modules:
            importlib.import_module(name)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def attempt(job: Job, run: Run, store: Store, engine: Engine, connection: Connection, stop: threading.Event) -> Message:
    """Runs the job once and says how it ended."""
    said = 0.0

    def report(done: int, total: int, text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= REPORT_SECONDS or done == total:
            said = time.monotonic()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(Message("progress", job.fingerprint, progress=(done, total, text)))

    try:
        run(job, store, engine, report, stop.is_set)
    except Interrupted:
        return Message("interrupted", job.fingerprint)
    except JobBusy:
        return Message("busy", job.fingerprint)
    except PrismError as error:
        return Message("failed", job.fingerprint, error=describe(error), final=True)
    except Exception as error:  # whatever a job raises fails that job alone; its traceback is in its log
        return Message("failed", job.fingerprint, error=describe(error))
    return Message("done", job.fingerprint)


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Sends stdout and stderr of this process, C code included, to the end of a file."""
    kept = [os.dup(1), os.dup(2)]
    target: Any = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)
