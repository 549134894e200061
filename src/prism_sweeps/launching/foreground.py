"""Jobs one after another in this very process: for one cell, a debugger, or another launcher's worker."""

from __future__ import annotations

import time
from collections.abc import Mapping

from prism_sweeps.config.errors import PrismError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.launching.local import BUSY_SECONDS, Outcome, headline, prepare_data
from prism_sweeps.launching.pool import StopRequests, stop_requests
from prism_sweeps.launching.progress import Display
from prism_sweeps.launching.run_job import Run, describe, run_job
from prism_sweeps.launching.schedule import Schedule, in_order
from prism_sweeps.tracking.records import Interrupted, JobBusy, Store


def run_here(jobs: Mapping[str, Job], store: Store, engine: Engine, display: Display, run: Run = run_job) -> Outcome:
    """Runs what is not done yet of `jobs`, each after its parents, and returns how each ended.

    A job that another process works on is waited for. Ctrl-C stops at the next safe point, a second one at once.
    Errors of the user's (PrismError) fail the job they belong to; all others go through.
    """
    schedule = Schedule(jobs, workers=1, retries=0)
    for name in jobs:
        if store.job(name).state()["status"] == "done":
            schedule.status[name] = "done"
    errors: dict[str, str] = {}
    waiting = {name: job for name, job in jobs.items() if schedule.status[name] != "done"}
    with display:
        prepare_data(waiting, store, display)
        display.begin(1, len(jobs) - len(waiting), len(jobs))
        with stop_requests() as requests:
            for job in in_order(jobs):
                if schedule.status[job.fingerprint] == "waiting" and not requests.count:
                    run_one(job, schedule, store, engine, display, requests, run, errors)
                    display.overall(len(schedule.names("done")), None)
    left = schedule.names("waiting")
    return Outcome(schedule.names("done"), errors, schedule.names("skipped"), left, requests.exit_code)


def run_one(
    job: Job,
    schedule: Schedule,
    store: Store,
    engine: Engine,
    display: Display,
    requests: StopRequests,
    run: Run,
    errors: dict[str, str],
) -> None:
    """One job, tried until it is not in another process's hands."""

    def report(done: int, total: int, text: str) -> None:
        display.working(0, job.title, done, total, text)

    while not requests.count:
        try:
            run(job, store, engine, report, lambda: requests.count > 0)
        except JobBusy:
            time.sleep(BUSY_SECONDS)
        except Interrupted:
            requests.hear_from_others()
            display.ended("interrupted", job.title, "checkpoint written")
            return
        except PrismError as error:
            schedule.failed(job.fingerprint, final=True)
            errors[job.fingerprint] = describe(error)
            display.ended("failed", job.title, describe(error))
            return
        else:
            schedule.status[job.fingerprint] = "done"
            display.ended("done", job.title, headline(store, job))
            return
