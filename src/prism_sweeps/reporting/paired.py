"""Two scored models on the same examples: their difference, how sure it is, and whether it is any. Numpy and scipy.

Shapes: N examples, G images, K strata, U kinds of images, V = 2 K sums and counts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

from prism_sweeps.reporting.frame import split_of
from prism_sweeps.reporting.statistics import CONFIDENCE, Array, Codes, Grid, aligned, difference, estimate, sign_flip_p

Rows = Sequence[Mapping[str, Any]]
"""Scored answers as a record has them: id, image, score 0..1, gold, tags."""

RESAMPLES = 10_000
SEED = 21
CHUNK = 2**22
"""Counts that are held at a time, 32 MiB."""
MCNEMAR, SIGN_FLIPS = "McNemar", "sign flips"


@dataclass(frozen=True)
class Paired:
    """A against B on one benchmark; scores in percent, `difference` (A - B) and its interval in percentage points.

    `standard_error` is NaN for a single image, the interval also where no image differs from another. `p` is by `test`;
    `mcnemar` is None unless all scores are 0 or 1.
    """

    examples: int
    images: int
    only_a: int
    only_b: int
    score_a: float
    score_b: float
    difference: float
    standard_error: float
    low: float
    high: float
    p: float
    test: str
    mcnemar: float | None
    p_holm: float = math.nan


def compare(rows_a: Rows, rows_b: Rows, by_split: bool, resamples: int = RESAMPLES) -> Paired | None:
    """A against B on the examples that both have; None where there are none. `by_split`: splits weigh equally.

    The standard error is Miller's (2024, arXiv 2411.00640) for paired differences, clustered by image; the interval is
    `bootstrap`'s. Where no two questions share an image and all scores are 0 or 1, the test is McNemar's, exact. Else
    its answers would not be independent, and the test is the exact one of sign flips by image, of which McNemar's is
    that special case (`statistics.sign_flip_p`).
    """
    whole_a, whole_b = grids_of((rows_a, rows_b), by_split)
    a, b = aligned([whole_a, whole_b])
    gap = difference(a, b)
    told = estimate([gap])
    if told is None:
        return None
    mcnemar = mcnemar_p(gap) if is_binary(a) and is_binary(b) else None
    independent = told.images == told.examples and len(np.unique(gap.stratum_N)) == 1
    test = MCNEMAR if mcnemar is not None and independent else SIGN_FLIPS
    low, high = bootstrap(gap, resamples)
    return Paired(
        examples=told.examples,
        images=told.images,
        only_a=len(whole_a.ids) - told.examples,
        only_b=len(whole_b.ids) - told.examples,
        score_a=100 * a.mean(),
        score_b=100 * b.mean(),
        difference=told.value,
        standard_error=told.standard_error,
        low=100 * low,
        high=100 * high,
        p=mcnemar if mcnemar is not None and independent else weighted_flip_p(gap),
        test=test,
        mcnemar=mcnemar,
    )


# ---- scores


def grids_of(models: Sequence[Rows], by_split: bool) -> list[Grid]:
    """One grid of a single row per model; the same image has the same number in all of them."""
    images: dict[Hashable, int] = {}
    splits: dict[Hashable, int] = {}
    return [
        Grid(
            seeds=(0,),
            ids=tuple(str(row["id"]) for row in rows),
            image_N=codes((row["image"] for row in rows), images),
            stratum_N=codes((split_of(row.get("tags")) if by_split else "" for row in rows), splits),
            score_SN=np.array([[row["score"] for row in rows]], dtype=np.float64),
        )
        for rows in models
    ]


def codes(values: Iterable[Hashable], known: dict[Hashable, int]) -> Codes:
    """Numbers of `values`; those not yet `known` are added to it."""
    return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)


def is_binary(grid: Grid) -> bool:
    return bool(np.isin(grid.score_SN, (0.0, 1.0)).all())


def disagreement(rows_a: Rows, rows_b: Rows) -> str | None:
    """How the two records contradict each other on what an example is; None where they do not."""
    of_b = {row["id"]: row for row in rows_b}
    for row in rows_a:
        other = of_b.get(row["id"])
        if other is None:
            continue
        for what in ("image", "gold", "tags"):
            if row.get(what) != other.get(what):
                return (
                    f"example '{row['id']}' has {what} {row.get(what)!r} on one side, {other.get(what)!r} on the other"
                )
    return None


# ---- tests


def mcnemar_p(gap: Grid) -> float:
    """Two-sided p of McNemar's exact test: of the examples that one model alone has right, each is as likely either's.

    It takes examples for independent draws.
    """
    wins, losses = int((gap.score_SN > 0).sum()), int((gap.score_SN < 0).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def weighted_flip_p(gap: Grid) -> float:
    """`sign_flip_p` of the benchmark's score, in which splits may weigh equally."""
    return sign_flip_p(replace(gap, score_SN=gap.score_SN * gap.weights() * len(gap.ids)))


