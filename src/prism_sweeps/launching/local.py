"""The jobs of a plan on worker processes of this machine, until each is done, has failed or cannot run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prism_sweeps.config.errors import StoreError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job, StageSpec
from prism_sweeps.launching.machine import cores, worker_count
from prism_sweeps.launching.pool import LaunchError, Pool, StopRequests, Worker, stop_requests
from prism_sweeps.launching.progress import Display
from prism_sweeps.launching.run_job import Run, last_lines, run_job
from prism_sweeps.launching.schedule import Schedule, descendants
from prism_sweeps.launching.worker import PRELOAD, Message
from prism_sweeps.tracking.records import JobBusy, Store

LISTEN_SECONDS = 0.25
BUSY_SECONDS = 0.5
FAILED_STARTS = 3
LOG_LINES = 12


@dataclass
class Outcome:
    """How the jobs ended, by fingerprint."""

    done: list[str]
    failed: dict[str, str]
    """Job -> error in one line."""
    skipped: list[str]
    """Jobs that need a failed one."""
    left: list[str]
    """Not ended: the sweep was interrupted."""
    stopped_with: int = 130
    """Exit code that tells by whom."""

    @property
    def interrupted(self) -> bool:
        return bool(self.left)


def run_jobs(
    jobs: Mapping[str, Job],
    store: Store,
    engine: Engine,
    display: Display,
    weights: Mapping[str, float] | None = None,
    run: Run = run_job,
    preload: Sequence[str] = PRELOAD,
) -> Outcome:
    """Runs what is not done yet of `jobs` and returns how each ended.

    `weights` are expected durations in any unit. A job that raises or whose process dies is tried again from its last
    checkpoint `engine.retries` times, then fails alone. A job that another process works on is waited for. Ctrl-C lets
    running jobs write a checkpoint; a second one does not wait. Raises LaunchError when workers cannot start, and
    DataError when a data set cannot be prepared.
    """
    done = [name for name in jobs if store.job(name).state()["status"] == "done"]
    open_jobs = {name: job for name, job in jobs.items() if name not in set(done)}
    if not open_jobs:
        return Outcome(done, {}, [], [])
    workers = worker_count(engine, len(open_jobs))
    schedule = Schedule(jobs, workers, engine.retries, dict.fromkeys(done, "done"), weights=weights or {})
    with display, Pool(workers, run, store, engine, preload) as pool:
        prepare_data(open_jobs, store, display)
        display.begin(workers, len(done), len(jobs))
        with stop_requests() as requests:
            sweep = Sweep(schedule, pool, store, display, requests)
            sweep.run()
    left = schedule.names("waiting", "running", "busy")
    return Outcome(schedule.names("done"), sweep.errors, schedule.names("skipped"), left, requests.exit_code)


def datasets(jobs: Mapping[str, Job]) -> list[str]:
    """Names of the data sets that jobs read."""
    names: set[str] = set()
    for job in jobs.values():
        if isinstance(job.spec, StageSpec):
            names.update(source.dataset for source in job.spec.sources.values())
        else:
            names.add(job.spec.benchmark.index.split("/")[0])
    return sorted(names)


def prepare_data(jobs: Mapping[str, Job], store: Store, display: Display) -> None:
    """Makes the data sets of these jobs that are not there yet; workers import their libraries meanwhile."""
    missing = [name for name in datasets(jobs) if not (store.data / name).is_dir()]
    if not missing:
        return
    from prism_sweeps.data.prepare import ensure_dataset

    for name in missing:
        display.say(f"preparing data set {name}")
        ensure_dataset(
            name, store.data, cores(), lambda done, total, text, n=name: display.preparing(n, done, total, text)
        )


@dataclass
class Sweep:
    """The parent's loop: hands out jobs, hears how they end, replaces dead workers."""

    schedule: Schedule
    pool: Pool
    store: Store
    display: Display
    requests: StopRequests
    errors: dict[str, str] = field(default_factory=dict)
    failed_starts: int = 0
    looked: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Until every job has ended or the user wants to stop."""
        work = self.schedule.work_left()
        while not self.schedule.over() and not self.requests.count:
            self.look_at_busy()
            self.assign()
            self.hear(LISTEN_SECONDS)
            self.display.overall(len(self.schedule.names("done")), self.seconds_left(work))
        if self.requests.count:
            self.wind_down()

    def assign(self) -> None:
        """Gives every free worker a job, while there are jobs that can start."""
        for worker in self.pool.workers:
            job = self.schedule.next_for(worker.loaded) if worker.ready and worker.job is None else None
            if job is None:
                continue
            worker.give(job)
            self.schedule.status[job.fingerprint] = "running"
            self.display.working(worker.index, job.title, 0, 0, "")

    def hear(self, seconds: float) -> None:
        """Takes in what workers say within so many seconds."""
        for worker, message in self.pool.listen(seconds):
            if message is None:
                self.died(worker)
            elif message.what == "ready":
                worker.ready = True
            elif message.what == "progress":
                if worker.job:
                    self.display.working(worker.index, worker.job.title, *message.progress)
            else:
                self.ended(worker, message)

    def ended(self, worker: Worker, message: Message) -> None:
        """A worker's attempt at its job is over."""
        job, worker.job = worker.job, None
        assert job is not None
        self.display.idle(worker.index)
        if message.what == "done":
            self.schedule.status[job.fingerprint] = "done"
            self.display.ended("done", job.title, headline(self.store, job))
        elif message.what == "busy":
            self.schedule.status[job.fingerprint] = "busy"
            self.display.say(f"waiting for {job.title}: another process is working on it")
        elif message.what == "interrupted" and self.requests.count:
            self.schedule.status[job.fingerprint] = "waiting"
            self.display.ended("interrupted", job.title, "checkpoint written")
        else:
            self.failed(job, message.error or "it stopped half-way", message.final)

    def died(self, worker: Worker) -> None:
        """A worker's process is gone: its job counts as failed once, and another process takes its place."""
        code = worker.process.exitcode
        how = f"killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
        job, worker.job = worker.job, None
        if job is not None:
            self.display.idle(worker.index)
            self.failed(job, f"its process was {how}" + (" (out of memory?)" if code == -9 else ""), final=False)
        elif not worker.ready:
            self.failed_starts += 1
        if self.failed_starts >= FAILED_STARTS:
            log = self.store.root / "logs" / "workers.log"
            raise LaunchError(f"worker processes end while they start ({how}); the reason is at the end of {log}")
        if self.requests.count:
            worker.connection.close()
        else:
            self.pool.replace(worker)

    def failed(self, job: Job, error: str, final: bool) -> None:
        """One failed attempt: again from the last checkpoint, or the end of the job and of what needs it."""
        if self.schedule.failed(job.fingerprint, final):
            self.display.ended("retry", job.title, error)
            return
        self.errors[job.fingerprint] = error
        record = self.store.job(job.fingerprint)
        with contextlib.suppress(JobBusy, StoreError), record.claim():
            if record.state()["status"] != "failed":
                record.fail(error)
        self.display.ended("failed", job.title, error)
        for line in last_lines(record, LOG_LINES):
            self.display.say(f"    {line}")
        if skipped := descendants(self.schedule.jobs, [job.fingerprint]):
            self.display.say(f"    skipped because of it: {len(skipped)} jobs")

    def look_at_busy(self) -> None:
        """Jobs of another process: done when it is done with them, ours when it has let go of them."""
        if time.monotonic() - self.looked < BUSY_SECONDS:
            return
        self.looked = time.monotonic()
        for name in self.schedule.names("busy"):
            status = self.store.job(name).state()["status"]
            if status != "running":
                self.schedule.status[name] = "done" if status == "done" else "waiting"

    def seconds_left(self, work: float) -> float | None:
        """Estimate from the pace so far; None before anything has ended."""
        left = self.schedule.work_left()
        done = work - left
        return (time.monotonic() - self.began) * left / done if done > 0 else None

    def wind_down(self) -> None:
        """Lets running jobs write their checkpoints."""
        self.display.say("stopping: running jobs write a checkpoint (again Ctrl-C: stop at once)")
        self.pool.ask_to_stop()
        while any(worker.job for worker in self.pool.workers):
            self.hear(LISTEN_SECONDS)
        for name in self.schedule.names("running"):
            self.schedule.status[name] = "waiting"


def headline(store: Store, job: Job) -> str:
    """The one number of a finished job, as text."""
    result = store.job(job.fingerprint).state()["result"] or {}
    if "score" in result:
        return f"score {result['score']:.1f}"
    return f"loss {result['loss']:.3f}" if "loss" in result else ""
