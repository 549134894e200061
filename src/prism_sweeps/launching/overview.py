"""A study as it stands: every job with its standing and pace, every cell in one word, what of it wants attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prism_sweeps.launching.pace import Pace, pace_of
from prism_sweeps.launching.removed import removed_from, still_there
from prism_sweeps.launching.slurm.scheduler import Queued
from prism_sweeps.launching.standing import RETRIED_ALONE, Known, Standing, alive, known_of, standings
from prism_sweeps.planning.outline import CellOutline, Outline
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.submissions import Allotted

ATTENTION = (
    "failed", "lost", "cancelled", "silent", "unknown", "running", "queued", "skipped", "interrupted", "new", "done",
)  # fmt: skip
"""States of jobs, what wants attention most first."""
ACTIVE = frozenset({"queued", "running", "silent", "unknown"})
"""May still change by themselves."""
WORDS = ("failed", "lost", "cancelled", "silent", "running", "unknown", "queued", "interrupted")
"""One job in such a state gives its cell this word; otherwise all must agree."""


@dataclass(frozen=True)
class Overview:
    """Of one study at one moment."""

    outline: Outline
    standings: Mapping[str, Standing]
    states: Mapping[str, Mapping[str, Any]]
    """Of the records."""
    paces: Mapping[str, Pace]
    """Of running and silent jobs."""
    allotted: Mapping[str, Allotted] = field(default_factory=dict)
    answers: bool = True
    """Whether SLURM does, where it was asked."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """SLURM id -> its nodes, of what runs."""
    report: Mapping[str, str] = field(default_factory=dict)
    """SLURM id of report jobs in the queue -> why they wait, or that they run."""
    removed: Sequence[str] = ()
    """Jobs of removed cells that SLURM still has."""

    def counts(self) -> dict[str, int]:
        """State -> jobs, in the order of ATTENTION."""
        found = Counter(each.state for each in self.standings.values())
        return {state: found[state] for state in ATTENTION if found[state]}

    def named(self, *states: str) -> list[str]:
        """Jobs in these states."""
        return [name for name, each in self.standings.items() if each.state in states]

    def going_on(self) -> bool:
        """Whether anything may still change without anybody doing something."""
        again = bool(self.report) and any(
            each.state == "lost" and each.ended in RETRIED_ALONE for each in self.standings.values()
        )
        return again or any(each.state in ACTIVE for each in self.standings.values())

    def word(self, cell: CellOutline) -> str:
        """Where a cell stands."""
        states = [self.standings[name].state for name in cell.jobs]
        for word in WORDS:
            if word in states:
                return word
        return states[0] if len(set(states)) == 1 else "partial"

    def foremost(self, cell: CellOutline) -> str | None:
        """The job of a cell that its state is told by; None where all is done."""
        open_ones = [name for name in cell.jobs if self.standings[name].state != "done"]
        return min(open_ones, key=lambda name: ATTENTION.index(self.standings[name].state), default=None)

    def mean_score(self, cell: CellOutline) -> float | None:
        """Once all of a cell is evaluated: of the evaluations with the right images."""
        if not cell.evaluate or any(self.standings[name].state != "done" for name in cell.evaluate):
            return None
        real = [name for name in cell.evaluate if self.outline.jobs[name].condition == "real"]
        scores = [self.states[name]["result"]["score"] for name in real]
        return sum(scores) / len(scores) if scores else None


def overview(store: Store, outline: Outline, before: Overview | None = None) -> Overview:
    """Looks at records, signs of life and SLURM. What was done in an overview `before` is not read again."""
    journal = submissions.read(store.root)
    done = {name: before.states[name] for name in before.named("done")} if before else {}
    removed = removed_from(store.study(outline.study))
    known = known_of({**outline.jobs, **removed}, store, journal, must_answer=False, done=done)
    found = standings(outline.jobs, known)
    queue: Mapping[str, Queued] = known.queue or {}
    return Overview(
        outline=outline,
        standings=found,
        states={name: known.states[name] for name in outline.jobs},
        paces=_paces(store, outline, found, known),
        allotted=known.allotted,
        answers=known.queue is not None,
        nodes={each.slurm_id: each.nodes for each in queue.values() if each.active},
        report={
            each: _told(queue[each]) for each in journal.last_jobs.get(outline.study, ()) if alive(queue.get(each))
        },
        removed=still_there(store, outline.study, journal.newest(), known) if removed else (),
    )


def _paces(store: Store, outline: Outline, found: Mapping[str, Standing], known: Known) -> dict[str, Pace]:
    return {
        name: pace_of(store.job(name), known.states[name], each, outline.jobs[name].kind)
        for name, each in found.items()
        if each.state in ("running", "silent")
    }


def _told(queued: Queued) -> str:
    return f"waits ({queued.reason})" if queued.waiting else "runs"
