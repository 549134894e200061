"""Run by the batch script when its tasks have ended badly: what to do next, as one line that the script can act on.

again               run the tasks once more in this allocation
requeue [NODES]     give the allocation back and queue again, keeping away from these nodes
end                 the job has failed, or there is nothing left to do

python -m prism_sweeps.launching.slurm.after STORE BATCH TASK EXIT_CODE TRIES SECONDS RESTARTS
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmJobEnvironment

from prism_sweeps.config.cluster import minutes
from prism_sweeps.launching.pool import REQUEUE
from prism_sweeps.launching.run_job import note, on_several_nodes
from prism_sweeps.launching.slurm.within import CANNOT_START
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import JobBusy, JobRecord, Store

MADE_ROOM = (REQUEUE, 128 + 12, 128 + 15)
"""Told to make room, and ended in order; or so early that SIGUSR2 or SIGTERM still had its default effect."""
EARLY = 3
"""How often, beyond its tries, a job may end like that before it began: preemptions of young jobs are no fault."""
STALLS = 3
WORST = "killed (out of memory?)"


@dataclass(frozen=True)
class Attempt:
    """How the tasks of an allocation have ended."""

    code: int
    """Of `srun`: 128 and the signal's number where one has killed a task."""
    tries: int
    """In this allocation, this one counted."""
    seconds: float
    """Since the allocation was given."""
    limit: float | None
    """Seconds that it may last."""
    host: str
    """Where the batch script runs: the first node."""
    retries: int
    """How often a job that fails is tried again."""
    nodes: Sequence[str] = ()
    """All nodes, where there are several."""
    restarts: int = 0
    """How often the allocation has been queued again, by SLURM's count."""
    kept_away: str = ""
    """Nodes that the request excludes already, as sbatch has them."""


def main(arguments: Sequence[str]) -> None:
    root, batch, task, code, tries, seconds, restarts = arguments
    store = Store.open(Path(root))
    row = submissions.intended(store.root, batch)
    request = row["request"]
    limit = None if request["time"] is None else minutes(request["time"])
    attempt = Attempt(
        code=int(code),
        tries=int(tries),
        seconds=float(seconds),
        limit=None if limit is None else limit * 60,
        host=socket.gethostname(),
        retries=row["retries"],
        nodes=SlurmJobEnvironment().hostnames if on_several_nodes() else (),
        restarts=int(restarts),
        kept_away=request["exclude"] or "",
    )
    names = row["allocations"][int(task)] if row["allocations"] else ()  # none: the report job
    print(answer(attempt, [store.job(name) for name in names]))


def answer(attempt: Attempt, jobs: Sequence[JobRecord]) -> str:
    """What the batch script should do, after writing to the records why jobs have ended that could not say so."""
    if attempt.code in MADE_ROOM:
        left = [job for job in jobs if to_be_done(job.state(), attempt.retries)]
        if attempt.code != REQUEUE and too_often_early(jobs, left, attempt):
            return "end"
        stopped = [stalled(job, attempt) for job in left]
        return "end" if all(stopped) else "requeue"
    if attempt.code == CANNOT_START:
        return "end"
    for job in jobs:
        put_down_death(job, attempt)
    states = [job.state() for job in jobs]
    open_ones = [state for state in states if to_be_done(state, attempt.retries)]
    # Tries that ended before they began a job are counted by no record.
    uncounted = attempt.tries - sum(state["failures"] for state in states)
    if not open_ones or uncounted > attempt.retries:
        return "end"
    bad = {host for state in open_ones for host in bad_for(state)}
    if bad.isdisjoint((attempt.host, *attempt.nodes)):
        return "again"
    return f"requeue {','.join(filter(None, (attempt.kept_away, *sorted(bad))))}"


def to_be_done(state: Mapping[str, Any], retries: int) -> bool:
    """Whether a job of an allocation is neither done nor given up."""
    return state["status"] != "done" and not state["final"] and state["failures"] <= retries


def bad_for(state: Mapping[str, Any]) -> list[str]:
    """Nodes on which a job has failed more than once, of the failures that count."""
    counted = Counter(host for host, _ in state["failed_on"][-state["failures"] :]) if state["failures"] else Counter()
    return [host for host, failures in counted.items() if host and failures > 1]


def put_down_death(job: JobRecord, attempt: Attempt) -> None:
    """Gives a job whose process died without a word its reason."""
    state = job.state()
    if state["status"] != "interrupted" or state["attempts"] == 0 or not job.heartbeat.exists():
        return
    with contextlib.suppress(JobBusy), job.claim():
        text, host = job.failure_of_others() or nameless(attempt)
        note(job, text)
        job.fail(text, host=host)


def nameless(attempt: Attempt) -> tuple[str, str | None]:
    """What is known of a death that nobody put down: its words, and the node as `JobRecord.fail` has it."""
    if attempt.nodes:
        return f"one of its processes {how(attempt.code)}, on one of {len(attempt.nodes)} nodes", ""
    return f"its process {how(attempt.code)} on {attempt.host}", None


def how(code: int) -> str:
    """An exit code of `srun`, in words."""
    if code == 128 + 9:
        return f"was {WORST}"
    return f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"


def too_often_early(jobs: Sequence[JobRecord], left: Sequence[JobRecord], attempt: Attempt) -> bool:
    """Whether the tasks have been killed again and again before they began any job that is left; these are given up.

    `srun` kills the tasks that are still starting when another one has ended badly, which looks like making room.
    """
    if any(job.state()["status"] != "new" for job in left):
        return False
    unbegun = attempt.restarts + 1 - sum(job.state()["attempts"] for job in jobs)
    if unbegun <= attempt.retries + EARLY + 1:
        return False
    text = (
        f"its tasks ended {unbegun} times before they began it (exit code {attempt.code}): either one of them failed "
        "at once, as where a node has no Python, which the tasks' logs tell; or to start takes longer than the time "
        "limit leaves: raise cluster.time, or lower cluster.notice_seconds"
    )
    for job in left:
        with contextlib.suppress(JobBusy), job.claim():
            note(job, text)
            job.fail(text, final=True)
    return True


def stalled(job: JobRecord, attempt: Attempt) -> bool:
    """Whether the job has been stopped again and again without getting further, each time late in its time limit."""
    mark = job.mark()
    if attempt.limit is None or attempt.seconds < attempt.limit / 2 or job.state()["status"] == "new":
        return False
    if job.count_stall(mark) < STALLS:
        return False
    text = (
        f"stopped {STALLS} times at its time limit without getting further than '{mark}': the limit is too short for "
        "what comes before the first checkpoint; raise cluster.time, or lower engine.checkpoint_seconds"
    )
    with job.claim():
        note(job, text)
        job.fail(text, final=True)
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
