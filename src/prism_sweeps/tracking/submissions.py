"""What was handed to SLURM: a journal of the store that survives a shell which dies between two lines of it.

`<root>/submissions.jsonl`, written by whoever holds `submit.lock`. A batch is intended before `sbatch` is called and
carries its id as SLURM's comment, so one that was intended, but never answered for, is found again in the queue.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import StoreError
from prism_sweeps.config.schema import Request
from prism_sweeps.planning.allocations import Allocation
from prism_sweeps.tracking.files import append_rows, make_folder, only_one, read_json, read_rows, write_atomic

FILE, LOCK = "submissions.jsonl", "submit.lock"
MARK = "prism-"
"""Begins the comment of every batch."""


@dataclass(frozen=True)
class Allotted:
    """One allocation as it was submitted."""

    slurm_id: str
    """123, or 123_4 of an array."""
    jobs: tuple[str, ...]
    study: str
    batch: str
    user: str
    time: float
    slots: int = 1
    retries: int = 0
    """How often a job of it that fails is tried again."""


@dataclass
class Journal:
    """The journal, read."""

    allotted: list[Allotted] = field(default_factory=list)
    """Every allocation that was ever submitted, the oldest first."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """Batches that were intended and neither submitted nor withdrawn -> user."""
    withdrawn: dict[str, str] = field(default_factory=dict)
    """Batches that SLURM does not have, as far as it could be told when this was noted -> user."""
    batches: dict[str, str] = field(default_factory=dict)
    """SLURM id -> the last batch that was given it."""
    last_jobs: dict[str, list[str]] = field(default_factory=dict)
    """Study -> SLURM ids of its report jobs."""
    snapshots: dict[str, str] = field(default_factory=dict)
    """SLURM id -> name of the snapshot that runs in it."""

    def of_another(self, slurm_id: str, comment: str) -> bool:
        """Whether the job with this comment is of another batch than the one that was given its id last: a cluster that
        is made anew counts from 1."""
        known = self.batches.get(slurm_id)
        return known is not None and comment.startswith(MARK) and comment != f"{MARK}{known}"

    def newest(self) -> dict[str, Allotted]:
        """Job -> the allocation that it was given last."""
        return {name: allotted for allotted in self.allotted for name in allotted.jobs}


def read(store_root: Path) -> Journal:
    """Everything that was submitted into a store. Raises StoreError for a damaged journal."""
    journal, intended = Journal(), dict[str, dict[str, Any]]()
    for row in read_rows(store_root / FILE):
        batch = row["batch"]
        if row["event"] == "intended":
            intended[batch] = row
            journal.unanswered[batch] = row["user"]
            continue
        user = journal.unanswered.pop(batch, None)
        if row["event"] == "withdrawn" and user is not None:
            journal.withdrawn[batch] = user
        if row["event"] == "submitted" and batch in intended:
            count_in(journal, intended[batch], row["ids"])
    return journal


def intended(store_root: Path, batch: str) -> dict[str, Any]:
    """What was noted when a batch was about to be submitted. Raises StoreError where it was not."""
    for row in read_rows(store_root / FILE):
        if row["event"] == "intended" and row["batch"] == batch:
            return row
    raise StoreError(f"{store_root / FILE} does not know batch {batch}")


def count_in(journal: Journal, intended: dict[str, Any], ids: Sequence[str]) -> None:
    """Adds a batch, as it was intended, that SLURM gave these ids: one for each allocation."""
    journal.batches.update(dict.fromkeys(ids, intended["batch"]))
    journal.snapshots.update(dict.fromkeys(ids, intended.get("snapshot", "")))
    if not intended["allocations"]:
        journal.last_jobs.setdefault(intended["study"], []).extend(ids)
    same = (intended["study"], intended["batch"], intended["user"], intended["time"])
    for slurm_id, jobs, slots in zip(ids, intended["allocations"], intended["slots"], strict=False):
        journal.allotted.append(Allotted(slurm_id, tuple(jobs), *same, slots, intended["retries"]))


def me() -> str:
    """Who submits: not what the environment believes, which `su` and containers leave as it was."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def intend(
    store_root: Path,
    study: str,
    allocations: Sequence[Allocation],
    request: Request,
    retries: int,
    snapshot: str = "",
) -> str:
    """Notes that these allocations (none: the report job) are about to be submitted; returns the batch's id.

    A job of theirs that fails is tried again so many times. `snapshot`: name of the code that they run.
    """
    batch = secrets.token_hex(6)
    row = {
        "event": "intended",
        "batch": batch,
        "study": study,
        "user": me(),
        "host": socket.gethostname(),
        "time": time.time(),
        "allocations": [list(allocation.jobs) for allocation in allocations],
        "request": asdict(request),
        "slots": [allocation.slots for allocation in allocations],
        "retries": retries,
        "snapshot": snapshot,
    }
    append_rows(store_root / FILE, [row], durable=True)
    return batch


def submitted(store_root: Path, batch: str, ids: Sequence[str]) -> None:
    """Notes SLURM's ids of a batch, one for each allocation."""
    append_rows(store_root / FILE, [{"event": "submitted", "batch": batch, "ids": list(ids)}], durable=True)


def withdrawn(store_root: Path, batch: str) -> None:
    """Notes that SLURM does not have a batch."""
    append_rows(store_root / FILE, [{"event": "withdrawn", "batch": batch}], durable=True)


@contextlib.contextmanager
def submitting(store_root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One submission into a store at a time; others wait, and are told for whom."""
    path = make_folder(store_root) / LOCK

    def waiting() -> None:
        say(f"waiting for another submission into this store{_by_whom(store_root)}")

    with only_one(path, "nothing was submitted", waiting):
        write_atomic(store_root / f"{LOCK}.holder", f'{{"user": "{me()}", "pid": {os.getpid()}}}\n')
        yield


def _by_whom(store_root: Path) -> str:
    with contextlib.suppress(StoreError):
        holder = read_json(store_root / f"{LOCK}.holder", "remove it")
        return f" ({holder.get('user')}, process {holder.get('pid')})"
    return ""
