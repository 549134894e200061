"""What models have answered, kept apart from what a scorer makes of it.

    <root>/answers/<asking>/<writer>.jsonl     one row per answer, appended as they come
    <root>/jobs/<job>/answers                  a link to the folder

`asking` is a fingerprint of model, condition, precision and benchmark without all that concerns scores alone, so jobs
that score the same answers otherwise, or more of them, find those that are there. Each process has a file of its own,
so none can harm what another one writes; which processes there were is of no importance to who reads.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prism_sweeps.config.fingerprint import fingerprint
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec
from prism_sweeps.tracking.files import append_rows, explained, make_folder, read_rows
from prism_sweeps.tracking.records import JobRecord, Store

SCORING: dict[str, Any] = {
    "name": "",
    "scorer": "",
    "iou_threshold": 0.5,
    "box_frame": "image",
    "box_units": "normalised",
    "examples": None,
    "sampling": "first",
    "each": None,
}
"""What of a benchmark has no part in what a model is asked."""


def asking(spec: EvaluationSpec | BaselineSpec) -> str:
    """Which model is asked what, whatever is made of its answers."""
    return fingerprint(replace(spec, benchmark=replace(spec.benchmark, **SCORING), scorer_version=1))


@dataclass(frozen=True)
class AnswerFiles:
    """The answers to what one job asks, also those that other jobs have got."""

    folder: Path
    writer: str
    """The name of this process's file, which nobody else has."""

    @classmethod
    def of(cls, spec: EvaluationSpec | BaselineSpec, record: JobRecord, store: Store) -> AnswerFiles:
        """Those of the job with this record, which gets a link to them."""
        folder = store.root / "answers" / asking(spec)
        writer = f"{record.fingerprint}-{uuid.uuid4().hex[:8]}"
        make_folder(folder)
        wanted = os.path.relpath(folder, record.path)
        with explained("link", record.answers, "the answers that are there are kept"):
            if not record.answers.is_symlink() or str(record.answers.readlink()) != wanted:
                # Not by the number of the process, which two machines may have given at once.
                temporary = record.answers.with_name(f".{writer}.tmp")
                temporary.symlink_to(wanted)
                temporary.replace(record.answers)
        return cls(folder, writer)

    def read(self, writers: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
        """Request -> row. Where several have answered the same one, the first by file name counts.

        What `writers` have written on other machines is there in any case: a shared file system may list new files only
        half a minute late, but opens those whose names it is told.
        """
        rows: dict[str, dict[str, Any]] = {}
        for path in sorted({*self.folder.glob("*.jsonl"), *map(self.file_of, writers)}):
            for row in read_rows(path):
                rows.setdefault(row["request"], row)
        return rows

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds answers of this process, durably. Each row has its `request`. Raises StoreError."""
        append_rows(self.file_of(self.writer), rows, durable=True)

    def file_of(self, writer: str) -> Path:
        return self.folder / f"{writer}.jsonl"


def asked_by(record: JobRecord) -> int:
    """How many answers the processes of this very job have got."""
    files = record.answers.glob(f"{record.fingerprint}-*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in files)
