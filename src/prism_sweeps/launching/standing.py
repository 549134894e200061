"""Where every job of a plan stands: by its record, by what was submitted, and by what SLURM says of it, together.

None of the three tells the truth alone (a failed node's job may be running again under its old id, an out-of-memory
kill shows only in its steps, a job may have ended before it could write anything), so all are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.schedule import in_order
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm.scheduler import Ended, Queued
from prism_sweeps.planning.outline import Node
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.files import clock_of
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.submissions import Allotted, Journal

OPEN = frozenset({"failed", "cancelled", "lost", "skipped", "interrupted", "new"})
"""A sweep runs these."""
ENDED_BADLY = frozenset({"failed", "cancelled", "lost", "skipped"})
QUIET_SECONDS = 180.0
"""Without a sign of life, after which a running job is called silent."""
STILL_SECONDS = 1800.0
"""Without getting further, after which it is too: a process may be alive and wait for one that is not."""
LOST = {
    "TIMEOUT": "its time limit was over before it could go back into the queue",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "OUT_OF_MEMORY": "it needed more memory than it had asked for",
    "PREEMPTED": "it had to make room and was not queued again",
    "DEADLINE": "its deadline was over",
    "FAILED": "its allocation ended before it began",
    "COMPLETED": "its allocation ended without it",
}
RETRIED_ALONE = frozenset({"TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "PREEMPTED"})
"""Ends that are the cluster's, not the user's."""


@dataclass(frozen=True)
class Standing:
    """Of one job."""

    state: str
    """done | running | silent (no sign of life or of getting further, or held by SLURM) | queued | failed | cancelled |
    lost (ended without a word) | skipped (needs one that ended badly) | interrupted | new | unknown (SLURM does not
    answer)."""
    reason: str = ""
    slurm_id: str | None = None
    ended: str = ""
    """SLURM's word for how its allocation ended, where it is lost."""
    host: str = ""
    done: int = 0
    total: int = 0
    text: str = ""
    """How far it is, in its own units."""
    silence: float | None = None
    """Seconds since its last sign of life."""


@dataclass(frozen=True)
class Known:
    """What is known of the jobs of a plan."""

    states: Mapping[str, Mapping[str, Any]]
    beats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    silences: Mapping[str, float] = field(default_factory=dict)
    allotted: Mapping[str, Allotted] = field(default_factory=dict)
    queue: Mapping[str, Queued] | None = field(default_factory=dict)
    """None: SLURM does not answer."""
    history: Mapping[str, Ended] = field(default_factory=dict)


def look(plan: Plan, store: Store, journal: Journal | None = None, must_answer: bool = False) -> dict[str, Standing]:
    """Where the jobs of a plan stand now. Raises SchedulerDown when SLURM has to answer and does not."""
    return standings(plan.jobs, known_of(plan.jobs, store, journal or submissions.read(store.root), must_answer))


def known_of(
    jobs: Collection[str],
    store: Store,
    journal: Journal,
    must_answer: bool,
    done: Mapping[str, Mapping[str, Any]] | None = None,
) -> Known:
    """Reads records, signs of life and, where jobs were submitted, SLURM. States in `done` are not read again."""
    before = done or {}
    records = {name: store.job(name) for name in jobs if name not in before}
    states = {name: before[name] if name in before else records[name].state() for name in jobs}
    allotted = {name: each for name, each in journal.newest().items() if name in jobs}
    open_ones = {name: each for name, each in allotted.items() if states[name]["status"] != "done"}
    queue: Mapping[str, Queued] | None = {}
    history: Mapping[str, Ended] = {}
    try:
        if open_ones:
            every = scheduler.queue(each.user for each in open_ones.values())
            queue = {name: each for name, each in every.items() if not journal.of_another(name, each.comment)}
            gone = {name: each.slurm_id for name, each in open_ones.items() if not alive(queue.get(each.slurm_id))}
            others = every.keys() - queue.keys()
            history = scheduler.history(set(gone.values()) - others) if gone else {}
            # What has left the queue may have written how it ended since the first look.
            states |= {name: records[name].state() for name in gone}
    except LaunchError:  # SLURM is down, or this is a machine without it that sees the store
        if must_answer:
            raise
        queue = None
    # Where locks are kept to each machine, a job that works on another one is read as interrupted.
    begun = {name for name, each in open_ones.items() if begun_by_slurm((queue or {}).get(each.slurm_id))}
    running = [
        name
        for name, state in states.items()
        if state["status"] == "running" or (state["status"] == "interrupted" and name in begun)
    ]
    beats = {name: beat for name in running if (beat := records[name].last_beat())}
    now = clock_of(store.root) if running else None
    silences = {name: age for name in running if (age := records[name].silence(now)) is not None}
    return Known(states, beats, silences, allotted, queue, history)


