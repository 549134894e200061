"""What runs inside an allocation: its jobs, on as many processes as `srun` has started."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.launching.pool import REQUEUE, StopRequests, stop_requests
from prism_sweeps.launching.progress import LineDisplay
from prism_sweeps.tracking.records import Store

PARENT_SECONDS = 120.0
"""How long the weights of a job that has ended may take to be seen on this node: network file systems cache."""
LOOK_SECONDS = 2.0
FAREWELL_SECONDS = 60.0
CANNOT_START = 3
"""Exit code of an allocation none of whose jobs has the weights that it starts from: trying again is of no use."""


@dataclass(frozen=True)
class Work:
    """The jobs of one allocation, frozen as they were when they were submitted. Called by submitit in every task."""

    root: Path
    data: Path
    jobs: Mapping[str, Job]
    engine: Engine
    slots: int

    def __call__(self) -> None:
        """Ends the process with 0 when all are done, 75 when told to make room, 3 when none can start, else 1."""
        # First of all, for submitit's own handlers would requeue without a checkpoint.
        with stop_requests() as requests:
            code = self.run(requests)
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            os._exit(code)  # submitit would write down a success

    def run(self, requests: StopRequests) -> int:
        store = Store.open(self.root, self.data)
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        if not wait_for_parents(self.jobs, store, lambda: requests.count > 0):
            return requests.exit_code
        jobs = {n: job for n, job in self.jobs.items() if not given_up(store.job(n).state(), self.engine.retries)}
        if missing := [parent for parent in parents_outside(jobs) if not store.job(parent).weights.is_dir()]:
            jobs = {name: job for name, job in jobs.items() if not set(missing) & set(job.parents)}
            print(f"prism: there are no weights of {', '.join(missing)}; what needs them is left out", flush=True)
            if not jobs:
                return CANNOT_START
        try:
            outcome = self.side_by_side(jobs, store) if self.slots > 1 else self.one_by_one(jobs, store)
        except SystemExit as end:  # of a process that is not the first
            code = end.code if isinstance(end.code, int) else 1
            if code == REQUEUE and not first:
                wait_for_first(self.jobs, store)
            return code
        return outcome or int(len(jobs) < len(self.jobs))

    def one_by_one(self, jobs: Mapping[str, Job], store: Store) -> int:
        from prism_sweeps.launching.together import run_together

        outcome = run_together(jobs, store, self.engine, LineDisplay())
        return outcome.stopped_with if outcome.interrupted else int(bool(outcome.failed or outcome.skipped))

    def side_by_side(self, jobs: Mapping[str, Job], store: Store) -> int:
        from prism_sweeps.launching.local import run_jobs

        engine = dataclasses.replace(self.engine, workers=self.slots)
        outcome = run_jobs(jobs, store, engine, LineDisplay())
        return outcome.stopped_with if outcome.interrupted else int(bool(outcome.failed or outcome.skipped))


def given_up(state: Mapping[str, Any], retries: int) -> bool:
    """Whether a job has failed so often, or so surely, that the others of its allocation go on without it."""
    return bool(state["status"] == "failed" and (state["final"] or state["failures"] > retries))


def wait_for_parents(jobs: Mapping[str, Job], store: Store, stop: Callable[[], bool]) -> bool:
    """Until the weights that jobs start from can be seen, for a while; False when told to stop meanwhile.

    One that somebody is still working on, or is about to, is waited for as long as it takes.
    """
    patience = time.monotonic() + PARENT_SECONDS
    while missing := [store.job(name) for name in parents_outside(jobs) if not store.job(name).weights.is_dir()]:
        states = {record.state()["status"] for record in missing}
        if stop():
            return False
        if states == {"failed"}:
            break
        if "running" in states:
            patience = time.monotonic() + PARENT_SECONDS
        if time.monotonic() > patience:
            break
        time.sleep(LOOK_SECONDS)
    return True


def parents_outside(jobs: Mapping[str, Job]) -> set[str]:
    """The jobs whose weights these start from, but for those among them."""
    return {parent for job in jobs.values() for parent in job.parents if parent not in jobs}


def wait_for_first(jobs: Mapping[str, Job], store: Store) -> None:
    """Until the first process has written its record: `srun` ends all tasks once one of them leaves with an error."""
    until = time.monotonic() + FAREWELL_SECONDS
    while time.monotonic() < until and any(store.job(name).busy() for name in jobs):
        time.sleep(0.2)
