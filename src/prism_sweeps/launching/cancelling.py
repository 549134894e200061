"""Jobs out of SLURM's queue: which allocations that ends, what else is in them, and what others still need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from prism_sweeps.launching.removed import needed_by
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm.scheduler import Queued
from prism_sweeps.launching.standing import Known, alive, known_of
from prism_sweeps.planning.outline import Outline
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.submissions import MARK, Allotted, Journal

Keepers = Mapping[str, Sequence[str]]
"""Job -> who else needs it, in words; {} to cancel also what others need."""


@dataclass(frozen=True)
class Taken:
    """An allocation that is to be cancelled."""

    slurm_id: str
    runs: bool
    """Not only waits."""
    meant: tuple[str, ...]
    along: tuple[str, ...] = ()
    """Open jobs in it that were not meant and end with it."""


@dataclass(frozen=True)
class Kept:
    """An allocation that stays because somebody else needs a job in it."""

    slurm_id: str
    jobs: tuple[str, ...]
    """That were meant."""
    needed: tuple[str, ...]
    by: tuple[str, ...]


@dataclass(frozen=True)
class Cancellation:
    """What cancelling some jobs comes to."""

    taken: Sequence[Taken] = ()
    kept: Sequence[Kept] = ()
    report: Sequence[str] = ()
    """Report jobs that have nothing left to wait for."""
    unmarked: Sequence[str] = ()
    """SLURM ids that were given to these jobs, but no longer carry their mark: they may be another's by now."""
    elsewhere: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Jobs that run outside of SLURM -> host and process."""

    @property
    def jobs(self) -> list[str]:
        """That end by it."""
        return [name for each in self.taken for name in (*each.meant, *each.along)]


def cancellation(names: Collection[str], study: str, known: Known, journal: Journal, keepers: Keepers) -> Cancellation:
    """What it comes to to cancel these jobs of a study. `known` of all jobs in their allocations."""
    queue, newest = known.queue or {}, journal.newest()
    taken: list[Taken] = []
    kept: list[Kept] = []
    unmarked: list[str] = []
    for each in dict.fromkeys(newest[name] for name in names if name in newest):
        queued = queue.get(each.slurm_id)
        if queued is None or not alive(queued):
            continue
        if not marked(queued, journal):
            unmarked.append(each.slurm_id)
            continue
        left = [name for name in each.jobs if newest[name] is each and is_open(name, known)]
        meant = tuple(name for name in left if name in names)
        needed = tuple(name for name in left if name in keepers)
        if needed and meant:
            by = dict.fromkeys(who for name in needed for who in keepers[name])
            kept.append(Kept(each.slurm_id, meant, needed, tuple(by)))
        elif meant:
            along = tuple(name for name in left if name not in names)
            taken.append(Taken(each.slurm_id, queued.active, meant, along))
    reports = report_jobs(study, journal, known, taken)
    return Cancellation(taken, kept, reports, unmarked, elsewhere(names, known, newest))


def marked(queued: Queued, journal: Journal) -> bool:
    """Whether SLURM says that this is the job that was submitted: ids are given again when a cluster is made anew."""
    return queued.comment == f"{MARK}{journal.batches.get(queued.slurm_id)}"


def is_open(name: str, known: Known) -> bool:
    """Whether an allocation still has to do with a job: not once it is done, nor when it has failed for good."""
    state = known.states[name]
    return state["status"] != "done" and not (state["status"] == "failed" and state["final"])


def report_jobs(study: str, journal: Journal, known: Known, taken: Sequence[Taken]) -> list[str]:
    """The report jobs of a study, unless an allocation of it is left that they wait for."""
    queue, gone = known.queue or {}, {each.slurm_id for each in taken}
    left = [
        each for each in journal.allotted
        if each.study == study and each.slurm_id not in gone and alive(queue.get(each.slurm_id))
    ]  # fmt: skip
    ids = journal.last_jobs.get(study, ())
    there = [each for each in ids if alive(queue.get(each)) and marked(queue[each], journal)]
    return there if taken and not left else []


def elsewhere(names: Collection[str], known: Known, newest: Mapping[str, Allotted]) -> dict[str, tuple[str, int]]:
    """Those that run, and not in an allocation."""
    queue = known.queue or {}
    return {
        name: (str(state["host"]), int(state["pid"] or 0))
        for name in names
        if (state := known.states[name])["status"] == "running"
        and not (name in newest and alive(queue.get(newest[name].slurm_id)))
    }


def look(store: Store, outline: Outline, names: Collection[str], keepers: Keepers) -> Cancellation:
    """What cancelling these jobs would come to now. Raises LaunchError when SLURM has to answer and does not."""
    journal = submissions.read(store.root)
    newest = journal.newest()
    beside = {other for name in names if name in newest for other in newest[name].jobs}
    known = known_of({*names, *beside}, store, journal, must_answer=True)
    return cancellation(names, outline.study, known, journal, keepers)


def cancel(
    store: Store, outline: Outline, names: Collection[str], keepers: Keepers, say: Callable[[str], None]
) -> Cancellation:
    """Cancels what can be, with no submission into the store going on meanwhile; returns what that was.

    SLURM tells running jobs to make room: they write a checkpoint and can be gone on with.
    """
    from prism_sweeps.launching.slurm.submit import settle  # needs submitit

    with submissions.submitting(store.root, say):
        settle(store, submissions.read(store.root), say)
        found = look(store, outline, names, keepers)
        if found.taken:
            # The report first: else it would begin as soon as it has nothing to wait for.
            if found.report:
                scheduler.cancel(found.report)
            scheduler.cancel([each.slurm_id for each in found.taken])
    return found


def keepers_of(store: Store, outline: Outline, names: Collection[str], of_cells: bool) -> dict[str, list[str]]:
    """Who else needs these jobs: other studies and, where whole cells are meant (`of_cells`), other cells of this one.

    Raises StoreError for a plan of the store that is damaged.
    """
    found: dict[str, list[str]] = {}
    for name, studies in needed_by(store, names).items():
        for study in studies:
            if study != outline.study:
                found.setdefault(name, []).append(f"study {study}")
    if of_cells:
        for cell in outline.cells:
            if not set(cell.jobs) <= set(names):
                for name in set(cell.jobs) & set(names):
                    found.setdefault(name, []).append(f"cell {cell.id}")
    return found


def keepers_of_removed(store: Store, names: Collection[str]) -> dict[str, list[str]]:
    """Who needs jobs that were removed from a study, or what shares their allocations: any plan, its own as well."""
    newest = submissions.read(store.root).newest()
    beside = {other for name in names if name in newest for other in newest[name].jobs}
    return {
        name: [f"study {each}" for each in studies] for name, studies in needed_by(store, {*names, *beside}).items()
    }
