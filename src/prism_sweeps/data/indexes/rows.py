"""The rows of an index, and their ids.

What a row holds is told in `evaluation.benchmarks`; besides, `source_id` is what the publisher calls the example, where
it has a name, so that answers can be handed in and compared elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prism_sweeps.config.errors import DataError

Row = dict[str, Any]
ID_DIGITS = 16


def index_row(
    image: str,
    question: str,
    answers: Sequence[str],
    *,
    source_id: str | int | None = None,
    options: Sequence[str] | None = None,
    box: Sequence[float] | None = None,
    context: str | None = None,
    tags: dict[str, Any] | None = None,
) -> Row:
    """One row without its id; what is None is left out. `image` is FOLDER/PATH, FOLDER being one of `Origin.images`."""
    fields = {
        "image": image,
        "question": question,
        "answers": list(answers),
        "options": options and list(options),
        "box": box and list(box),
        "context": context,
        "tags": tags,
        "source_id": None if source_id is None else str(source_id),
    }
    return {name: value for name, value in fields.items() if value is not None}


def example_id(row: Row, earlier: int = 0) -> str:
    """The id of a row: 16 hex digits of the sha256 of all it holds but an id; `earlier` rows are exactly like it.

    It depends neither on the order of a file, nor on that of a row's fields, nor on the process (Python salts `hash`).
    Raises DataError for what JSON cannot hold.
    """
    try:
        content = json.dumps({key: value for key, value in row.items() if key != "id"}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise unwritable(row, error) from None
    text = f"{content}\n{earlier}" if earlier else content
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def with_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each with its id in front."""
    seen: Counter[str] = Counter()
    for row in rows:
        plain = example_id(row)
        yield {"id": example_id(row, seen[plain]) if seen[plain] else plain, **row}
        seen[plain] += 1


def index_line(row: Row) -> bytes:
    """The row as a line of index.jsonl. Raises DataError for what JSON or UTF-8 cannot hold."""
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise unwritable(row, error) from None


def unwritable(row: Row, error: Exception) -> DataError:
    """Why a row is refused."""
    return DataError(f"the row {str(row)[:200]!r} cannot be written as JSON: {error}")


def unit_box(corners: Sequence[float], size: Sequence[float], where: str) -> list[float]:
    """x1, y1, x2, y2 in pixels as shares of the image, not rounded. Raises DataError that begins with `where`."""
    width, height = size
    x1, y1, x2, y2 = corners
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise DataError(
            f"{where}: {x1}, {y1}, {x2}, {y2} are no corners of a box in an image of {width} x {height} pixels"
        )
    return [x1 / width, y1 / height, x2 / width, y2 / height]
