"""Prepared datasets by name: made once, whole or not at all, whoever asks first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from prism_sweeps.config.compose import design_space
from prism_sweeps.config.errors import DataError, nearest
from prism_sweeps.data.easy_vqa import prepare_easy_vqa
from prism_sweeps.data.nano_world.prepare import NANO_WORLD_VERSION, drawn_by, prepare_benchmarks, prepare_training

Progress = Callable[[int, int, str], None]
Make = Callable[[Path, int, Progress], None]
"""Writes a dataset into a folder, with so many worker processes, telling (done, total, note)."""

SCENES = re.compile(r"nano-world-([1-9]\d{0,8})")
BENCHMARKS = re.compile(r"nano-benchmarks(?:-([1-9]\d{0,5}))?")
NAMES = ("nano-world-6000", "nano-benchmarks", "easy-vqa")
BENCHMARK_EXAMPLES = 1000


def ensure_dataset(name: str, data_root: Path, workers: int, progress: Progress) -> Path:
    """The folder of dataset `name` under `data_root`, made now when it is not there.

    Known are `nano-world-<N>` (training conversations about N scenes), `nano-benchmarks` (twelve benchmarks of 1000
    examples), `nano-benchmarks-<N>` (of N, which begin with the same ones) and `easy-vqa`; any other folder that exists
    is taken as it is. `workers` 0 is one per core. Of several processes that ask at a time one prepares and the others
    wait. Raises DataError for a name that is neither, and for a nano world drawn by another version of its recipe.
    """
    folder = data_root / name
    if folder.is_dir():
        check_recipe(folder)
        return folder
    make = maker(name)
    if make is None and (benchmarks := benchmarks_in(name)):
        raise DataError(
            f"there is no {folder}, the index of {' and '.join(benchmarks)}; it is made from the official files: "
            f"prism data prepare {' '.join(benchmarks)}"
        )
    if make is None:
        raise DataError(
            f"there is no dataset '{name}' in {data_root} and no recipe that prepares it (nano-world-<N> takes any "
            f"number of scenes); {nearest(name, NAMES)}. The index of a benchmark of your own is put there, or made "
            "first, where it has an `origin`: prism data prepare BENCHMARK --config-dir FOLDER"
        )
    data_root.mkdir(parents=True, exist_ok=True)
    with locked(data_root / f".{name}.lock"):
        if not folder.is_dir():
            prepare(make, folder, workers or len(os.sched_getaffinity(0)), progress)
    return folder


def check_recipe(folder: Path) -> None:
    """Raises DataError if the nano world in `folder` was drawn by another version of the recipe than today's."""
    drawn = drawn_by(folder)
    if drawn not in (None, NANO_WORLD_VERSION) and maker(folder.name):
        raise DataError(
            f"{folder} was drawn by version {drawn} of the nano world's recipe, today's is {NANO_WORLD_VERSION}, and "
            "results on the two do not compare; move the folder away, and it is drawn anew"
        )


def benchmarks_in(name: str) -> list[str]:
    """The package's benchmarks whose index is in that dataset and made from official files."""
    files = design_space().files
    declared = {choice: files.load("benchmark", choice).benchmark for choice in files.names("benchmark")}
    return [
        choice
        for choice, benchmark in declared.items()
        if benchmark.index.partition("/")[0] == name and benchmark.get("origin")
    ]


def maker(name: str) -> Make | None:
    """The recipe of a dataset, by its name."""
    if scenes := SCENES.fullmatch(name):
        count = int(scenes[1])
        return lambda folder, workers, progress: prepare_training(folder, count, workers, progress)
    if benchmarks := BENCHMARKS.fullmatch(name):
        examples = int(benchmarks[1] or BENCHMARK_EXAMPLES)
        return lambda folder, workers, progress: prepare_benchmarks(folder, examples, workers, progress)
    return prepare_easy_vqa if name == "easy-vqa" else None


def prepare(make: Make, folder: Path, workers: int, progress: Progress) -> None:
    """Makes the dataset beside its place and moves it there when it is whole; what is there then goes.

    Call it with the dataset's lock held.
    """
    for abandoned in folder.parent.glob(f".{folder.name}.tmp-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-"))
    try:
        make(temporary, workers, progress)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rename(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-"))
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:  # a full disk, in safetensors' words
        raise DataError(f"'{folder.name}' cannot be written to {folder}: {error}; nothing was left") from error
    finally:
        for leftover in folder.parent.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for an exclusive lock on `path`; the kernel frees it when its holder ends, however that happens."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
