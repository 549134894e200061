"""Official files, opened. What is malformed in them is a DataError that names file and place."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import DataError


def json_of(path: Path) -> Any:
    """What a JSON file holds."""
    with readable(path):
        return json.loads(path.read_text(encoding="utf-8"))


def json_lines_of(path: Path) -> list[Any]:
    """What the lines of a file hold; empty ones do not count."""
    with readable(path):
        lines = path.read_text(encoding="utf-8").split("\n")
    return [parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def first_column_of(path: Path) -> list[str]:
    """The first cell of each row of a CSV file."""
    with readable(path), path.open(encoding="utf-8-sig", newline="") as stream:
        return [row[0].strip() for row in csv.reader(stream) if row and row[0].strip()]


def parsed(line: str, where: str) -> Any:
    """One line of JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Explains why a file cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path} is not what it should be: {error}") from error


@contextlib.contextmanager
def laid_out(where: str) -> Iterator[None]:
    """Explains that what is at `where` does not have the layout that is documented."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{where}: it has no {error}, which the official layout has") from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{where}: it does not have the official layout: {error}") from error
