"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prism_sweeps.planning.plan import PlannedCell

WIDE = 200
"""Columns of a table that goes into a file or a pipe."""
COLOURS = {"done": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "partial": "yellow"}


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDE, no_color=True, highlight=False)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A table of plain values; columns in `right` are aligned there."""
    made = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(coloured(str(value)) for value in row))
    return made


def coloured(text: str) -> str:
    """The words of states in their colours."""
    return f"[{COLOURS[text]}]{text}[/]" if text in COLOURS else escape(text)


def label(cell: PlannedCell) -> str:
    """What a cell changes."""
    return ", ".join(f"{axis}={value}" for axis, value in cell.overrides.items()) or "baseline"


def amount(value: float | None, unit: str = "") -> str:
    """A large number with three digits and a letter: 1.23 M, 45.6 P; ? when unknown."""
    if value is None:
        return "?"
    for letter in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(value) < 999.5 or letter == "Z":
            break
        value /= 1000
    return f"{value:.3g} {letter}{unit}".rstrip()
