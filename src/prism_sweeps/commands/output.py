"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.planning.outline import CellOutline
from prism_sweeps.planning.plan import PlannedCell

WIDE = 200
"""Columns of a table that goes into a file or a pipe."""
COLOURS = {
    "done": "green", "failed": "red", "lost": "red", "cancelled": "magenta", "silent": "red", "running": "cyan",
    "queued": "blue", "unknown": "yellow", "interrupted": "yellow", "partial": "yellow", "skipped": "dim",
}  # fmt: skip


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDE, no_color=True, highlight=False)


def say(text: str) -> None:
    """One line for whoever is there, apart from what the command prints."""
    print(f"prism: {text}", file=sys.stderr, flush=True)


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


def numbered(count: int, noun: str) -> str:
    """1 job, 2 jobs."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def confirmed(question: str, yes: bool, without: str) -> bool:
    """Whether to go on: said by --yes, or asked for on a terminal. Raises ConfigError where nobody can be asked."""
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{without}; nobody can be asked here, so say --yes")
    return asked(question)


def asked(question: str) -> bool:
    """A question on the terminal, where nothing but y means yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def label(cell: PlannedCell | CellOutline) -> str:
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
