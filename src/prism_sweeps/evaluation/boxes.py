"""Bounding boxes: reading them out of text, and their overlap. A box is (x1, y1, x2, y2), normalised to 0..1."""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]

# A number that is no part of a word (the 1 of "x1") and has nothing but its own decimal point.
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w|\.\d)")


def parse_box(text: str) -> Box | None:
    """The box in `text`, or None when there is no valid one.

    Valid is: exactly four numbers, whatever stands between them, all in 0..1, with x1 < x2 and y1 < y2. More lenient
    on form than vlm-evaluation, which wants a Python list; equally strict on values.
    """
    numbers = [float(number) for number in NUMBER.findall(text)]
    return valid_box(numbers)


def valid_box(numbers: Sequence[float]) -> Box | None:
    """`numbers` as a box, or None when they are not one."""
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = numbers
    inside = all(0.0 <= number <= 1.0 for number in numbers)
    return (x1, y1, x2, y2) if inside and x1 < x2 and y1 < y2 else None


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two valid boxes, 0..1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (area(one) + area(other) - shared)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
