"""Jobs that have ended badly, or give no sign of life, tried again with all their retries; nothing else is started."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from prism_sweeps.launching.cancelling import marked
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.schedule import descendants
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.standing import ENDED_BADLY, OPEN, Standing, alive
from prism_sweeps.planning.outline import Node
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.submissions import Allotted

RETRIED = ENDED_BADLY | {"silent"}
LET_GO_SECONDS = 300.0
"""How long SLURM may take to end what it was told to cancel."""
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Retry:
    """What is tried again."""

    jobs: frozenset[str]
    silent: Mapping[str, str] = field(default_factory=dict)
    """Those that give no sign of life -> SLURM id, to be cancelled before."""
    out_of_reach: tuple[str, ...] = ()
    """Those that do not and run outside of SLURM: only who is at their machine can end them."""


def to_retry(
    jobs: Mapping[str, Node],
    found: Mapping[str, Standing],
    wanted: Collection[str] | None,
    allotted: Mapping[str, Allotted],
) -> Retry:
    """Of the `wanted` jobs (None: all) those that have ended badly or are silent, what they need that is not done, what
    is skipped because of them, and what ends with the allocation of a silent one."""
    chosen = {name for name in (jobs if wanted is None else wanted) if found[name].state in RETRIED}
    chosen |= {name for name in descendants(jobs, chosen) if found[name].state == "skipped"}
    chosen |= {name for name in ancestors(jobs, chosen) if found[name].state in OPEN | RETRIED}
    silent = {name: slurm_id for name in chosen if found[name].state == "silent" and (slurm_id := found[name].slurm_id)}
    beside = {other for name in silent if name in allotted for other in allotted[name].jobs}
    chosen |= {name for name in beside if name in jobs and found[name].state != "done"}
    away = tuple(sorted(name for name in chosen if found[name].state == "silent" and name not in silent))
    return Retry(frozenset(chosen - set(away)), silent, away)


def ancestors(jobs: Mapping[str, Node], names: Collection[str]) -> set[str]:
    """All that these jobs need, of these jobs."""
    found: set[str] = set()
    front = set(names)
    while front:
        front = {parent for name in front for parent in jobs[name].parents if parent in jobs} - found
        found |= front
    return found


def end_silent(
    store: Store, ids: Collection[str], say: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> None:
    """Cancels these allocations and waits until SLURM has let go of them. Raises LaunchError when it does not."""
    with submissions.submitting(store.root, say):
        journal = submissions.read(store.root)
        users = {each.user for each in journal.allotted if each.slurm_id in ids}
        queue = scheduler.queue(users)
        own = [each for each in ids if each in queue and marked(queue[each], journal)]
        if own:
            say(f"cancelling {', '.join(sorted(own))}, of which there is no sign of life")
            scheduler.cancel(own)
        until = time.monotonic() + LET_GO_SECONDS
        while left := [each for each in own if alive(scheduler.queue(users).get(each))]:
            if time.monotonic() > until:
                raise LaunchError(
                    f"SLURM has not let go of {', '.join(left)} in {LET_GO_SECONDS:.0f} s (its node may be gone: "
                    "sinfo); nothing was submitted, try again later"
                )
            pause(LOOK_SECONDS)
