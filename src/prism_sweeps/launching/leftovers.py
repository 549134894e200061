"""What of a store can go without a result or a job being lost, how much that frees, and its removal.

Nothing is followed or removed through a symbolic link: what lies elsewhere is its owner's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prism_sweeps.config.names import NAME
from prism_sweeps.launching.outputs import folder_of
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm.scheduler import Queued
from prism_sweeps.launching.standing import Standing, alive, known_of, standings
from prism_sweeps.planning.outline import Outline
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.files import explained
from prism_sweeps.tracking.records import LEFTOVERS, JobBusy, JobRecord, Store
from prism_sweeps.tracking.submissions import Journal

Queue = Mapping[str, Queued]

GOING = re.compile(r"\.[^.]+\.\d+\.tmp")
"""Name of a folder while it is removed."""
IN_USE = ("running", "silent", "queued", "unknown")
"""States of jobs whose records are left alone."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go."""

    kind: str
    """checkpoints | leftovers | slurm | snapshots | weights | unused | features"""
    path: Path
    size: int
    """Bytes."""
    job: str | None = None
    """Whose it is: removed only with the job's lock held."""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count nothing."""
    if path.is_symlink():
        return 0
    if path.is_file():
        return path.stat().st_size
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += size_of(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # somebody else removes it
        return total
    return total


def inside(root: Path, path: Path) -> bool:
    """Whether a path lies in the store without any link on the way, itself included."""
    if not path.is_relative_to(root) or path == root:
        return False
    return not any(each.is_symlink() for each in (path, *path.parents) if each.is_relative_to(root) and each != root)


def may_go(root: Path, kind: str, path: Path) -> bool:
    """Whether removing a path touches the store alone. Submitit's own links go as links."""
    return inside(root, path.parent if kind == "slurm" else path)


def kept_whole(root: Path, found: Iterable[tuple[str, Path, str | None]]) -> list[Leftover]:
    """(kind, path, job) as leftovers with sizes, without what does not lie in the store itself."""
    return [Leftover(kind, path, size_of(path), job) for kind, path, job in found if may_go(root, kind, path)]


# ---- of jobs


def of_jobs(store: Store, states: Mapping[str, str]) -> list[Leftover]:
    """Checkpoints of done jobs, and what crashes have left of jobs that nobody is at. `states` by standing."""
    found: list[tuple[str, Path, str | None]] = []
    for name, state in states.items():
        record = store.job(name)
        if state == "done" and record.checkpoints.exists():
            found.append(("checkpoints", record.checkpoints, name))
        if state not in IN_USE:
            found += [("leftovers", path, name) for path in chain(*map(record.path.glob, LEFTOVERS))]
    return kept_whole(store.root, found)


def spent_weights(store: Store, states: Mapping[str, str], parents: Mapping[str, Sequence[str]]) -> list[Leftover]:
    """Weights of done training jobs of which all that starts from them is done, in every study of the store.

    `states` of the jobs in question; `parents` of all jobs of the store's plans.
    """
    children: dict[str, list[str]] = {}
    for name, needed in parents.items():
        for parent in needed:
            children.setdefault(parent, []).append(name)
    spent = [
        name
        for name, state in states.items()
        if state == "done"
        and name in children
        and all(store.job(child).state()["status"] == "done" for child in children[name])
    ]
    folders = ((name, store.job(name).weights) for name in spent)
    return kept_whole(store.root, [("weights", path, name) for name, path in folders if path.exists()])


def unused(store: Store, needed: Collection[str]) -> list[Leftover]:
    """Records of jobs that are not `needed` and that nobody is at, and what is left of such that were half removed."""
    folder = store.root / "jobs"
    found: list[tuple[str, Path, str | None]] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if GOING.fullmatch(path.name):
            found.append(("unused", path, None))
        elif NAME.fullmatch(path.name) and path.name not in needed and not store.job(path.name).busy():
            found.append(("unused", path, path.name))
    found += [("unused", path, None) for path in unclaimed_answers(store, {path.name for _, path, _ in found})]
    return kept_whole(store.root, found)


def unclaimed_answers(store: Store, going: Collection[str]) -> list[Path]:
    """Folders of answers that no record of a job leads to, but for those that are `going`."""
    links = (store.root / "jobs").glob("*/answers")
    claimed = {link.readlink().name for link in links if link.is_symlink() and link.parent.name not in going}
    folder = store.root / "answers"
    return [path for path in sorted(folder.iterdir()) if path.name not in claimed] if folder.is_dir() else []


# ---- of SLURM


def of_slurm(store: Store, study: str, journal: Journal, queue: Queue) -> list[Leftover]:
    """SLURM's output and submitit's files of a study's allocations that have left the queue with all jobs done."""
    over = [
        each.slurm_id
        for each in journal.allotted
        if each.study == study
        and not alive(queue.get(each.slurm_id))
        and all(store.job(name).state()["status"] == "done" for name in each.jobs)
    ]
    over += [each for each in journal.last_jobs.get(study, ()) if not alive(queue.get(each))]
    folder = folder_of(store, study)
    files = list(folder.iterdir()) if folder.is_dir() else []
    gone = files_of((path for path in files if path.is_file() and not path.is_symlink()), over)
    links = {path for path in files if path.is_symlink() and (path.resolve() in gone or not path.exists())}
    return kept_whole(store.root, [("slurm", path, None) for path in sorted(gone | links)])


