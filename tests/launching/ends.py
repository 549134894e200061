"""Records as jobs leave them, without the work."""

from __future__ import annotations

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.tracking.records import JobRecord, Store


def begun(store: Store, job: Job) -> JobRecord:
    """As after a kill: it says running, and nobody holds the lock."""
    record = store.job(job.fingerprint)
    with record.claim():
        record.begin(job, Engine())
        record.beat(1, 4, "loss 2.0")
    return record


def done(store: Store, *jobs: Job) -> None:
    for job in jobs:
        record = begun(store, job)
        with record.claim():
            if job.kind == "train":
                record.weights.mkdir(exist_ok=True)
            record.finish({"loss": 1.0} if job.kind == "train" else {"score": 50.0})


def failed(store: Store, job: Job, error: str = "RuntimeError: no such luck", final: bool = False) -> JobRecord:
    record = begun(store, job)
    with record.claim():
        record.fail(error, final)
    return record


def interrupted(store: Store, job: Job) -> JobRecord:
    record = begun(store, job)
    with record.claim():
        record.interrupt()
    return record
