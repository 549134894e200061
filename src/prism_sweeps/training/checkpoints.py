"""Checkpoints: folders that are complete or absent, checked when read, the newest good one first.

checkpoints/step-00000042/    tensors.safetensors (weights, optimiser, RNG)    state.json (the rest, with checksums)
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prism_sweeps.config.errors import StoreError
from prism_sweeps.models.weights import write_tensors
from prism_sweeps.tracking.files import sync_folder

FOLDER = re.compile(r"step-(\d{8})")
TENSORS = "tensors.safetensors"
STATE = "state.json"
VERSION = 1
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Checkpoint:
    """What a stage needs to go on: named tensors, and plain JSON-able state."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


# ---- on disk


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes `folder/step-XXXXXXXX`, durably and all at once, then removes all but the newest `keep`.

    Raises StoreError when it cannot be written (a full disk); older checkpoints are intact then.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".tmp-"))
        write_files(temporary, checkpoint)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"cannot write the checkpoint {final}: {reason(error)}; "
            f"{kept_text(folder)}; make room and run the job again to go on from there"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in numbered(folder)[max(keep, 1) :]:
        shutil.rmtree(old, ignore_errors=True)


def write_files(folder: Path, checkpoint: Checkpoint) -> None:
    tensors = folder / TENSORS
    write_tensors(tensors, {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
    state = {
        "version": VERSION,
        "step": checkpoint.step,
        "bytes": tensors.stat().st_size,
        "crc32": checksum(tensors),
        "state": checkpoint.state,
    }
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    sync_file(folder / STATE)
    sync_folder(folder)


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint in `folder` that is whole, or None; and, for each newer one that is not, what ails it.

    Raises StoreError for a checkpoint that a newer version of this package wrote.
    """
    damaged: list[str] = []
    for path in numbered(folder):
        try:
            return read_checkpoint(path), damaged
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error}) and was passed over")
    return None, damaged


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises OSError, ValueError, KeyError or SafetensorError when it is not as it was written."""
    written = json.loads((path / STATE).read_text(encoding="utf-8"))
    if written["version"] > VERSION:
        raise StoreError(
            f"{path} was written by a newer prism-sweeps (version {written['version']}, this one reads {VERSION}); "
            "go on with that one, or remove the folder to train the stage from its start"
        )
    tensors = path / TENSORS
    if tensors.stat().st_size != written["bytes"]:
        raise ValueError(f"{TENSORS} has {tensors.stat().st_size} bytes instead of {written['bytes']}")
    if checksum(tensors) != written["crc32"]:
        raise ValueError(f"the checksum of {TENSORS} does not match")
    return Checkpoint(written["step"], load_file(tensors), written["state"])


def numbered(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first."""
    found = [path for path in folder.glob("step-*") if FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def remove_all(folder: Path) -> None:
    """Removes every checkpoint and whatever a crash left beside them."""
    shutil.rmtree(folder, ignore_errors=True)


def kept_text(folder: Path) -> str:
    older = numbered(folder)
    return f"the one before, {older[0].name}, is kept" if older else "there is no earlier one"


def reason(error: OSError) -> str:
    return "the disk is full" if error.errno in FULL else str(error)


def sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def checksum(path: Path) -> int:
    """CRC-32: it is there to find damage, not malice."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


# ---- of a model and its optimiser


def capture(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Trainable weights, the optimiser's moments and step counts, and the RNG of the CPU (and GPU), by name."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in trainable(model).items():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{key}.{name}"] = value
    return tensors


def restore(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `capture`. Raises StoreError when the tensors are those of another model."""
    parameters = trainable(model)
    held = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    strange = held ^ parameters.keys() or {
        name for name, parameter in parameters.items() if tensors[f"model.{name}"].shape != parameter.shape
    }
    if strange:
        raise StoreError(
            f"the checkpoint is of another model: {len(strange)} tensors differ in name or shape, e.g. "
            f"{min(strange)}; remove the job's checkpoints folder to train the stage from its start"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    for full, value in tensors.items():
        if full.startswith("optimiser."):
            key, name = full.removeprefix("optimiser.").split(".", 1)
            # A copy, because the loaded tensors are views of the file, less aligned than those of the run before.
            optimiser.state[parameters[name]][key] = value.to(parameters[name].device, copy=True)
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
