"""Differences with honest intervals, and the test whether a model looks at its image. Pure numpy and scipy.

Scores of one variant on one benchmark are a grid: seeds down, examples across. Two variants are compared on the seeds
and examples that both have, so that what they share cancels. Shapes: S seeds, N examples, G images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
CONFIDENCE = 0.95
EXACT = 2**20
"""Cosines that the exact sign-flip test may cost."""


@dataclass(frozen=True)
class Grid:
    """Scores in 0..1 (or differences of scores) of one benchmark.

    Equal numbers in `image_N` are the same image. The benchmark's score is the plain mean of the means of its strata
    (`stratum_N`): one stratum for most, one per split where the official score weighs splits equally.
    """

    seeds: tuple[int, ...]
    ids: tuple[str, ...]
    image_N: Codes
    stratum_N: Codes
    score_SN: Array

    def take(self, seeds: Sequence[int], ids: Sequence[str]) -> Grid:
        """The part of the grid with these seeds and examples, in this order."""
        if self.seeds == tuple(seeds) and self.ids == tuple(ids):
            return self
        row = {seed: index for index, seed in enumerate(self.seeds)}
        column = {name: index for index, name in enumerate(self.ids)}
        rows, columns = [row[seed] for seed in seeds], [column[name] for name in ids]
        scores_SN = self.score_SN[np.ix_(rows, columns)]
        return Grid(tuple(seeds), tuple(ids), self.image_N[columns], self.stratum_N[columns], scores_SN)

    def weights(self) -> Array:
        """Share of each example in the benchmark's score; they add up to one."""
        _, code_N, count_K = np.unique(self.stratum_N, return_inverse=True, return_counts=True)
        return 1 / (len(count_K) * count_K[code_N])

    def mean(self) -> float:
        """The benchmark's score, averaged over seeds."""
        return float((self.score_SN @ self.weights()).mean())

    def centred(self) -> Array:
        """Scores less the mean, over seeds and examples, of their stratum."""
        _, code_N, count_K = np.unique(self.stratum_N, return_inverse=True, return_counts=True)
        mean_K = np.bincount(code_N, weights=self.score_SN.mean(axis=0)) / count_K
        return self.score_SN - mean_K[code_N]


@dataclass(frozen=True)
class Estimate:
    """A mean in percent (or percentage points), its 95 % interval, and what it rests on.

    `low`, `high`, `p` are NaN where a spread cannot be known (a single image).
    """

    value: float
    low: float
    high: float
    standard_error: float
    degrees: float
    p: float
    seeds: int
    images: int
    examples: int
    benchmarks: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def aligned(grids: Sequence[Grid]) -> list[Grid]:
    """The same grids, reduced to the seeds and examples that all of them have (possibly none)."""
    seeds = [seed for seed in grids[0].seeds if all(seed in grid.seeds for grid in grids)]
    ids: Sequence[str] = grids[0].ids
    if any(grid.ids != ids for grid in grids):
        shared = reduce(set.intersection, (set(grid.ids) for grid in grids))
        ids = [name for name in ids if name in shared]
    return [grid.take(seeds, ids) for grid in grids]


def difference(grid: Grid, reference: Grid) -> Grid:
    """`grid - reference`, paired by seed and by example."""
    left, right = aligned([grid, reference])
    return replace(left, score_SN=left.score_SN - right.score_SN)


def average(grids: Sequence[Grid]) -> Grid:
    """The mean over several variants, example by example and seed by seed."""
    same = aligned(grids)
    return replace(same[0], score_SN=np.mean([grid.score_SN for grid in same], axis=0))


def estimate(grids: Sequence[Grid]) -> Estimate | None:
    """Mean over benchmarks (one grid each, equal weights) with an interval over seeds and images; None without data.

    Seeds and images are crossed random effects: every seed is scored on every image. The variance of the mean is
    V_images + V_seeds - V_residual, the two-way clustering of Cameron, Gelbach & Miller (2011), here with the unbiased
    mean squares of the two-way analysis of variance and each component held at zero or above. Examples of one image
    count as one draw, also when several benchmarks share it. The t quantile has Satterthwaite's degrees of freedom, so
    few seeds that disagree make a wide interval. The benchmarks are a fixed set, not a sample of benchmarks. With one
    seed the interval covers the choice of images alone.
    """
    seeds = tuple(seed for seed in grids[0].seeds if all(seed in grid.seeds for grid in grids)) if grids else ()
    benchmarks = [grid.take(seeds, grid.ids) for grid in grids]
    if not seeds or not all(grid.ids for grid in benchmarks):
        return None
    means = [grid.mean() for grid in benchmarks]
    influence_SG = _influence(benchmarks)
    strata = sum(len(np.unique(grid.stratum_N)) for grid in benchmarks)
    variance, degrees = _crossed_variance(influence_SG, strata)
    value, error = 100 * math.fsum(means) / len(means), 100 * math.sqrt(variance)
    half = error * float(stdtrit(degrees, 0.5 + CONFIDENCE / 2)) if error > 0 else error
    p = 2 * float(stdtr(degrees, -abs(value) / error)) if error > 0 else (1.0 if value == 0 else math.nan)
    examples = sum(len(grid.ids) for grid in benchmarks)
    images = influence_SG.shape[1]
    return Estimate(value, value - half, value + half, error, degrees, p, len(seeds), images, examples, len(grids))


