"""The throughput table of a store: one row for each finished job, which later plans estimate by.

`<root>/throughput.jsonl` is written by jobs of any process and host, one at a time: each holds `throughput.lock` while
it adds its row, and the kernel lets go of that when a process dies.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.config.plain import from_plain, plain
from prism_sweeps.planning.measured import Evaluated, Measured, Row, Settings
from prism_sweeps.tracking.files import append_rows, make_folder, only_one, read_rows

FILE, LOCK = "throughput.jsonl", "throughput.lock"


def add(store_root: Path, row: Row) -> None:
    """Adds one row, whole, after those that others add at the same time. Raises StoreError."""
    with only_one(make_folder(store_root) / LOCK, "no row was added"):
        append_rows(store_root / FILE, [plain(row)], durable=True)


def read(store_root: Path) -> list[Row]:
    """All rows, the oldest first; [] where nothing was measured, and for a store that is not there.

    Keys that this version does not know are passed over. Raises StoreError, naming the line, for one that is no row.
    """
    path = store_root / FILE
    return [_row(content, f"{path}, line {number}") for number, content in enumerate(read_rows(path), start=1)]


def _row(content: Any, where: str) -> Row:
    evaluated = isinstance(content, dict) and content.get("kind") == Evaluated.kind
    try:
        row = _evaluated(content, where) if evaluated else _measured(content, where)
    except ConfigError as error:
        raise StoreError(f"{error}; remove that line") from error
    for number in ("tokens_per_second", "examples_per_second", "flops_per_second", "ranks"):
        if not getattr(row, number, 1) > 0:
            raise StoreError(f"{where}: {number} is {getattr(row, number)}, not more than 0; remove that line")
    return row


def _evaluated(content: Any, where: str) -> Row:
    return from_plain(Evaluated, _known(Evaluated, content), where)


def _measured(content: Any, where: str) -> Row:
    known = _known(Measured, content)
    return from_plain(Measured, {**known, "settings": _known(Settings, known.get("settings"))}, where)


def _known(kind: type, content: Any) -> dict[str, Any]:
    entries = content if isinstance(content, dict) else {}
    return {each.name: entries[each.name] for each in fields(kind) if each.name in entries}
