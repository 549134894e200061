"""What jobs and SLURM have written about a job, and where."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from prism_sweeps.launching.pace import tail
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.submissions import Allotted, Journal

LINE_BYTES = 400
"""Of log that are read for each line wanted."""


def folder_of(store: Store, study: str) -> Path:
    """Where SLURM's output of what was submitted for a study lies."""
    return store.root / "slurm" / study


def slurm_outputs(store: Store, study: str, slurm_id: str) -> list[Path]:
    """The files that one allocation, or one task of an array, has printed into: one for each process."""
    return sorted(folder_of(store, study).glob(f"{glob.escape(slurm_id)}_*_log.out"))


def logs_of(store: Store, name: str, allotted: Allotted | None) -> list[Path]:
    """All that was written about a job, its own log first."""
    own = store.job(name).log
    found = [own] if own.exists() else []
    return found + (slurm_outputs(store, allotted.study, allotted.slurm_id) if allotted else [])


def telling(store: Store, name: str, allotted: Allotted | None, since: float | None) -> Path | None:
    """The file whose end says why a job has ended: its own log, or SLURM's output where it never began this time.

    `since` is when its last attempt began, by its record.
    """
    own = store.job(name).log
    began = own.exists() and (allotted is None or (since is not None and since >= allotted.time))
    outputs = slurm_outputs(store, allotted.study, allotted.slurm_id) if allotted else []
    written = [path for path in outputs if path.stat().st_size]
    if began or not written:
        return own if own.exists() else None
    return written[0]


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a log."""
    return tail(path, LINE_BYTES * count)[-count:]


def by_slurm_id(journal: Journal, wanted: str) -> list[Allotted]:
    """The allocation with this id; of an array's number all its tasks."""
    return [each for each in journal.allotted if wanted in (each.slurm_id, each.slurm_id.partition("_")[0])]


def report_study(journal: Journal, wanted: str) -> str | None:
    """The study whose report job has this SLURM id."""
    return next((study for study, ids in journal.last_jobs.items() if wanted in ids), None)


def written_since(path: Path, offset: int) -> tuple[str, int]:
    """What a file holds behind `offset`, and where it ends now; from its start where it has become shorter."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(offset if offset <= end else 0)
            data = stream.read()
            return data.decode(errors="replace"), stream.tell()
    except FileNotFoundError:
        return "", 0
