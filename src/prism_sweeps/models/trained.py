"""Trained weights on disk: of each module that a stage changed, safetensors as the hub has them.

weights/    projector.safetensors
            llm.safetensors, or where it is larger than a shard may be:
            llm-00001-of-00003.safetensors ... llm.safetensors.index.json
            {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prism_sweeps.config.errors import StoreError
from prism_sweeps.config.schema import MODULES
from prism_sweeps.models.vlm import VLM
from prism_sweeps.models.weights import write_tensors

SHARD_BYTES = 5_000_000_000
"""The hub's convention for what one file holds."""
INDEX = ".index.json"
SHARD_NAME = re.compile(r"(?P<module>.+)-\d{5}-of-\d{5}")
REMEDY = "run the stage that wrote it again"


def save_trained(
    vlm: VLM,
    folder: Path,
    modules: Sequence[str],
    dtype: torch.dtype | None = None,
    group: dist.ProcessGroup | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `modules`, in `dtype` if it is given, into `folder`, which appears only when it is complete.

    All processes of `group` (None: all there are) call it and return together. Sharded tensors are gathered one at a
    time; only the first process keeps them, a file's worth, and writes, and only its `folder` matters. Tied tensors
    are stored once. Raises OSError in the first process and StoreError in the others.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    held = {name: own_tensors(vlm.get_submodule(name)) for name in modules}
    try:
        _by_first(partial(temporary.mkdir, parents=True), group)
        for name, tensors in held.items():
            _save_module(tensors, temporary / f"{name}.safetensors", dtype, group, shard_bytes)
        _by_first(partial(_put_in_place, temporary, folder), group)
    finally:
        if _is_first(group):
            shutil.rmtree(temporary, ignore_errors=True)


def load_trained(vlm: VLM, weights: Path) -> None:
    """Put the modules that `save_trained` wrote into `vlm`, in its own types, a file at a time.

    Raises StoreError for files that are missing, not whole or of another model.
    """
    held = trained_modules(weights)
    if not held or held - set(MODULES):
        raise StoreError(f"trained weights '{weights}' should hold some of {', '.join(MODULES)}, has {sorted(held)}")
    for name in sorted(held):
        _load_module(vlm.get_submodule(name), weights / f"{name}.safetensors")


def trained_modules(weights: Path) -> set[str]:
    """Which modules a folder holds; none where there is no folder."""
    names = {path.name.removesuffix(INDEX).removesuffix(".safetensors") for path in weights.glob("*.safetensors*")}
    return {found["module"] if (found := SHARD_NAME.fullmatch(name)) else name for name in names}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Each tensor of a module once: tied weights (an LM head that is its embedding) go under their first name."""
    first: dict[int, str] = {}
    # Asking for the state makes FSDP put away what it has gathered to compute with.
    tensors = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if first.setdefault(id(tensor), name) == name}


# ---- writing


def _save_module(
    tensors: dict[str, Tensor], path: Path, dtype: torch.dtype | None, group: dist.ProcessGroup | None, limit: int
) -> None:
    sizes = {name: tensor.numel() * _kept_as(tensor, dtype).itemsize for name, tensor in tensors.items()}
    shards = shards_of(sizes, limit)
    files = [path]
    if len(shards) > 1:
        files = [path.with_stem(f"{path.stem}-{n:05d}-of-{len(shards):05d}") for n in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        kept = {}
        for name in names:
            whole = _whole(tensors[name], dtype)
            if _is_first(group):
                kept[name] = whole.cpu().contiguous()
        _by_first(partial(write_tensors, file, kept), group)
    if len(shards) > 1:
        places = {name: file.name for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        _by_first(partial(_write_text, _index_of(path), json.dumps(index, indent=2) + "\n"), group)


def shards_of(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut so that a shard has at most `limit` bytes; a larger tensor has one of its own."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _kept_as(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _whole(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    kept = tensor.detach().to(_kept_as(tensor, dtype))
    return kept.full_tensor() if isinstance(kept, DTensor) else kept


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + INDEX)


def _put_in_place(temporary: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _is_first(group: dist.ProcessGroup | None) -> bool:
    return not dist.is_initialized() or dist.get_rank(group) == 0


def _by_first(action: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Has the first process do it, while the others wait; where it fails, all do."""
    if not dist.is_initialized():
        return action()
    failure: Exception | None = None
    if _is_first(group):
        try:
            action()
        except Exception as error:  # it is raised below, after the others know
            failure = error
    said = [None if failure is None else str(failure)]
    dist.broadcast_object_list(said, group_src=0, group=group)
    if failure is not None:
        raise failure
    if said[0] is not None:
        raise StoreError(f"the first process could not write the trained weights: {said[0]}")
    return None


# ---- reading


def _load_module(module: nn.Module, path: Path) -> None:
    places = _places(path)
    strange = own_tensors(module).keys() ^ places.keys()
    if strange:
        raise StoreError(f"'{path}' is of another model: {sorted(strange)[:3]} do not match")
    for file in sorted(set(places.values())):
        try:
            tensors = load_file(file)
            if tensors.keys() != {name for name, place in places.items() if place == file}:
                raise StoreError(f"'{file}' does not hold what {_index_of(path).name} says; {REMEDY}")
            module.load_state_dict(tensors, strict=False)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise StoreError(f"'{file}' cannot be loaded: {error}; {REMEDY}") from error


def _places(path: Path) -> dict[str, Path]:
    """Tensor -> the file it is in."""
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as opened:
                return dict.fromkeys(opened.keys(), path)
        except (SafetensorError, OSError) as error:
            raise StoreError(f"'{path}' cannot be loaded: {error}; {REMEDY}") from error
    index = _index_of(path)
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: path.with_name(Path(file).name) for name, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"'{index}' is no map of tensors to files ({error!r}); {REMEDY}") from error
