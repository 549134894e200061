"""Requests as the model gets them, in the order it gets them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.evaluation.requests import Request, Unanswered, by_image
from prism_sweeps.models.prompts import PromptFormat

WINDOW = 4
"""Batches of questions whose images are read together, each once; and what is sorted by length together."""

Group = list[Request]
"""Requests about one image."""


@dataclass(frozen=True)
class Question:
    """One request, ready to be asked."""

    request: Request
    image: int
    """Which of the images that are read together."""
    ids: list[int]
    """BOS and the text up to where the answer starts; the patches go after BOS."""
    options: list[list[int]]
    """Tokens of what may be answered; none when the answer is free text."""
    limit: int
    """Tokens a free answer may have."""


def question_of(
    request: Request, image: int, options: Mapping[str, list[int]], prompts: PromptFormat, room: int
) -> Question | Unanswered:
    """`options` has the tokens of all options; the language model has `room` positions for text."""
    ids, of_request = prompts.question(request.text), [options[option] for option in request.options]
    shown = "the grey image" if request.image is None else f"image '{request.image}'"
    try:
        needed = max(map(len, of_request), default=1)
        left = room_left(ids, room, needed, f"example '{request.id}' on {shown}")
    except DataError as error:
        return Unanswered(str(error))
    return Question(request, image, ids, of_request, min(request.limit, left))


def room_left(ids: Sequence[int], room: int, needed: int, what: str) -> int:
    """Positions left for an answer. Raises DataError when there are fewer than `needed`."""
    if room - len(ids) < needed:
        raise DataError(
            f"{what}: {len(ids)} tokens of text and {needed} of an answer are more than the {room} positions that the "
            "language model has besides the image"
        )
    return room - len(ids)


def option_tokens(requests: Sequence[Request], prompts: PromptFormat) -> dict[str, list[int]]:
    """The tokens of all options. Raises ConfigError for options that cannot be compared."""
    offers = dict.fromkeys((request.options, request.likelihood) for request in requests)
    tokens = {option: prompts.answer(option) for option in dict.fromkeys(o for options, _ in offers for o in options)}
    nothing = prompts.answer("") if tokens else []
    for option, ids in tokens.items():
        if not ids or ids == nothing:
            raise ConfigError(f"option {option!r} is nothing to the language model, so it has no likelihood")
    for options, likelihood in offers:
        if likelihood == "first-token":
            _check_first_tokens(options, tokens)
    return tokens


def _check_first_tokens(options: Sequence[str], tokens: Mapping[str, list[int]]) -> None:
    first: dict[int, str] = {}
    for option in options:
        other = first.setdefault(tokens[option][0], option)
        if other != option:
            raise ConfigError(
                f"likelihood first-token cannot tell the options '{other}' and '{option}' apart: both begin with the "
                "same token of this language model; likelihood full-string compares whole options"
            )


def units(requests: Sequence[Request], size: int) -> list[list[Group]]:
    """Images that are read together, each once, with all that is asked about them.

    Not more than `size` images; and questions for about WINDOW batches of `size`, more only where one image has more.
    Images with questions of like length come together. The order hangs on the requests and `size` alone.
    """
    found: list[list[Group]] = []
    for window in _windows(by_image(requests), WINDOW * size):
        window.sort(key=lambda group: max(len(request.text) for request in group))
        found += [window[start : start + size] for start in range(0, len(window), size)]
    return found


def _windows(groups: Sequence[Group], most: int) -> Iterator[list[Group]]:
    """Groups one after another, with `most` requests together where they are not more by themselves."""
    window: list[Group] = []
    for group in groups:
        if window and sum(map(len, window)) + len(group) > most:
            yield window
            window = []
        window.append(group)
    if window:
        yield window


def rounds(questions: Sequence[Question], size: int, pads: bool) -> list[list[Question]]:
    """Batches of at most `size`, with and without options apart, of like length, or of one length unless it `pads`."""

    def alike(question: Question) -> tuple[bool, int]:
        return bool(question.options), 0 if pads else len(question.ids)

    ordered = sorted(questions, key=lambda question: (bool(question.options), len(question.ids)))
    batches: list[list[Question]] = []
    for _, group in itertools.groupby(ordered, key=alike):
        together = list(group)
        batches += [together[start : start + size] for start in range(0, len(together), size)]
    return batches


def common_prefix(questions: Sequence[Question]) -> list[int]:
    """The tokens that all begin with, at most all but the last of any."""
    first, last = min(each.ids for each in questions), max(each.ids for each in questions)
    pairs = enumerate(zip(first, last, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(first), len(last)))
    return first[: min(same, *(len(each.ids) - 1 for each in questions))]
