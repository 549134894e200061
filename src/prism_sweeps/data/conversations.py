"""LLaVA's `chat.json`: a list of {id, image?, conversations: [{from: human|gpt, value}]}, checked entry by entry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prism_sweeps.config.errors import DataError

ROLES = ("human", "gpt")
PLACEHOLDER = "<image>"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training example. The image is a path; it is read when its batch is made."""

    name: str
    """`source/id`, for messages; the index in the file stands in for a missing id."""
    source: str
    image: Path | None
    turns: list[tuple[str, str]]
    """(role, text), roles alternating human, gpt; `<image>` is still in the text."""


def read_conversations(path: Path, images: Path, source: str, first: int | None) -> list[Conversation]:
    """The first `first` conversations of `path` (None: all). Image paths are taken relative to `images`.

    Raises DataError naming file, index and fault for anything but the format above: other keys than these are
    ignored, turns must alternate human, gpt and end with gpt, images must lie inside `images`, and `<image>` may stand
    once, in a human turn (its place in the text does not matter: patches always come right after BOS).
    """
    entries = read_list(path)
    return [
        parse(entry, images, source, index, f"{path}, entry {index}") for index, entry in enumerate(entries[:first])
    ]


def read_list(path: Path) -> list[Any]:
    """The JSON list in `path`. Raises DataError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds a {type(entries).__name__}; it should be a list of conversations")
    return entries


def parse(entry: Any, images: Path, source: str, index: int, where: str) -> Conversation:
    """One entry of a file. `where` begins the text of a DataError."""
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is a {type(entry).__name__}; it should be an object with 'conversations'")
    turns = parse_turns(entry.get("conversations"), where)
    image = entry.get("image")
    check_placeholder(turns, image is not None, where)
    return Conversation(
        name=f"{source}/{entry.get('id', index)}",
        source=source,
        image=None if image is None else images / relative_inside(image, where),
        turns=turns,
    )


def parse_turns(turns: Any, where: str) -> list[tuple[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: 'conversations' should be a list of turns that is not empty")
    for number, turn in enumerate(turns):
        due = ROLES[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != due or not isinstance(turn.get("value"), str):
            raise DataError(
                f"{where}, turn {number}: is {shortened(turn)}; turns alternate human, gpt, so it should be "
                f'{{"from": "{due}", "value": TEXT}}'
            )
    if len(turns) % 2:
        raise DataError(f"{where}: ends with a human turn; every human turn needs the gpt turn that answers it")
    return [(turn["from"], turn["value"]) for turn in turns]


def check_placeholder(turns: list[tuple[str, str]], has_image: bool, where: str) -> None:
    """Without an image, `<image>` inside a text is taken as text (as in ShareGPT's HTML); at its edge it is a slip."""
    if has_image:
        if any(PLACEHOLDER in text for role, text in turns if role == "gpt"):
            raise DataError(f"{where}: '{PLACEHOLDER}' stands in a gpt turn; only a human turn can show the image")
        if sum(text.count(PLACEHOLDER) for _, text in turns) > 1:
            raise DataError(f"{where}: '{PLACEHOLDER}' stands more than once; a conversation has one image")
    elif turns[0][1].startswith(PLACEHOLDER) or turns[0][1].endswith(PLACEHOLDER):
        raise DataError(
            f"{where}: has '{PLACEHOLDER}' but no 'image'; give the image's path or take it out of the text"
        )


def relative_inside(image: Any, where: str) -> PurePosixPath:
    """`image` as a path that stays inside the folder it is relative to."""
    path = PurePosixPath(image) if isinstance(image, str) else PurePosixPath()
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in image:
        raise DataError(f"{where}: 'image' is {shortened(image)}; it should be a relative path inside the image folder")
    return path


def shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
