"""One job, here and now: claimed, begun, worked on, and its end written down."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prism_sweeps.config.errors import PrismError, StoreError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import BaselineSpec, Job, StageSpec
from prism_sweeps.launching.heartbeat import beating
from prism_sweeps.planning.measured import Row, evaluated_row, measured_row
from prism_sweeps.tracking import live, throughput
from prism_sweeps.tracking.answers import asked_by
from prism_sweeps.tracking.files import explained
from prism_sweeps.tracking.records import Interrupted, JobRecord, Report, Store

if TYPE_CHECKING:  # imports torch
    from prism_sweeps.training.world import World

LOG = logging.getLogger(__name__)

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOST = re.compile(r"(reset|closed) by peer|remote process (has )?exited|Broken pipe", re.IGNORECASE)
"""What gloo and NCCL say when a process has gone that others wait for."""

Run = Callable[[Job, Store, Engine, Report, Callable[[], bool]], dict[str, Any]]
"""Runs one job: (job, store, engine, report, stop) -> result."""

WORK = {
    "train": ("prism_sweeps.training.stage", "train_stage"),
    "evaluate": ("prism_sweeps.evaluation.runner", "evaluate"),
}
"""Kind of job -> module and function that does it, imported when first needed because they import torch."""


def run_job(
    job: Job,
    store: Store,
    engine: Engine,
    report: Report,
    stop: Callable[[], bool],
    world: World | None = None,
) -> dict[str, Any]:
    """The job's result: found in its record when it is done, worked out otherwise.

    In a `world` of several processes this is the first, and the job is told to the others, which wait for it.

    Raises JobBusy when another process is at it, Interrupted when `stop()` asked for it (the next attempt goes on from
    the checkpoint), and whatever the work raises, after writing it to the record and the log.
    """
    record = store.job(job.fingerprint)
    if record.state()["status"] == "done":
        return finished_result(record)
    with record.claim():
        if record.state()["status"] == "done":
            return finished_result(record)
        check_parents(job, store)
        record.begin(job, engine)
        note(record, f"attempt {record.state()['attempts']} of {job.title}")
        if job.kind == "train":
            live.start(store, job.fingerprint)
        try:
            work = work_to_do(job, world)
            with imports_set_aside(), lines_in(record), beating(record, report) as told:
                # Last of all: what fails before is this process's alone, and the others go on waiting for a job.
                if world is not None:
                    world.told_by_first(job.fingerprint)
                result = work(job.spec, record, store, engine, told, stop)
        except (Interrupted, KeyboardInterrupt):
            record.interrupt()
            note(record, "interrupted; it can be gone on with")
            raise
        except BaseException as error:
            note(record, traceback.format_exc().rstrip())
            text, host = record.failure_of_others() or (describe(error), host_to_blame(error))
            record.fail(text, final=isinstance(error, PrismError), host=host)
            raise
        record.finish(result)
        note(record, "done")
        remember_speed(job, store, engine, result, 1 if world is None else world.size)
    return result


def remember_speed(job: Job, store: Store, engine: Engine, result: Mapping[str, Any], ranks: int) -> None:
    """Adds to what plans estimate by. A store without room for that is no reason to fail a job that is done."""
    record = store.job(job.fingerprint)
    try:
        # Where others had asked some of it before, the time says nothing.
        if job.kind == "evaluate" and asked_by(record) < result["n"]:
            return
        row = speed_of(job, record.state()["seconds"], engine, result, ranks)
        if row is not None:
            throughput.add(store.root, row)
    except StoreError as error:
        LOG.warning("the speed of this job will not be known to later plans: %s", error)


def speed_of(job: Job, seconds: float, engine: Engine, result: Mapping[str, Any], ranks: int) -> Row | None:
    """What a job that took `ranks` processes so many seconds in all tells later plans.

    None of an evaluation that used no device, and of a finished model of others, whose shapes are not known.
    """
    if isinstance(job.spec, StageSpec):
        return measured_row(job.spec, engine, result)
    if isinstance(job.spec, BaselineSpec):
        return None
    if "torch" not in sys.modules or not (seconds > 0 and result["n"]):
        return None
    name, kind = importlib.import_module("prism_sweeps.training.devices").device_used(engine)
    return evaluated_row(job.spec, engine, result["n"], seconds, ranks, name, kind)


def work_to_do(job: Job, world: World | None) -> Callable[..., dict[str, Any]]:
    """The function that does the job. Before training nothing of an evaluation stays in memory."""
    work = work_of(job)
    evaluated = sys.modules.get("prism_sweeps.evaluation.loading")
    if job.kind == "train" and evaluated is not None:
        evaluated.forget()
    return work if world is None else functools.partial(work, world=world)


def work_of(job: Job) -> Callable[..., dict[str, Any]]:
    module, name = WORK[job.kind]
    function: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
    return function


@contextlib.contextmanager
def lines_in(record: JobRecord) -> Iterator[None]:
    """What is logged inside goes to the job's log. Nothing changes where logging is set up: a worker's goes there."""
    if logging.getLogger().handlers:
        yield
        return
    logger = logging.getLogger("prism_sweeps")
    handler = logging.FileHandler(record.log, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter(LINE))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def imports_set_aside() -> Iterator[None]:
    """The garbage collector overlooks what is there already: 430,000 objects once torch and transformers are imported.

    Without it every full collection during a job walks all of them; `benchmarks/process_settings.py` measures it.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def finished_result(record: JobRecord) -> dict[str, Any]:
    result: dict[str, Any] = record.state()["result"]
    return result


def check_parents(job: Job, store: Store) -> None:
    """Raises StoreError unless the weights that the job starts from are there."""
    for fingerprint in job.parents:
        parent = store.job(fingerprint)
        if parent.weights.is_dir():
            continue
        if parent.state()["status"] == "done":
            raise StoreError(
                f"{job.title}: job {fingerprint} is done but its weights {parent.weights} are gone; "
                f"remove {parent.path} to train it again"
            )
        raise StoreError(f"{job.title}: job {fingerprint}, whose weights it needs, has not been run")


def is_of_another(error: BaseException) -> bool:
    """Whether it says no more than that another process of the job has gone."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def describe(error: BaseException) -> str:
    """An exception in one line; the user's own errors without their class."""
    text = str(error).strip() or type(error).__name__
    if is_of_another(error):
        return "another process that worked on this job has died; what it said last, or the scheduler, tells why"
    return text if isinstance(error, PrismError) else f"{type(error).__name__}: {text}"


def host_to_blame(error: BaseException) -> str | None:
    """As `JobRecord.fail` has it: nobody knows on which of several nodes the other process has died."""
    return "" if is_of_another(error) and on_several_nodes() else None


def on_several_nodes() -> bool:
    """Whether SLURM has given this job more than one node."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES") or 1) > 1


def note(record: JobRecord, text: str) -> None:
    """Adds dated lines to the job's log."""
    stamp = f"[{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()} {os.getpid()}]"
    with explained("append to", record.log, "the job's state is kept"), record.log.open("a", encoding="utf-8") as log:
        log.write(f"{stamp} {text}\n")


def last_lines(record: JobRecord, count: int) -> list[str]:
    """The end of the job's log; [] when there is none."""
    if not record.log.exists():
        return []
    with record.log.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 200 * count))
        return log.read().decode(errors="replace").splitlines()[-count:]
