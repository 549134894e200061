"""Bounding boxes: reading them out of text, where they lie in the image, and their overlap.

A box is (x1, y1, x2, y2). Where nothing else is said it is relative to the image and normalised to 0..1.

In which frame a model answers comes from what it was trained on, not from how it is asked (`Benchmark.box_frame`):

| trained on | its boxes are relative to |
|---|---|
| llava-v15 and the mixes that contain it | the image padded to a square, whatever `resize` says (LLaVA #606, #822) |
| the nano and easy sets | the image |

LRV adds no boxes. The published numbers are nevertheless scored in the frame of the image, those of letterboxed models
too (TRI-ML/vlm-evaluation #16): that is the default, `image`. With `padded` an answer is taken back from the square
that the model was shown, which is right for `resize: letterbox` trained on llava-v15; under `resize: naive` that square
is the image itself, so there the two are one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

Box = tuple[float, float, float, float]

CORNERS = 4
# A number that is no part of a word (the 1 of "x1") and has nothing but its own decimal point, or what Python and JSON
# print for none. Possessive, so that nothing is ever tried twice.
NUMBER = r"(?<![\w.])[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+(?!\w|\.\d)"
NO_NUMBER = r"(?<![\w.])[-+]?(?:nan|inf(?:inity)?)(?!\w)"
OPEN, CLOSE = r"[\[({]|<b?box>|<\|box_start\|>", r"[\])}]|</b?box>|<\|box_end\|>"
TOKEN = re.compile(rf"(?P<number>{NUMBER}|{NO_NUMBER})|(?P<open>{OPEN})|(?P<close>{CLOSE})", re.IGNORECASE)
EDGE = re.compile(rf"(?<!\w)([xy])_?(min|max|[12])[\"']?\s*+[=:]\s*+({NUMBER}|{NO_NUMBER})", re.IGNORECASE)
EDGES = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
_ITEM = r"\s*+[-+.\deE]++\s*+"
LITERAL = re.compile(rf"[ \t]*+\[{_ITEM}(?:,{_ITEM}){{3}},?+\s*+\]\s*+")


def numbers_in(text: str) -> list[float]:
    """The four numbers that `text` gives as a box, else all that it has.

    Those called x1, y1, x2, y2 (or xmin, ...); or else those of the first pair of brackets around exactly four, however
    nested ("[[0.1, 0.2], [0.3, 0.4]]"); or else of the first two pairs in a row with two in each ("(0.1, 0.2), (0.3,
    0.4)"); or else all numbers there are. `<box>` and `<|box_start|>` are brackets. In linear time, whatever the text.
    """
    called = {f"{edge[1]}{edge[2]}".lower(): float(edge[3]) for edge in reversed(list(EDGE.finditer(text)))}
    for names in EDGES:
        if called.keys() >= set(names):
            return [called[name] for name in names]
    numbers, groups = bracketed(text)
    for start, end in groups:
        if end - start == CORNERS:
            return numbers[start:end]
    for (start, middle), (also_middle, end) in pairwise(groups):
        if middle == also_middle and middle - start == end - also_middle == CORNERS // 2:
            return numbers[start:end]
    return numbers


def bracketed(text: str) -> tuple[list[float], list[tuple[int, int]]]:
    """All numbers of a text, and which of them each pair of brackets holds, in the order in which these close."""
    numbers: list[float] = []
    opened: list[int] = []
    groups: list[tuple[int, int]] = []
    for token in TOKEN.finditer(text):
        if token.lastgroup == "number":
            numbers.append(float(token[0]))
        elif token.lastgroup == "open":
            opened.append(len(numbers))
        elif opened:
            groups.append((opened.pop(), len(numbers)))
    return numbers, groups


def parse_box(text: str) -> Box | None:
    """The normalised box in `text`, or None when there is no valid one: numbers of 0..1, x1 < x2 and y1 < y2.

    More lenient on form than vlm-evaluation, which wants a Python list and nothing else; equally strict on values.
    """
    return valid_box(numbers_in(text))


def valid_box(numbers: Sequence[float], reach: Sequence[float] = (1.0, 1.0)) -> Box | None:
    """`numbers` as a box within (0, 0) and `reach`, or None when they are not one. NaN never is."""
    if len(numbers) != CORNERS:
        return None
    x1, y1, x2, y2 = numbers
    inside = all(0.0 <= number <= reach[i % 2] for i, number in enumerate(numbers))
    return (x1, y1, x2, y2) if inside and x1 < x2 and y1 < y2 else None


def in_image(box: Box, seen: Sequence[float]) -> Box | None:
    """A normalised box in the square `seen` as one in the image, without what is outside; None where nothing is left.

    `seen` is the square as a box: relative to the image and normalised by its size, so that padding is outside of 0..1.
    """
    left, top, right, bottom = seen
    corner, side = (left, top), (right - left, bottom - top)
    x1, y1, x2, y2 = (min(max(corner[i % 2] + edge * side[i % 2], 0.0), 1.0) for i, edge in enumerate(box))
    return valid_box((x1, y1, x2, y2))


def scaled(box: Box, size: Sequence[float]) -> Box:
    """A box in pixels as one normalised by width and height."""
    x1, y1, x2, y2 = (edge / size[i % 2] for i, edge in enumerate(box))
    return (x1, y1, x2, y2)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two valid boxes, 0..1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (area(one) + area(other) - shared)


def area(box: Box) -> float:
    """Of a box, as a part of the image."""
    return (box[2] - box[0]) * (box[3] - box[1])
