"""Checkpoints of a run of any number of processes, written in the background: whole or absent, checked when read.

Every process writes its own part and needs no other for it. When all have written, the first gives the checkpoint its
name; until then, and when anything is killed before, it is in a folder that nobody takes for one.
"""

from __future__ import annotations

import enum
import json
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prism_sweeps.config.errors import StoreError
from prism_sweeps.tracking.files import sync_folder
from prism_sweeps.training.checkpoint_files import (
    Files,
    ailment,
    check_model,
    described,
    event_after,
    numbered,
    read_parts,
    read_state,
    reason,
    write_part,
    write_state,
    written_by,
)
from prism_sweeps.training.world import by_first, gathered, rank_in

UNSEEN = ".tmp-"
"""How folders begin that are no checkpoint yet or no longer; those of an earlier attempt are what a kill left."""


class Progress(enum.IntEnum):
    """How far a process is with its part. The largest over all processes is how far the checkpoint is."""

    WRITTEN = 0
    """Or there is none."""
    WRITING = 1
    FAILED = 2


@dataclass(frozen=True)
class Loaded:
    """What `load_newest` found."""

    step: int | None
    """None: there is no checkpoint, and no tensor was touched."""
    state: dict[str, Any]
    damaged: list[str]
    """For each newer checkpoint that could not be used, what ails it."""


@dataclass(frozen=True)
class Write:
    """A checkpoint under way."""

    step: int
    folder: Path
    content: dict[str, Any]
    files: Future[Files]
    """What this process writes."""


