"""What an index was made from: about.json beside it.

    {"benchmark": "gqa", "version": "1", "examples": 12578, "sha256": "... of index.jsonl", "reader": "gqa",
     "files": {"questions": {"path": "...", "sha256": "..."}}, "images": {"images": "/datasets/gqa/images"},
     "prism": "0.1.0"}

An index without one is the user's own, and is taken as it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.suite import Benchmark

ABOUT = "about.json"
INDEX = "index.jsonl"


def about_of(folder: Path) -> dict[str, Any] | None:
    """What is told about the index in `folder`; None where it was not made here. Raises DataError."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / ABOUT} cannot be read: {error}; {mend(folder.name)}") from error
    if not isinstance(about, dict) or not {"benchmark", "version", "sha256"} <= set(about):
        raise DataError(f"{folder / ABOUT} does not say of which benchmark the index is; {mend(folder.name)}")
    return about


def write_about(
    folder: Path,
    benchmark: Benchmark,
    examples: int,
    files: Mapping[str, Path],
    images: Mapping[str, Path],
) -> None:
    """Tells about the index in `folder`, which is whole."""
    about = {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "examples": examples,
        "sha256": hashlib.sha256((folder / INDEX).read_bytes()).hexdigest(),
        "reader": benchmark.origin and benchmark.origin.reader,
        "files": {name: {"path": str(path.absolute()), "sha256": content_sha256(path)} for name, path in files.items()},
        "images": {name: str(path.absolute()) for name, path in images.items()},
        "prism": importlib.metadata.version("prism-sweeps"),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def check_bytes(folder: Path, index: bytes) -> None:
    """Raises DataError if `index`, what index.jsonl holds, is not what was written when it was made."""
    about = about_of(folder)
    if about is not None and hashlib.sha256(index).hexdigest() != about["sha256"]:
        raise DataError(
            f"{folder / INDEX} is not as it was made: cut short, or edited; {mend(str(about['benchmark']))}. An index "
            f"of your own belongs into a folder of its own, without {ABOUT}"
        )


def check_made_for(folder: Path, benchmark: Benchmark) -> None:
    """Raises DataError for no index, one of another version of the benchmark, or one whose images are gone."""
    if not (folder / INDEX).is_file():
        raise DataError(f"{folder / INDEX} does not exist; {make(benchmark)}")
    about = about_of(folder)
    if about is None:
        return
    if about["version"] != benchmark.version:
        raise DataError(
            f"{folder / INDEX} is version {about['version']} of {about['benchmark']}, and {benchmark.name} is declared "
            f"as version {benchmark.version}: scores on the two do not compare; {mend(benchmark.name)}"
        )
    gone = [link.name for link in sorted(folder.iterdir()) if link.is_symlink() and not link.exists()]
    if gone:
        raise DataError(
            f"{folder / gone[0]} leads nowhere: the images have moved from {(folder / gone[0]).readlink()}; "
            f"{mend(benchmark.name)} --from FOLDER, the one with the images and the other official files"
        )


def make(benchmark: Benchmark) -> str:
    """How it comes to be."""
    if benchmark.origin is None:
        return "the benchmark does not say what it is made from (`origin`): put your own there"
    return f"make it from the official files: prism data prepare {benchmark.name}"


def mend(name: str) -> str:
    """How it is made anew."""
    return f"make it anew: prism data prepare {name}"


def content_sha256(path: Path) -> str:
    """Of a file's content; of a folder, that of the names and contents of its files, in their order."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    lines = [f"{content_sha256(file)}  {file.name}\n" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
