"""Where weights are, and what is said when they are not there or do not fit."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.small_weights import SMALL, small_root
from prism_sweeps.config.weights import is_small

ZOO = Path(__file__).parent / "zoo"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
OFFLINE = (
    "Download it on a machine with network (`hf download REPOSITORY`) into the HF_HOME that the jobs see, unset "
    "HF_HUB_OFFLINE if this machine has network, or give a local path instead"
)


def locate(reference: str, owner: str) -> int | Path | None:
    """`random:SEED` -> the seed; `zoo:NAME`, `small:NAME` or a path that exists -> the path; anything else -> None.

    Raises ConfigError, naming `owner`, for a zoo entry or seed that is none and small weights that are not there.
    """
    kind, _, name = reference.partition(":")
    if kind == "random":
        if not name.isdigit():
            raise ConfigError(
                f"{owner}: weights '{reference}' should be random:SEED with a whole number, e.g. random:1"
            )
        return int(name)
    if kind == "zoo":
        path = ZOO / name
        if not name or not path.exists():
            shipped = [entry.name for entry in ZOO.iterdir()] if ZOO.is_dir() else []
            raise ConfigError(
                f"{owner}: the zoo has no '{name}'; {nearest(name, shipped)}. What is missing of it is built by "
                "`python -m prism_sweeps.training.zoo missing`"
            )
        return path
    if kind == "small":
        return _small(name, owner)
    path = Path(reference).expanduser()
    return path if path.exists() else None


def _small(name: str, owner: str) -> Path:
    folder = name.partition("/")[0]
    if folder not in SMALL:
        raise ConfigError(f"{owner}: there are no small weights '{folder}'; {nearest(folder, SMALL)}")
    if not is_small(folder):
        raise ConfigError(
            f"{owner}: the small weights '{folder}' are not in {small_root()}, or an earlier recipe made them: "
            "run `prism data prepare small`"
        )
    return small_root() / name


@contextmanager
def private_seed(seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts from `seed`; outside, it is as if nothing had drawn from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, flushed to the disk. Raises OSError, whose number says why."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        # It writes from Rust and tells the error number in its text only.
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
    with path.open("rb") as written:
        os.fsync(written.fileno())


def read_tensors(path: Path, owner: str) -> dict[str, Tensor]:
    """All tensors of one safetensors file, on the CPU."""
    if not path.is_file():
        raise ConfigError(f"{owner}: weights '{path}' should be one .safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{owner}: '{path}' is not a whole safetensors file ({error}); fetch or write it again"
        ) from error


def put_tensors(module: torch.nn.Module, tensors: Mapping[str, Tensor], owner: str, path: Path) -> None:
    """Load `tensors` into `module`, which has to have exactly these names and shapes."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise ConfigError(
            f"{owner}: '{path}' holds another architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} not known {extra[:3]}; give the architecture these weights were made with"
        )
    wrong = [
        f"{n} is {list(tensors[n].shape)}, not {list(own[n].shape)}" for n in own if tensors[n].shape != own[n].shape
    ]
    if wrong:
        position = any("pos" in line.split(" ", 1)[0] for line in wrong)
        cure = "name weights made for this resolution" if position else "give the shape these weights were made with"
        raise ConfigError(f"{owner}: '{path}' does not fit: {'; '.join(wrong[:4])} ({len(wrong)} in all); {cure}")
    module.load_state_dict(dict(tensors))


def check_shape(owner: str, stated: Mapping[str, Any], real: Mapping[str, Any]) -> None:
    """Raise ConfigError where the config states a shape other than the module's; a real value of None is not known."""
    wrong = [f"{key}: {stated[key]} should be {real[key]}" for key in stated if real[key] not in (None, stated[key])]
    if wrong:
        raise ConfigError(f"{owner}: the config states another shape than the model has: {'; '.join(wrong)}")