def _influence(benchmarks: Sequence[Grid]) -> Array:
    """What each image adds to the mean over benchmarks, per seed; all of it together sums to zero."""
    image_G, code_N = np.unique(np.concatenate([grid.image_N for grid in benchmarks]), return_inverse=True)
    parts = [grid.centred() * grid.weights() / len(benchmarks) for grid in benchmarks]
    share_SN = np.concatenate(parts, axis=1)
    return np.stack([np.bincount(code_N, weights=share_N, minlength=len(image_G)) for share_N in share_SN])


def _crossed_variance(influence_SG: Array, strata: int) -> tuple[float, float]:
    """Variance of the mean and its degrees of freedom, from the mean squares of images, seeds and their residual."""
    S, G = influence_SG.shape
    if strata >= G:
        return math.nan, math.nan
    image_G, seed_S = influence_SG.mean(axis=0), influence_SG.sum(axis=1)
    by_image = float(G / (G - 1) * np.sum(image_G**2))
    if S == 1:
        return by_image, float(G - strata)
    by_seed = float(np.sum(seed_S**2) / (S * (S - 1)))
    residual_SG = influence_SG - image_G - seed_S[:, None] / G
    residual = float(np.sum(residual_SG**2) * G / (S * (S - 1) * (G - 1)))
    by_image, by_seed = max(by_image, residual), max(by_seed, residual)
    variance = by_image + by_seed - residual
    spread = by_image**2 / (G - strata) + by_seed**2 / (S - 1) + residual**2 / ((S - 1) * (G - 1))
    return variance, variance**2 / spread if spread > 0 else float(G - strata)


def sign_flip_p(grid: Grid) -> float:
    """Two-sided p of "the image makes no difference", for a grid of differences (with its image - without).

    If the model ignores the image, every image's difference, summed over seeds and questions, is as likely to come
    out with the other sign. The distribution of the plain total over all sign patterns is computed exactly from its
    characteristic function (the product of cosines) on a lattice; with 0/1 scores, one seed and one question per
    image it is McNemar's exact test. It speaks of these trained models on such images, not of other seeds.
    """
    _, code_N = np.unique(grid.image_N, return_inverse=True)
    total_G: Array = np.bincount(code_N, weights=grid.score_SN.sum(axis=0)).astype(np.float64)
    step_G = _lattice(total_G)
    size = int(np.abs(step_G).sum())
    if size == 0:
        return 1.0
    values, counts = np.unique(np.abs(step_G[step_G != 0]), return_counts=True)
    # The total has the parity of `size`, so half the points carry its distribution.
    angle_M = np.pi * np.arange(size + 1) / (size + 1)
    characteristic_M = np.ones(size + 1)
    for value, count in zip(values, counts, strict=True):
        characteristic_M *= np.cos(angle_M * value) ** int(count)
    # Total = 2k - size; multiplying by exp(i * angle * size) turns the transform into one over k = 0..size.
    mass_M = np.fft.fft(characteristic_M * np.exp(1j * angle_M * size)).real / (size + 1)
    distance_M = np.abs(2 * np.arange(size + 1) - size)
    return float(np.clip(mass_M[distance_M >= abs(int(step_G.sum()))].sum(), 0.0, 1.0))


def _lattice(total_G: Array) -> Codes:
    """Sums of scores as whole numbers: exact for tenths and thirds, finely rounded where that would be too many."""
    fine_G = np.rint(total_G * 3000).astype(np.int64)
    step_G: Codes = fine_G // max(int(np.gcd.reduce(np.abs(fine_G))), 1) if fine_G.size else fine_G
    size = int(np.abs(step_G).sum())
    if size * len(np.unique(np.abs(step_G))) <= EXACT:
        return step_G
    # Steps of eight or more per image: rounding then adds less than 0.2 % to the variance of the total.
    rounded_G: Codes = np.rint(step_G * ((2**14 + 8 * len(step_G)) / size)).astype(np.int64)
    return rounded_G


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values, in the given order; NaN stays NaN and does not count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = largest
    return adjusted