class Checkpoints:
    """Checkpoints of one run in `folder`, of which the newest `keep` stay.

    `group` is a gloo group of all processes, None for a process alone. All of them call the constructor and every
    method at the same step; only `progress` is each one's own.
    """

    def __init__(self, folder: Path, keep: int, group: dist.ProcessGroup | None) -> None:
        self.folder = folder
        self.keep = max(keep, 1)
        self.group = group
        self.rank = rank_in(group)
        self._mark = by_first(lambda: f"{UNSEEN}{uuid.uuid4().hex[:8]}-", group)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._held: dict[str, Tensor] = {}
        self._write: Write | None = None
        if self.rank == 0:
            for leftover in folder.glob(f"{UNSEEN}*"):
                if not leftover.name.startswith(self._mark):
                    shutil.rmtree(leftover, ignore_errors=True)

    def begin(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> float:
        """Copies `tensors` and lets a thread write them; they may change as soon as this returns.

        Every process gives the same names; of a DTensor each writes its shard, of what several hold alike only one, and
        of a plain tensor the first process. `state`, JSON-able, is the first process's. Returns the seconds it had to
        wait for the checkpoint before, which it finishes. Raises StoreError when that failed.
        """
        began = time.monotonic()
        self.finish()
        waited = time.monotonic() - began
        parts = {name: part for name, tensor in tensors.items() if (part := written_by(self.rank, tensor)) is not None}
        copies = {name: self._copied(name, part.tensor) for name, part in parts.items()}
        offsets = {name: part.offsets for name, part in parts.items()}
        copied = event_after(parts.values())
        folder = self.folder / f"{self._mark}{step:08d}"
        content = {"step": step, "state": json.loads(json.dumps(state)), "tensors": described(tensors)}
        file = f"rank-{self.rank:05d}.safetensors"
        files = self._thread.submit(write_part, folder, file, copies, offsets, copied)
        self._write = Write(step, folder, content, files)
        return waited

    def progress(self) -> Progress:
        """How far this process's part is. The largest over all says what to call: `commit`, nothing yet, `abandon`."""
        if self._write is None:
            return Progress.WRITTEN
        if not self._write.files.done():
            return Progress.WRITING
        return Progress.WRITTEN if self._write.files.exception() is None else Progress.FAILED

    def commit(self) -> None:
        """Makes a checkpoint that all have written visible, durably; nothing when none was begun.

        Raises StoreError in all processes when it cannot; the checkpoints before are intact then.
        """
        if self._write is None:
            return
        write, self._write = self._write, None
        files = gathered(write.files.result(), self.group)
        failure = by_first(lambda: self._show(write, files), self.group)
        if failure is not None:
            raise StoreError(by_first(lambda: self._given_up(write, failure), self.group))

    def abandon(self) -> None:
        """Raises StoreError in all processes, with the reason of the first that could not write its part.

        The checkpoints before are intact; what was written of this one is removed.
        """
        if self._write is None:
            return
        write, self._write = self._write, None
        error = write.files.exception()
        reasons = gathered(None if error is None else reason(error), self.group)
        failure = next(text for text in reasons if text is not None)
        raise StoreError(by_first(lambda: self._given_up(write, failure), self.group)) from error

    def finish(self) -> None:
        """Waits for the write under way in all processes; then `commit`, or `abandon` where any has failed."""
        if self._write is None:
            return
        if any(gathered(self._write.files.exception() is not None, self.group)):
            self.abandon()
        self.commit()

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        """`tensor` in main memory that is kept for the next time: fresh memory, pinned even more so, takes longer."""
        held = self._held.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._held[name] = held
        return held.copy_(tensor, non_blocking=tensor.is_cuda)

    def _show(self, write: Write, files: Sequence[Files]) -> str | None:
        """Gives a written checkpoint its name and takes that of those too old; what went wrong, or None."""
        final = self.folder / f"step-{write.step:08d}"
        try:
            write_state(write.folder, write.content | {"files": dict(chain(*(part.items() for part in files)))})
            if final.exists():
                self._discard(final)
            write.folder.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            return reason(error)
        # What is newer was passed over as damaged when this run was loaded, or the run would have gone on from there.
        newer = [path for path in numbered(self.folder) if path.name > final.name]
        with suppress(OSError):  # one too many is in nobody's way
            for path in newer + numbered(self.folder)[len(newer) + self.keep :]:
                self._discard(path)
        return None

    def _discard(self, path: Path) -> None:
        """Takes a checkpoint out of sight at once, and off the disk in the background."""
        hidden = path.with_name(f"{self._mark}{uuid.uuid4().hex[:8]}")
        path.rename(hidden)
        self._thread.submit(shutil.rmtree, hidden, ignore_errors=True)

    def _given_up(self, write: Write, failure: str) -> str:
        shutil.rmtree(write.folder, ignore_errors=True)
        older = numbered(self.folder)
        kept = f"the one before, {older[0].name}, is kept" if older else "there is no earlier one"
        return (
            f"cannot write the checkpoint {self.folder / f'step-{write.step:08d}'}: {failure}; "
            f"{kept}; make room and run the job again to go on from there"
        )


def load_newest(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> Loaded:
    """Copies the newest whole checkpoint of `folder` into `tensors`; of a DTensor, its part into each process's shard.

    The number of processes may be another than when it was written. All of `group` call it and find the same; the
    checking of files is divided between them. Raises StoreError for a checkpoint of another model, or one that a newer
    version of this package wrote.
    """
    damaged: list[str] = []
    for path in by_first(lambda: numbered(folder), group):
        try:
            content = by_first(lambda path=path: read_state(path), group)
            check_files(path, content["files"], group)
        except (OSError, ValueError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error}) and was passed over")
            continue
        check_model(content["tensors"], described(tensors))
        read_parts(path, tensors, group)
        return Loaded(content["step"], content["state"], damaged)
    return Loaded(None, {}, damaged)


def check_files(path: Path, files: Files, group: dist.ProcessGroup | None) -> None:
    """Raises ValueError, in every process, when a file is not as it was written; each is read by one of them."""
    size = 1 if group is None else dist.get_world_size(group)
    ailments = [ailment(path / name, files[name]) for name in sorted(files)[rank_in(group) :: size]]
    for found in chain(*gathered(ailments, group)):
        if found is not None:
            raise ValueError(found)


def remove_all(folder: Path) -> None:
    """Removes every checkpoint and whatever a crash left beside them."""
    shutil.rmtree(folder, ignore_errors=True)