def files_of(files: Iterable[Path], ids: Collection[str]) -> set[Path]:
    """Those of these files that belong to these SLURM ids; what belongs to a whole array goes with all its tasks."""
    by_id: dict[str, set[Path]] = {}
    for path in files:
        number, task = (*path.name.split("_"), "")[:2]
        by_id.setdefault(number, set()).add(path)
        if task.isdigit():
            by_id.setdefault(f"{number}_{task}", set()).add(path)
    found: set[Path] = set()
    for each in ids:
        found |= by_id.get(each, set())
    for array in {each.partition("_")[0] for each in ids if "_" in each}:
        if all(name in ids for name in by_id if name.startswith(f"{array}_")):
            found |= by_id.get(array, set())
    return found


def old_snapshots(store: Store, journal: Journal, queue: Queue) -> list[Leftover]:
    """Snapshots of the code that nothing in SLURM's queue runs; none where it is not known of all what they run."""
    used = {snapshot for each, snapshot in journal.snapshots.items() if alive(queue.get(each))}
    folder = store.root / "snapshots"
    if "" in used or not folder.is_dir():
        return []
    return kept_whole(
        store.root, [("snapshots", path, None) for path in sorted(folder.iterdir()) if path.name not in used]
    )


# ---- all of it


@dataclass(frozen=True)
class Also:
    """What goes only when it is asked for."""

    weights: bool = False
    unused: bool = False
    features: bool = False


def survey(store: Store, outline: Outline, also: Also) -> tuple[list[Leftover], list[str]]:
    """All that can go, and why some things cannot now. Raises StoreError for a damaged plan of the store."""
    journal = submissions.read(store.root)
    states = {name: each.state for name, each in standings_of(store, outline, journal).items()}
    found, reasons = of_jobs(store, states), list[str]()
    queue = queue_of(journal)
    if queue is None:
        reasons.append("SLURM does not answer: its files, snapshots and unused records stay")
    else:
        found += of_slurm(store, outline.study, journal, queue) + old_snapshots(store, journal, queue)
    if also.weights:
        found += spent_weights(store, states, all_parents(store))
    if also.unused and queue is not None:
        newest = journal.newest()
        there = {name for name, each in newest.items() if alive(queue.get(each.slurm_id))}
        found += unused(store, {*all_parents(store), *there})
    if also.features:
        if at_work := someone_at_work(store):
            reasons.append(f"features stay: job {at_work} is running, and may read them")
        else:
            found += kept_whole(store.root, [("features", path, None) for path in (store.root / "features",)])
    return [each for each in found if each.path.is_symlink() or each.path.exists()], reasons


def standings_of(store: Store, outline: Outline, journal: Journal) -> dict[str, Standing]:
    return standings(outline.jobs, known_of(outline.jobs, store, journal, must_answer=False))


def queue_of(journal: Journal) -> Queue | None:
    """What SLURM has of all that was ever submitted into the store; None where it does not answer."""
    try:
        every = scheduler.queue({each.user for each in journal.allotted})
    except LaunchError:
        return None
    return {name: each for name, each in every.items() if not journal.of_another(name, each.comment)}


def all_parents(store: Store) -> dict[str, list[str]]:
    """Job -> what it needs, of all jobs that any plan of the store has. Raises StoreError for a damaged plan."""
    return {
        name: list(job["parents"])
        for study in store.studies()
        for name, job in store.study(study).plan()["jobs"].items()
    }


def someone_at_work(store: Store) -> str | None:
    """A job of the store that runs at this moment."""
    beats = (store.root / "jobs").glob("*/heartbeat")
    return next((path.parent.name for path in beats if store.job(path.parent.name).busy()), None)


# ---- removal


def remove(store: Store, found: Sequence[Leftover]) -> tuple[list[Leftover], list[Leftover]]:
    """Removes these; returns what is gone, and what is left because somebody is at its job by now. StoreError."""
    gone: list[Leftover] = []
    left: list[Leftover] = []
    for each in found:
        if not may_go(store.root, each.kind, each.path):
            left.append(each)
        elif each.job is None:
            _removed(each.path)
            gone.append(each)
        else:
            (gone if _removed_of_job(store.job(each.job), each.path) else left).append(each)
    return gone, left


def _removed_of_job(record: JobRecord, path: Path) -> bool:
    if not record.path.is_dir():
        return True
    try:
        with record.claim():
            _removed(path)
    except JobBusy:
        return False
    return True


def _removed(path: Path) -> None:
    """Folders lose their name first, so that what is half removed is not taken for whole."""
    with explained("remove", path, "what was removed before it is gone, the rest is whole"):
        if path.is_dir() and not path.is_symlink():
            going = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            path.rename(going)
            shutil.rmtree(going)
        else:
            path.unlink(missing_ok=True)


def beside_jobs(store: Store) -> dict[str, int]:
    """What else lies in the store, by name -> bytes."""
    known = ("jobs", "studies", "slurm", "snapshots")
    return {
        path.name: size_of(path)
        for path in sorted(store.root.iterdir())
        if path.name not in known and not path.is_symlink() and size_of(path)
    }


def totals(found: Iterable[Leftover]) -> dict[str, dict[str, Any]]:
    """Kind -> number of paths and bytes."""
    sums: dict[str, dict[str, Any]] = {}
    for each in found:
        row = sums.setdefault(each.kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += each.size
    return sums
