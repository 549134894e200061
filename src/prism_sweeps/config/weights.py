"""What weights hold, as a hash: retrained weights under an old name are other weights."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ZOO = Path(__file__).parents[1] / "models" / "zoo"
"""Weights shipped with this package."""


def identity(reference: str) -> str:
    """`zoo:NAME` with the hash of what it holds when it is there; a hub id or a path as it stands."""
    kind, _, name = reference.partition(":")
    if kind != "zoo":
        return reference
    files = _files(ZOO / name)
    return f"{reference}#{_digest(files)}" if files else reference


def _files(path: Path) -> tuple[tuple[str, Path, int, int], ...]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in found if file.is_file()]
    return tuple((str(file.relative_to(path)), file, stat.st_mtime_ns, stat.st_size) for file, stat in stats)


@cache
def _digest(files: tuple[tuple[str, Path, int, int], ...]) -> str:
    """Hash of names and contents; the times and sizes among the arguments only keep the cache honest."""
    whole = hashlib.sha256()
    for name, path, _, _ in files:
        whole.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]
