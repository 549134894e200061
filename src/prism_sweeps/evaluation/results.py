"""From scored predictions to a benchmark's result. Scores and their errors are in percent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.scorers import Row, scorer
from prism_sweeps.evaluation.scoring.rows import by_tag


def result_of(rows: Sequence[Row], benchmark: Benchmark) -> dict[str, Any]:
    """Score, standard error, n, further metrics, and the same for each value of each tag.

    An answer counts with all of its text, however long; an empty one is no special case for a scorer, and there is a
    count of them, `empty_answer_count`. A standard error is null when fewer than two images were asked about. Nothing
    depends on the order of `rows`.
    """
    kind = scorer(benchmark.scorer)
    strata = [str(row["tags"].get("split", "")) for row in rows] if kind.equal_splits else [""] * len(rows)
    empty = sum(not row["answer"].strip() for row in rows)
    return {
        **summary(rows, strata),
        "metrics": {**kind.metrics(rows, benchmark), "empty_answer_count": empty},
        "groups": {tag: groups_of(rows, tag) for tag in sorted({tag for row in rows for tag in row["tags"]})},
    }


def summary(rows: Sequence[Row], strata: Sequence[str]) -> dict[str, Any]:
    score, error = score_and_error(rows, strata)
    return {"score": score, "standard_error": error, "n": len(rows)}


def groups_of(rows: Sequence[Row], tag: str) -> dict[str, dict[str, Any]]:
    """For each value of a tag the score of its rows, whatever their split."""
    return {value: summary(part, [""] * len(part)) for value, part in by_tag(rows, tag).items()}


def score_and_error(rows: Sequence[Row], strata: Sequence[str]) -> tuple[float, float | None]:
    """Unweighted mean over strata of their mean scores, and its standard error; both in percent."""
    scores = [row["score"] for row in rows]
    members: dict[str, list[float]] = defaultdict(list)
    for stratum, value in zip(strata, scores, strict=True):
        members[stratum].append(value)
    means = {stratum: math.fsum(values) / len(values) for stratum, values in members.items()}
    shares = [
        (value - means[stratum]) / (len(means) * len(members[stratum]))
        for stratum, value in zip(strata, scores, strict=True)
    ]
    error = clustered_error(shares, [row["image"] for row in rows])
    return 100 * math.fsum(means.values()) / len(means), None if error is None else 100 * error


def clustered_error(shares: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Standard error of a mean whose deviations are not independent within a cluster; null for fewer than two clusters.

    With shares (s_i - mean) / n: SE^2 = G / (G - 1) * sum over the G clusters of (sum of its shares)^2. This is
    equation 4 of Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), with the factor for few clusters, so
    that it is the plain standard error of the mean when each example has a cluster of its own.
    """
    members: dict[Hashable, list[float]] = defaultdict(list)
    for share, cluster in zip(shares, clusters, strict=True):
        members[cluster].append(share)
    count = len(members)
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * math.fsum(math.fsum(part) ** 2 for part in members.values()))
