"""The last job of a sweep: MLflow and the report up to date, and what nodes or limits ended submitted again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prism_sweeps.config.errors import PrismError
from prism_sweeps.launching.run_job import note
from prism_sweeps.launching.standing import RETRIED_ALONE, Standing, look
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.records import SILENT_SECONDS, JobBusy, JobRecord, Store


@dataclass(frozen=True)
class Last:
    """Called by submitit when all other jobs of a submission have ended, however they have."""

    root: Path
    data: Path
    study: str

    def __call__(self) -> None:
        store = Store.open(self.root, self.data)
        try:
            again = submit_again(Plan.from_plain(store.study(self.study).plan()), store)
            say(f"{again} jobs submitted again")
        except PrismError as error:  # many clusters let no job submit another
            say(f"nothing is submitted again from here: {error}")
        # By its command, for it stands above this part of the house.
        command = [sys.executable, "-m", "prism_sweeps.cli", "report", self.study, "--store", str(self.root)]
        subprocess.run(command, check=True)


def submit_again(plan: Plan, store: Store) -> int:
    """Submits again the jobs that a node or a limit ended without a word, while they have retries left, and all that
    needed them. Returns how many."""
    from prism_sweeps.launching.slurm.submit import submit

    lost = put_down_losses(look(plan, store), plan, store)
    if not lost:
        return 0
    needed = with_descendants(lost, plan)
    return len(submit(plan, store, say, wanted=lambda name, _: name in needed, forgive=False).jobs)


def put_down_losses(found: Mapping[str, Standing], plan: Plan, store: Store) -> set[str]:
    """Writes to their records why jobs were lost; those that may be tried again."""
    again = set()
    for name, standing in found.items():
        if standing.state != "lost" or standing.ended not in RETRIED_ALONE:
            continue
        record = store.job(name)
        wait_for_silence(record)
        with contextlib.suppress(JobBusy), record.claim():
            note(record, standing.reason)
            record.fail(standing.reason)
            if record.state()["failures"] <= plan.engine.retries:
                again.add(name)
    return again


def wait_for_silence(record: JobRecord) -> None:
    """Until the last sign of life of a job that SLURM has ended is so old that nobody takes it for one any more."""
    until = time.monotonic() + SILENT_SECONDS
    while (age := record.silence()) is not None and age < SILENT_SECONDS and time.monotonic() < until:
        time.sleep(1)


def with_descendants(names: set[str], plan: Plan) -> set[str]:
    """These jobs and all that need them."""
    found = set(names)
    while more := {n for n, job in plan.jobs.items() if n not in found and found & set(job.parents)}:
        found |= more
    return found


def say(text: str) -> None:
    print(f"prism: {text}", file=sys.stderr, flush=True)
