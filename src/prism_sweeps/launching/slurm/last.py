"""The last job of a sweep: MLflow and the report up to date, and what nodes or limits ended submitted again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from prism_sweeps.config.errors import PrismError
from prism_sweeps.launching.run_job import note
from prism_sweeps.launching.schedule import in_order
from prism_sweeps.launching.slurm.limits import LimitReachedError
from prism_sweeps.launching.standing import OPEN, RETRIED_ALONE, Known, Standing, known_of, standings
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import SILENT_SECONDS, JobBusy, JobRecord, Store

UNDER_WAY = frozenset({"done", "running", "silent", "queued"})
"""What needs only such jobs can be submitted."""


@dataclass(frozen=True)
class Last:
    """Called by submitit when all other jobs of a submission have ended, however they have."""

    root: Path
    data: Path
    study: str
    left: tuple[str, ...] = ()
    """Jobs that a limit left no room for when it was submitted."""

    def __call__(self) -> None:
        store = Store.open(self.root, self.data)
        try:
            again = submit_again(Plan.from_plain(store.study(self.study).plan()), store, self.left)
            say(f"{again} jobs submitted again")
        except LimitReachedError as error:
            say(str(error))
        except PrismError as error:  # many clusters let no job submit another
            say(f"nothing is submitted again from here: {error}")
        # By its command, for it stands above this part of the house.
        command = [sys.executable, "-m", "prism_sweeps.cli", "report", self.study, "--store", str(self.root)]
        subprocess.run(command, check=True)


def submit_again(plan: Plan, store: Store, left: Collection[str] = ()) -> int:
    """Submits again the jobs that a node or a limit ended without a word, while they have retries left, and all that
    SLURM cancelled because it needed them; and those that were left. What a user cancelled stays so, and what needs it.
    Returns how many."""
    from prism_sweeps.launching.slurm.submit import submit

    known = known_of(plan.jobs, store, submissions.read(store.root), must_answer=False)
    found = standings(plan.jobs, known)
    again = put_down_losses(found, plan, store) | put_down_before(found, known, plan)
    chosen = with_what_waited(again, left, found, known, plan)
    if not chosen:
        return 0
    return len(submit(plan, store, say, wanted=lambda name, _: name in chosen, forgive=False).jobs)


def put_down_before(found: Mapping[str, Standing], known: Known, plan: Plan) -> set[str]:
    """Losses that the report job of another study has put down: whoever comes first submits them again."""
    states = known.states
    lost = {name for name in found if found[name].state == "failed" and how_ended(name, known)[0] in RETRIED_ALONE}
    return {n for n in lost if not states[n]["final"] and states[n]["failures"] <= plan.engine.retries}


def with_what_waited(
    again: Collection[str], left: Collection[str], found: Mapping[str, Standing], known: Known, plan: Plan
) -> set[str]:
    """These jobs, what needs them, what was left, and what SLURM cancelled while it waited for jobs that are under way
    once more, perhaps because another study submitted them."""
    chosen = set(again)
    for job in in_order(plan.jobs):
        name, parents = job.fingerprint, [each for each in job.parents if each in found]
        ready = all(each in chosen or found[each].state in UNDER_WAY for each in parents)
        word, who = how_ended(name, known)
        stranded = word == "CANCELLED" and who == "SLURM"
        due = stranded or (name in left and found[name].state != "failed") or chosen.intersection(parents)
        if found[name].state in OPEN and ready and who != "user" and due:
            chosen.add(name)
    return chosen


def how_ended(name: str, known: Known) -> tuple[str, str]:
    """SLURM's word for how a job's last allocation ended, "" where it is not told, and who cancelled it: "SLURM" for a
    dependency that could not be met any more, or "user"."""
    allotted = known.allotted.get(name)
    queued = (known.queue or {}).get(allotted.slurm_id) if allotted else None
    ended = known.history.get(allotted.slurm_id) if allotted else None
    word = ended.state if ended else queued.state if queued else ""
    if word != "CANCELLED":
        return word, ""
    by_slurm = queued.reason == "DependencyNeverSatisfied" if queued else bool(ended and not ended.by)
    return word, "SLURM" if by_slurm else "user"


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
            record.fail(standing.reason, host=to_blame(standing))
            if record.state()["failures"] <= plan.engine.retries:
                again.add(name)
    return again


def to_blame(standing: Standing) -> str:
    """The node that a loss speaks against; "" where it does not, or does not tell which of several."""
    one = not any(mark in standing.host for mark in "[, ")  # SLURM's lists, and its "None assigned"
    return standing.host if standing.ended in ("NODE_FAIL", "BOOT_FAIL") and one else ""


def wait_for_silence(record: JobRecord) -> None:
    """Until the last sign of life of a job that SLURM has ended is so old that nobody takes it for one any more."""
    until = time.monotonic() + SILENT_SECONDS
    while (age := record.silence()) is not None and age < SILENT_SECONDS and time.monotonic() < until:
        time.sleep(1)


def say(text: str) -> None:
    print(f"prism: {text}", file=sys.stderr, flush=True)
