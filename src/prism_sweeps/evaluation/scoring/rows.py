"""What every scorer works on: rows of answers, and how many of them there are of a kind."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.benchmarks import Example

Row = dict[str, Any]
"""One answer: id, image (what questions cluster by), answer, gold, tags and, once it is scored, score (0..1).

Where there are options it may have `log_likelihoods` ({option: nats}). Where the answer is a box it has `size` ([width,
height] of the image in pixels) and `seen` ([x1, y1, x2, y2]: where the square that the model was shown lies, relative
to the image and normalised by its size; null where that is not known).
"""
Gold = Any
"""What the row keeps of the truth: a list of strings, a string, or a box, as its scorer says."""
Metrics = dict[str, float]


@dataclass(frozen=True)
class Scorer:
    """`score(row, benchmark)` is one answer's worth, 0..1; `metrics(rows, benchmark)` are further numbers.

    Metrics are in percent, but for those called `..._count`, which are numbers of answers, and those called `..._auc`,
    which are areas of 0 to 1. `gold` takes the truth out of an example and raises ValueError, with the reason, when it
    is not there.
    """

    score: Callable[[Row, Benchmark], float]
    gold: Callable[[Example], Gold]
    metrics: Callable[[Sequence[Row], Benchmark], Metrics] = lambda rows, benchmark: {}
    equal_splits: bool = False
    """The score is the unweighted mean over the values of the tag `split`, not over examples."""


def percent(part: float, whole: float) -> float:
    """100 part / whole, and 0 of nothing."""
    return 100.0 * part / whole if whole else 0.0


def accuracy(rows: Sequence[Row]) -> float:
    """The mean score, in percent."""
    return percent(math.fsum(row["score"] for row in rows), len(rows))


def by_tag(rows: Sequence[Row], tag: str) -> dict[str, list[Row]]:
    """The rows that have `tag`, by its value as text, sorted."""
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if tag in row["tags"]:
            members[str(row["tags"][tag])].append(row)
    return dict(sorted(members.items()))


def tag_accuracy(rows: Sequence[Row], tag: str) -> Metrics:
    """The accuracy for each value of a tag."""
    return {f"{value}_accuracy": accuracy(members) for value, members in by_tag(rows, tag).items()}


def detection(found: Sequence[bool], true: Sequence[bool]) -> Metrics:
    """Precision, recall and F1, in percent; 0 where undefined (scikit-learn's `zero_division=0`)."""
    hits = sum(a and b for a, b in zip(found, true, strict=True))
    return {
        "precision": percent(hits, sum(found)),
        "recall": percent(hits, sum(true)),
        "f1": percent(2 * hits, sum(found) + sum(true)),
    }