def alive(queued: Queued | None) -> bool:
    """Whether SLURM still has the job to run or is running it."""
    return queued is not None and (queued.waiting or queued.active)


def begun_by_slurm(queued: Queued | None) -> bool:
    """Whether its allocation is there."""
    return queued is not None and queued.active


def standings(jobs: Mapping[str, Node], known: Known) -> dict[str, Standing]:
    """Where each job stands."""
    found = {name: _by_itself(name, known) for name in jobs}
    for job in in_order(jobs):
        own = found[job.fingerprint]
        bad = next((name for name in job.parents if name in found and found[name].state in ENDED_BADLY), None)
        blocked = own.state in OPEN - {"failed"} or "Dependency" in own.reason
        if bad is not None and blocked:
            found[job.fingerprint] = replace(own, state="skipped", reason=f"needs {jobs[bad].title}")
    return found


def _by_itself(name: str, known: Known) -> Standing:
    """Where a job stands, its parents left aside."""
    state, allotted = known.states[name], known.allotted.get(name)
    status = state["status"]
    if status == "done":
        return Standing("done", host=state["host"] or "")
    slurm_id = allotted.slurm_id if allotted else None
    queued = known.queue.get(slurm_id) if known.queue is not None and slurm_id else None
    if queued is not None and queued.held:
        return Standing(
            "silent", f"held by SLURM ({queued.reason}); `scontrol release {slurm_id}` lets it go", slurm_id
        )
    if queued is not None and queued.waiting:
        return Standing("queued", queued.reason, slurm_id)
    active = begun_by_slurm(queued)
    if status == "running" or (active and name in known.silences):
        return _running(name, known, slurm_id)
    failed = status == "failed" and state["failures"] > 0
    if active and not failed:
        return Standing("queued", "its allocation is starting, or at another of its jobs", slurm_id)
    if active and allotted and not state["final"] and state["failures"] <= allotted.retries:
        return Standing("queued", f"tried again after: {state['error']}", slurm_id)
    if failed:
        return Standing("failed", str(state["error"]), slurm_id, host=state["host"] or "")
    if slurm_id is None or allotted is None:
        return Standing(status)
    if known.queue is None:
        return Standing("unknown", "SLURM does not answer", slurm_id)
    return _gone(slurm_id, queued, known.history.get(slurm_id))


def _running(name: str, known: Known, slurm_id: str | None) -> Standing:
    beat, silence = known.beats.get(name, {}), known.silences.get(name)
    still = float(beat.get("still", 0))
    reason = f"no sign of life for {silence:.0f} s" if silence is not None and silence > QUIET_SECONDS else ""
    if not reason and still > STILL_SECONDS:
        reason = f"it lives, but has not got further for {still / 60:.0f} min"
    return Standing(
        state="silent" if reason else "running",
        reason=reason,
        slurm_id=slurm_id,
        host=str(beat.get("host", "")),
        done=int(beat.get("done", 0)),
        total=int(beat.get("total", 0)),
        text=str(beat.get("text", "")),
        silence=silence,
    )


def _gone(slurm_id: str, queued: Queued | None, ended: Ended | None) -> Standing:
    """A job that was submitted, is not in the queue any more, and has written no end of its own."""
    if queued is None and ended is not None and ended.state not in scheduler.ENDED:
        return Standing("unknown", f"not in the queue, but {ended.state} in SLURM's accounts", slurm_id)
    told = ended if ended and ended.state in scheduler.ENDED else queued
    word, where = (told.state, told.nodes) if told else ("", "")
    if word == "CANCELLED":
        by = f" by user {ended.by}" if ended and ended.by else ""
        return Standing("cancelled", f"cancelled{by}", slurm_id, word, where)
    reason = LOST.get(word, "SLURM does not know it any more" if not word else f"SLURM says {word}")
    return Standing("lost", reason, slurm_id, word, where)