# ---- interval


def bootstrap(grid: Grid, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float]:
    """The 95 % interval of the grid's mean over draws of its images: BCa (Efron 1987, JASA 82), in units of the scores.

    A drawn image comes with all its questions, whatever their split. Bias and skewness are corrected for, as in
    `scipy.stats.bootstrap`. Draws that miss a whole split have no score and do not count. NaN where all draws score the
    same: such images say nothing of others.
    """
    kinds_UV, count_U = image_kinds(grid)
    value_R = resampled(kinds_UV, count_U, resamples, seed)
    if not value_R.size or np.ptp(value_R) <= 1e-12:
        return math.nan, math.nan
    value = score_of(count_U @ kinds_UV)
    # Equal values differ in their last bits by the order of their sums.
    below = np.mean(value_R < value - 1e-12) + np.mean(np.abs(value_R - value) <= 1e-12) / 2
    bias, skew = ndtri(below), skewness(score_of(count_U @ kinds_UV - kinds_UV), count_U)
    tail = ndtri(0.5 + CONFIDENCE / 2)
    shares = [float(ndtr(bias + (bias + z) / (1 - skew * (bias + z)))) for z in (-tail, tail)]
    low, high = np.quantile(value_R, shares)
    return float(low), float(high)


def image_kinds(grid: Grid) -> tuple[Array, Codes]:
    """The distinct images: sums of scores and numbers of examples, stratum by stratum, and how many are so.

    A benchmark has tens of thousands of images, but only some hundred kinds of them, and images of one kind are the
    same to a mean.
    """
    _, image_N = np.unique(grid.image_N, return_inverse=True)
    names_K, stratum_N = np.unique(grid.stratum_N, return_inverse=True)
    G, K = int(image_N.max()) + 1, len(names_K)
    place_N = image_N * K + stratum_N
    sums_GK = np.bincount(place_N, weights=grid.score_SN.mean(axis=0), minlength=G * K).reshape(G, K)
    sizes_GK = np.bincount(place_N, minlength=G * K).reshape(G, K)
    image_GV: Array = np.hstack([sums_GK.round(9), sizes_GK])
    kinds_UV, count_U = np.unique(image_GV, axis=0, return_counts=True)
    return kinds_UV, count_U.astype(np.int64)


def score_of(sums_V: Array) -> Array:
    """The mean over strata of their means (last axis: sums, then sizes); NaN where a stratum is empty."""
    K = sums_V.shape[-1] // 2
    with np.errstate(invalid="ignore"):
        return np.asarray((sums_V[..., :K] / sums_V[..., K:]).mean(axis=-1), dtype=np.float64)


def resampled(kinds_UV: Array, count_U: Codes, resamples: int, seed: int) -> Array:
    """Scores of `resamples` draws of as many images, with replacement."""
    rng = np.random.default_rng(seed)
    G, step = int(count_U.sum()), max(1, CHUNK // len(count_U))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    parts = [score_of(rng.multinomial(G, count_U / G, size=size) @ kinds_UV) for size in sizes]
    return np.concatenate([part_R[np.isfinite(part_R)] for part_R in parts])


def skewness(left_out_U: Array, count_U: Codes) -> float:
    """BCa's acceleration: from the scores without one image of each kind."""
    known_U = np.isfinite(left_out_U)
    if not known_U.any():
        return 0.0
    left_out_U, count_U = left_out_U[known_U], count_U[known_U]
    away_U = np.average(left_out_U, weights=count_U) - left_out_U
    square = float(count_U @ away_U**2)
    return float(count_U @ away_U**3) / (6 * square**1.5) if square > 1e-24 else 0.0
