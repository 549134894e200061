"""Scores of boxes: which box an answer gives, and whether it overlaps the true one enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.suite import BOX_FRAMES, BOX_UNITS, Benchmark
from prism_sweeps.evaluation.boxes import LITERAL, Box, in_image, numbers_in, overlap, scaled, valid_box
from prism_sweeps.evaluation.scoring.golds import true_box
from prism_sweeps.evaluation.scoring.rows import Metrics, Row, Scorer, percent

Numbers = Callable[[str], list[float]]


def literal_numbers(text: str) -> list[float]:
    """Those of a text that is a list of four numbers and nothing else; none of any other."""
    return numbers_in(text) if LITERAL.fullmatch(text) else []


def answered_box(row: Row, benchmark: Benchmark, numbers: Numbers) -> Box | None:
    """The box that a row's answer gives, relative to the image and normalised; None for an invalid one.

    | units | frame | numbers are |
    |---|---|---|
    | normalised | image | 0 to 1 of width and height |
    | normalised | padded | 0 to 1 of the square that the model was shown |
    | pixels | image | 0 to width and 0 to height |
    | pixels | padded | pixels of the image at its own scale, counted from the corner of the square that the model was |
    | | | shown; 0 to max(width, height), which is the side of an image padded to a square (as in LLaVA's training) |

    A box in the padded frame loses what lies outside of the image, and is invalid when nothing is left. Raises
    ConfigError for a frame or unit that does not exist, or a frame that is not known of a model (a baseline's), and
    DataError where the image's size is not known.
    """
    check(benchmark)
    found = numbers(row["answer"])
    if (benchmark.box_units, benchmark.box_frame) == ("normalised", "image"):
        return valid_box(found)
    size = size_of(row, benchmark)
    if benchmark.box_frame == "image":
        box = valid_box(found, size)
        return box and scaled(box, size)
    seen = seen_by(row, benchmark)
    if benchmark.box_units == "normalised":
        box = valid_box(found)
        return box and in_image(box, seen)
    box = valid_box(found, (max(size), max(size)))
    left, top = seen[:2]
    return box and in_image(scaled(box, size), (left, top, left + 1, top + 1))


def check(benchmark: Benchmark) -> None:
    """Raises ConfigError for a frame or unit that does not exist."""
    for name, value, known in (
        ("box_frame", benchmark.box_frame, BOX_FRAMES),
        ("box_units", benchmark.box_units, BOX_UNITS),
    ):
        if value not in known:
            raise ConfigError(f"{benchmark.name}: unknown {name} '{value}'; {nearest(value, known)}")


def size_of(row: Row, benchmark: Benchmark) -> Sequence[float]:
    """Width and height of the row's image in pixels."""
    size: Sequence[float] | None = row.get("size")
    if not size:
        raise DataError(
            f"{benchmark.name}, example '{row['id']}': the size of its image is not known (a grey image has none), "
            f"which box_frame={benchmark.box_frame} with box_units={benchmark.box_units} needs; box_frame=image with "
            "box_units=normalised does not"
        )
    return size


def seen_by(row: Row, benchmark: Benchmark) -> Sequence[float]:
    """Where the square that the model was shown lies."""
    seen: Sequence[float] | None = row.get("seen")
    if not seen:
        raise ConfigError(
            f"{benchmark.name}: what square the model is shown is not known, because its processor's frame is not; "
            "box_frame=image is scored without"
        )
    return seen


def whole(box: Box) -> Box:
    """The true box as the index has it."""
    return box


def rounded(box: Box) -> Box:
    """The true box as vlm-evaluation has it: normalised to two decimals, which takes the size from the smallest."""
    x1, y1, x2, y2 = (round(edge, 2) for edge in box)
    return (x1, y1, x2, y2)


def iou(numbers: Numbers, truth: Callable[[Box], Box]) -> Scorer:
    """Right from an intersection over union of `iou_threshold` on (RefCOCO: 0.5; OCID-Ref: 0.25).

    `numbers` are those that an answer gives as its box, `truth` is what the true box is taken for.
    """

    def overlaps(rows: Sequence[Row], benchmark: Benchmark) -> list[float | None]:
        boxes = [answered_box(row, benchmark, numbers) for row in rows]
        return [box and overlap(box, truth(tuple(row["gold"]))) for box, row in zip(boxes, rows, strict=True)]

    def score(row: Row, benchmark: Benchmark) -> float:
        return float((overlaps([row], benchmark)[0] or 0.0) >= benchmark.iou_threshold)

    def metrics(rows: Sequence[Row], benchmark: Benchmark) -> Metrics:
        found = overlaps(rows, benchmark)
        mean = percent(math.fsum(each for each in found if each is not None), len(rows))
        return {"mean_iou": mean, "invalid_box_count": found.count(None)}

    return Scorer(score, true_box, metrics)
