"""What a benchmark asks: its index of examples, and the prompt each becomes.

An index is a file `index.jsonl` in the benchmark's folder, one JSON object per line:

    {"id": "17-0", "image": "images/17.png", "question": "What colour is the car?", "answers": ["red"],
     "options": ["red", "blue"], "box": [0.1, 0.2, 0.5, 0.9], "context": "STOP", "tags": {"split": "random"}}

`answers` are the ten human answers for the soft-accuracy scorers and one answer otherwise (for lettered options, the
letter of the right one); `options`, `box` (normalised x1, y1, x2, y2), `context` and `tags` may be absent or null.
`image` is a path inside of the benchmark's folder; a link there may lead to images anywhere.
Without `id` a row is called by a hash of what it holds. Beside an index that `prism data prepare` made lies an
about.json, and it is held to what that says. One of your own that changes wants another `version` in its declaration.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.data.indexes.about import INDEX, check_bytes, check_made_for
from prism_sweeps.data.indexes.rows import example_id
from prism_sweeps.evaluation.boxes import Box, valid_box

LETTERS = "ABCDEFGHIJKLMNOP"
PLACEHOLDER = re.compile(r"\{(\w+)\}")
FIELDS = ("question", "options", "context")


@dataclass(frozen=True)
class Example:
    """One question about one image."""

    id: str
    image: Path
    key: str
    """The image as the index names it: questions with one key share their image."""
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] | None = None
    box: Box | None = None
    context: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)


def read_index(folder: Path) -> list[Example]:
    """The examples of the index in `folder`.

    Raises DataError that names file and line for a missing file, a malformed line or an id that occurs twice, and for
    an index that was cut short or edited since it was made.
    """
    index = folder / INDEX
    examples: list[Example] = []
    seen: dict[str, int] = {}
    unnamed: Counter[str] = Counter()
    for number, line in enumerate(index_lines(index), start=1):
        if not line.strip():
            continue
        example = parse_example(line, folder, f"{index}, line {number}", unnamed)
        if example.id in seen:
            raise DataError(f"{index}, line {number}: id '{example.id}' was used before, on line {seen[example.id]}")
        seen[example.id] = number
        examples.append(example)
    if not examples:
        raise DataError(f"{index} has no examples; it should hold one JSON object per line")
    return examples


def index_of(folder: Path, benchmark: Benchmark) -> list[Example]:
    """The examples of the benchmark's index in `folder`.

    Raises DataError, with the command that mends it, for no index, one of another version of the benchmark, or one
    whose images are gone; else as `read_index`.
    """
    check_made_for(folder, benchmark)
    return read_index(folder)


def index_lines(index: Path) -> list[str]:
    try:
        content = index.read_bytes()
        check_bytes(index.parent, content)
        return content.decode("utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{index} does not exist; prepare the benchmark's data first (prism data)") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{index} is not UTF-8 text: {error}") from None


def parse_example(line: str, folder: Path, where: str, unnamed: Counter[str]) -> Example:
    """One line of an index; `unnamed` counts equal rows without an id. Raises DataError that starts with `where`."""
    try:
        row = json.loads(line)
        # JSON can escape half a character, which no tokenizer takes and no file can hold.
        json.dumps(row if "\\u" in line else None, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is wanted, not {type(row).__name__}")
    image = image_of(row, where)
    return Example(
        id=string(row, "id", where) if "id" in row else content_id(row, unnamed),
        image=folder / image,
        key=image,
        question=string(row, "question", where),
        answers=strings(row, "answers", where) or (),
        options=strings(row, "options", where),
        box=box_of(row, where),
        context=None if row.get("context") is None else string(row, "context", where),
        tags=tags_of(row, where),
    )


def content_id(row: dict[str, Any], unnamed: Counter[str]) -> str:
    """The id of a row that has none."""
    plain = example_id(row)
    unnamed[plain] += 1
    return example_id(row, unnamed[plain] - 1)


def string(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise DataError(f"{where}: '{key}' should be a string, and is {json.dumps(row.get(key))[:80]}")
    return row[key]


def image_of(row: dict[str, Any], where: str) -> str:
    """The image as the index names it, which is what scores are kept by: nothing of this machine alone."""
    image = string(row, "image", where)
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in image:
        raise DataError(
            f"{where}: 'image' should be a path inside of the index's folder, and is {json.dumps(image)[:80]}; a link "
            "in that folder may lead to images elsewhere"
        )
    return image


def strings(row: dict[str, Any], key: str, where: str) -> tuple[str, ...] | None:
    values = row.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: '{key}' should be a list of strings, and is {json.dumps(values)[:80]}")
    return tuple(values)


def box_of(row: dict[str, Any], where: str) -> Box | None:
    numbers = row.get("box")
    if numbers is None:
        return None
    are_numbers = isinstance(numbers, list) and all(type(number) in (int, float) for number in numbers)
    box = valid_box(numbers) if are_numbers else None
    if box is None:
        raise DataError(
            f"{where}: 'box' should be [x1, y1, x2, y2] within 0..1 with x1 < x2 and y1 < y2, "
            f"and is {json.dumps(numbers)[:80]}"
        )
    return box


def tags_of(row: dict[str, Any], where: str) -> dict[str, Any]:
    tags = row.get("tags") or {}
    if not (isinstance(tags, dict) and all(map(is_scalar, tags.values()))):
        raise DataError(f"{where}: 'tags' should map names to strings, numbers or booleans")
    return tags


def is_scalar(value: object) -> bool:
    """Whether JSON can hold it as a text, a number (NaN is none) or a boolean."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def render_prompt(template: str, example: Example) -> str:
    """The text asked about an example: `template` with {question}, {options} (lines "A. x") and {context} filled in.

    What is filled in is never looked at again, so braces in the data are harmless. Raises ConfigError for an unknown
    placeholder and DataError when the example lacks what the template wants.
    """
    options = example.options and "\n".join(f"{letter}. {text}" for letter, text in lettered(example))
    values = {"question": example.question, "options": options, "context": example.context}

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise ConfigError(f"prompt has the placeholder {{{name}}}; {nearest(name, FIELDS)}")
        if values[name] is None:
            raise DataError(f"example '{example.id}' has no {name}, which the prompt asks for")
        return str(values[name])

    return PLACEHOLDER.sub(filled, template)


def lettered(example: Example) -> list[tuple[str, str]]:
    """The options of an example with their letters. Raises DataError without options or with more than 16."""
    if not example.options or len(example.options) > len(LETTERS):
        count = len(example.options or ())
        raise DataError(f"example '{example.id}' has {count} options; lettered options are 1 to {len(LETTERS)}")
    return list(zip(LETTERS, example.options, strict=False))
