"""Worker processes as the parent sees them: started, given jobs, listened to, replaced when they die."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType, TracebackType

from prism_sweeps.config.errors import PrismError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.launching.machine import ask_for_huge_pages, worker_environment
from prism_sweeps.launching.run_job import Run
from prism_sweeps.launching.worker import Message, work
from prism_sweeps.tracking.records import Store

SPAWN = multiprocessing.get_context("spawn")
END_SECONDS = 5.0


class LaunchError(PrismError):
    """Jobs cannot be run here."""


@dataclass
class Worker:
    """One worker process; `loaded` is the training job whose weights its last job used or made."""

    index: int
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    job: Job | None = None
    loaded: str | None = None

    def give(self, job: Job) -> None:
        """Sends it a job. A worker that has just died takes none; its end is heard of by `Pool.listen`."""
        self.job = job
        # A finished model of others has no parent.
        self.loaded = job.fingerprint if job.kind == "train" else next(iter(job.parents), None)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(job)


class Pool:
    """So many workers, alike but for their cores and GPU."""

    def __init__(self, count: int, run: Run, store: Store, engine: Engine, preload: Sequence[str]) -> None:
        self.count, self.run, self.store, self.engine, self.preload = count, run, store, engine, preload
        self.workers: list[Worker] = []

    def __enter__(self) -> Pool:
        ask_for_huge_pages()
        self.workers = [self._started(index) for index in range(self.count)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.ask_to_stop()
        for worker in self.workers:
            worker.process.join(END_SECONDS if worker.ready and kind is None else 0.1)
        self.kill()

    def _started(self, index: int) -> Worker:
        environment = worker_environment(self.engine, index, self.count)
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(
            target=work,
            args=(there, self.run, self.store, self.engine, environment, tuple(self.preload)),
            name=f"prism-worker-{index}",
            daemon=False,
        )
        # Ctrl-C reaches the whole terminal group; workers are told by the parent instead, from their first instruction.
        with ignoring(signal.SIGINT, signal.SIGHUP):
            process.start()
        there.close()
        return Worker(index, process, here)

    def replace(self, worker: Worker) -> None:
        """Starts a new process in the place of a dead one."""
        worker.connection.close()
        self.workers[worker.index] = self._started(worker.index)

    def listen(self, seconds: float) -> Iterator[tuple[Worker, Message | None]]:
        """What workers have said, waiting at most so long; None for a worker that died."""
        by_connection = {worker.connection: worker for worker in self.workers if not worker.connection.closed}
        for connection in wait(list(by_connection), seconds):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                message: Message | None = connection.recv()
            except (EOFError, OSError):
                message = None
                worker.process.join()
            yield worker, message

    def ask_to_stop(self) -> None:
        """Tells every worker to end its job at the next safe point, and then itself."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)

    def kill(self) -> None:
        """Ends every worker now; what they did since their last checkpoint is lost."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()


@contextlib.contextmanager
def ignoring(*signals: signal.Signals) -> Iterator[None]:
    """Processes started inside ignore these signals until they say otherwise."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


REQUEUE = 75
"""Exit code of a process that was told to make room and may be started again (EX_TEMPFAIL of sysexits.h)."""
MAKE_ROOM = (signal.SIGTERM, signal.SIGUSR2)
"""What schedulers send before a time limit or a preemption, often one after the other."""


@dataclass
class StopRequests:
    """Whether somebody has asked to stop: the user (Ctrl-C, a closed terminal; the second time means at once), or a
    scheduler (SIGTERM, SIGUSR2; however often)."""

    count: int = 0
    by_scheduler: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number in MAKE_ROOM:
            self.by_scheduler = True
            self.count = self.count or 1
            return
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

    def hear_from_others(self) -> None:
        """A process that works on the same job was asked, which is a scheduler's way: a terminal asks all of them."""
        if not self.count:
            self.count, self.by_scheduler = 1, True

    @property
    def exit_code(self) -> int:
        """Of a process that stopped because of them."""
        return REQUEUE if self.by_scheduler else 130


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Counts a first request to stop instead of dying of it; a second one of the user's raises KeyboardInterrupt.

    A signal that was ignored (nohup) stays so. Inside another such block its requests are shared, so that none is lost
    between the two.
    """
    outer = signal.getsignal(MAKE_ROOM[0])
    if isinstance(outer, StopRequests):
        yield outer
        return
    requests = StopRequests()
    before = {}
    for number in (signal.SIGINT, signal.SIGHUP, *MAKE_ROOM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, requests)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
