"""What a checkpoint is on disk.

checkpoints/step-00000042/    rank-00000.safetensors ... (what each process wrote)    state.json (the rest, checksums)

The tensor files are those of `torch.distributed.checkpoint.HuggingFaceStorageWriter` with `save_distributed`: each part
under its tensor's name, where it begins in the whole in the file's metadata. So torch's reader puts them together for
any number of processes. They are not written by it, because it would copy all of them once more in memory, and its
processes talk to each other from the background, where one that dies leaves the others waiting.
"""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from prism_sweeps.config.errors import StoreError
from prism_sweeps.models.weights import write_tensors
from prism_sweeps.tracking.files import sync_folder

FOLDER = re.compile(r"step-(\d{8})")
STATE = "state.json"
VERSION = 2
FULL = (errno.ENOSPC, errno.EDQUOT)

Files = dict[str, dict[str, int]]
"""File name -> its `bytes` and `crc32`."""


@dataclass(frozen=True)
class Part:
    """What one process writes of a tensor."""

    tensor: Tensor
    offsets: list[int]
    """Where it begins in the whole, by dimension."""


def numbered(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first."""
    found = [path for path in folder.glob("step-*") if FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


# ---- writing


def written_by(rank: int, tensor: Tensor) -> Part | None:
    """What process `rank`, which this is, writes of a tensor; None where that is nothing."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return Part(tensor, [0] * tensor.dim()) if rank == 0 else None
    place = tensor.device_mesh.get_coordinate()
    if place is None or any(at for at, kind in zip(place, tensor.placements, strict=True) if kind.is_replicate()):
        return None
    part = tensor.to_local()
    if part.numel() == 0 < tensor.numel():
        return None  # fewer rows than processes
    (chunk,) = tensor.__create_chunk_list__()
    return Part(part, list(chunk.offsets))


def event_after(parts: Iterable[Part]) -> torch.cuda.Event | None:
    """What to wait for before copies from a GPU can be read."""
    if not any(part.tensor.is_cuda for part in parts):
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def described(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Name -> type and whole shape."""
    return {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()}


def write_part(
    folder: Path,
    name: str,
    tensors: dict[str, Tensor],
    offsets: dict[str, list[int]],
    copied: torch.cuda.Event | None,
) -> Files:
    """One process's file, durably; no file where it has nothing to write. Raises OSError. Runs in the background."""
    folder.mkdir(parents=True, exist_ok=True)
    if not tensors:
        return {}
    if copied is not None:
        copied.synchronize()
    path = folder / name
    places = {name: {"saved_offsets": place} for name, place in offsets.items()}
    write_tensors(path, tensors, {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)})
    return {name: {"bytes": path.stat().st_size, "crc32": checksum(path)}}


def write_state(folder: Path, content: dict[str, Any]) -> None:
    written = {"version": VERSION, "crc32": checksum_of(content), "content": content}
    with (folder / STATE).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(written))
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(folder)


def reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return "the disk is full" if error.errno in FULL else str(error)
    return f"{type(error).__name__}: {error}"


def checksum(path: Path) -> int:
    """CRC-32: it is there to find damage, not malice."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def checksum_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


# ---- reading


def read_state(path: Path) -> dict[str, Any]:
    """`content` of a checkpoint's state.json. Raises OSError or ValueError when it is not as it was written."""
    written = json.loads((path / STATE).read_text(encoding="utf-8"))
    version = written.get("version") if isinstance(written, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{STATE} does not tell its version")
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer prism-sweeps (version {version}, this one reads {VERSION}); "
            "go on with that one, or remove the folder to train the stage from its start"
        )
    if version < VERSION:
        raise ValueError(f"{STATE} has version {version}, which is no longer read")
    content = written.get("content")
    if not isinstance(content, dict) or checksum_of(content) != written.get("crc32"):
        raise ValueError(f"the checksum of {STATE} does not match")
    return content


def ailment(file: Path, written: dict[str, int]) -> str | None:
    try:
        if file.stat().st_size != written["bytes"]:
            return f"{file.name} has {file.stat().st_size} bytes instead of {written['bytes']}"
        return None if checksum(file) == written["crc32"] else f"the checksum of {file.name} does not match"
    except OSError as error:
        return str(error)


def check_model(held: dict[str, list[Any]], wanted: dict[str, list[Any]]) -> None:
    strange = {name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name)}
    if strange:
        raise StoreError(
            f"the checkpoint is of another model: {len(strange)} tensors differ in name, shape or type, e.g. "
            f"{min(strange)}; remove the job's checkpoints folder to train the stage from its start"
        )


def read_parts(path: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Into `tensors`, in place. The files have been checked: what fails here is the disk."""
    reader = dcp.HuggingFaceStorageReader(str(path))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a process alone is none to warn of
            dcp.load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise StoreError(f"the checkpoint {path} cannot be read: {error}; run the job again") from error
