"""How small a difference a benchmark can show, and how many examples a difference needs: normal approximations.

The numbers are about two models on the same examples, tested two-sided. `discordance` is the mean of their squared
differences, for 0/1 scores the share of examples that one of them alone has right. With z the normal quantiles, psi
the discordance and delta the difference, both as shares, Connor (1987, Biometrics 43, 209) has for McNemar's test

    n = (z(1 - alpha/2) sqrt(psi) + z(power) sqrt(psi - delta^2))^2 / delta^2

which Miller (2024, arXiv 2411.00640, section 5) gives with the variance of differences, psi - delta^2, in both places.
Questions that share images say less than their number: n is `design_effect` times as many (Kish 1965).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ndtri

from prism_sweeps.reporting.paired import Rows, grids_of
from prism_sweeps.reporting.statistics import Grid, difference, estimate


def standard_error(accuracy: float, examples: int, spread: float = 1.0) -> float:
    """Of a score in 0..1. `spread`: its variance, relative to that of as many independent 0/1 answers."""
    return math.sqrt(spread * accuracy * (1 - accuracy) / examples)


def detectable(examples: int, discordance: float, design_effect: float, alpha: float, power: float) -> float | None:
    """The smallest difference, as a share, that so many examples show with this power.

    None where no difference is: it cannot exceed the discordance.
    """
    count = examples / design_effect
    at_null, at_truth = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    inside = count + at_truth**2 - at_null**2
    if inside < 0:
        return None
    found = math.sqrt(discordance) * (math.sqrt(count) * at_null + at_truth * math.sqrt(inside)) / (count + at_truth**2)
    return found if found <= discordance else None


def examples_for(gap: float, discordance: float, design_effect: float, alpha: float, power: float) -> int | None:
    """How many examples show a difference of `gap`, a share, with this power; None where it exceeds the discordance."""
    if gap > discordance:
        return None
    at_null, at_truth = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    deviation = at_null * math.sqrt(discordance) + at_truth * math.sqrt(discordance - gap**2)
    return math.ceil(design_effect * (deviation / gap) ** 2)


# ---- what scored models show


@dataclass(frozen=True)
class Seen:
    """How models have scored on a benchmark; shares in 0..1. NaN where too little is there to tell."""

    models: int
    accuracy: float
    spread: float
    """As `standard_error` takes it, of the mean model: for questions that share images and scores that are no 0/1."""
    discordance: float
    design_effect: float
    """Variance of the mean difference of two models, relative to that of independent examples."""


def seen(models: Sequence[Rows], by_split: bool) -> Seen:
    """What the scored answers of these models, one or more, show; means over models and over pairs of them."""
    grids = grids_of(models, by_split)
    gaps = [gap for pair in combinations(grids, 2) if (gap := difference(*pair)).ids]
    return Seen(
        models=len(grids),
        accuracy=mean([grid.mean() for grid in grids]),
        spread=mean([spread_of(grid) for grid in grids]),
        # Two that never differ say nothing of two that do.
        discordance=mean([squared(gap) for gap in gaps]) or math.nan,
        design_effect=mean([inflation(gap, squared(gap) - gap.mean() ** 2) for gap in gaps]),
    )


def spread_of(grid: Grid) -> float:
    accuracy = grid.mean()
    return inflation(grid, accuracy * (1 - accuracy))


def inflation(grid: Grid, variance: float) -> float:
    """The variance of the grid's mean, clustered by image, relative to `variance` / n; NaN where that is nothing."""
    told = estimate([grid])
    if told is None or variance < 1e-9:
        return math.nan
    return (told.standard_error / 100) ** 2 * told.examples / variance


def squared(gap: Grid) -> float:
    return float((gap.score_SN**2 @ gap.weights()).mean())


def mean(values: Sequence[float]) -> float:
    """Of those that are known."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
