"""What a study says: each choice against its reference, and each benchmark with its images against without."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from prism_sweeps.reporting.frame import StudyFrames, split_of
from prism_sweeps.reporting.statistics import Estimate, Grid, average, difference, estimate, holm, sign_flip_p

REAL = "real"
SEES_BELOW = 0.01
"""Two-sided p below which a model is said to use its image (or to be misled by it)."""
GROUP_VALUES = 12
"""A tag with more values than this is not a grouping one reads in a table."""

Grids = Mapping[tuple[str, str, str], Grid]
"""(variant, benchmark, condition) -> scores of the examples that every seed done has answered."""


@dataclass(frozen=True)
class Standing:
    """The score of a row on one benchmark: percent, or NaN, and how many of its planned evaluations it is made of."""

    score: float
    done: int
    planned: int


@dataclass(frozen=True)
class Comparison:
    """One row of an ablation: the mean over `variants`, and its paired difference from `partners` (none: reference)."""

    label: str
    variants: tuple[str, ...]
    partners: tuple[str, ...]
    scores: dict[str, Standing]
    differences: dict[str, Estimate]
    mean_score: float
    mean: Estimate | None
    p_holm: float = math.nan


@dataclass(frozen=True)
class AxisComparison:
    """One axis: its choices, the reference's first. `alone`: variants that change it only together with other axes."""

    axis: str
    rows: list[Comparison]
    alone: list[str]


@dataclass(frozen=True)
class Sight:
    """Scores with the image and without it (another image or a grey one), on a benchmark or one group of it."""

    variant: str
    benchmark: str
    condition: str
    group: str
    examples: int
    with_image: float
    without: float
    gain: Estimate
    p: float
    p_holm: float = math.nan

    @property
    def verdict(self) -> str:
        if self.p >= SEES_BELOW:
            return "no evidence"
        return "sees" if self.gain.value > 0 else "misled"

    @property
    def blind_share(self) -> float:
        """How much of the score is had without the image, in 0..1 (more where the image misleads)."""
        return self.without / self.with_image if self.with_image > 0 else math.nan


# ---- grids


def grids_of(frames: StudyFrames) -> Grids:
    """All scores as grids of seeds by examples."""
    examples = frames.examples.assign(code=pd.factorize(frames.examples["image"])[0])
    keys = ["variant", "benchmark", "condition"]
    examples = examples[[*keys, "seed", "example", "code", "score", "tags"]]
    groups = examples.groupby(keys, observed=True, sort=False)
    return {tuple(key): grid_of(part, key[1] in frames.by_split) for key, part in groups}  # type: ignore[misc]


def grid_of(part: pd.DataFrame, by_split: bool) -> Grid:
    """One variant on one benchmark; examples that some seed has no answer to are left out."""
    column, names = pd.factorize(part["example"])
    seeds, row = np.unique(part["seed"], return_inverse=True)
    score_SN = np.full((len(seeds), len(names)), np.nan)
    score_SN[row, column] = part["score"]
    _, first = np.unique(column, return_index=True)
    splits = [split_of(tags) if by_split else "" for tags in part["tags"].iloc[first]]
    whole = ~np.isnan(score_SN).any(axis=0)
    return Grid(
        seeds=tuple(seeds.tolist()),
        ids=tuple(names[whole]),
        image_N=part["code"].to_numpy(dtype=np.int64)[first][whole],
        stratum_N=pd.factorize(np.array(splits, dtype=object))[0].astype(np.int64)[whole],
        score_SN=score_SN[:, whole],
    )


# ---- ablations


def compare_variants(frames: StudyFrames, grids: Grids) -> list[Comparison]:
    """Every variant against the reference; the reference's own row comes first."""
    reference, *others = frames.variants
    rows = [compare(frames, grids, name, (name,), (reference,)) for name in others]
    return [compare(frames, grids, reference, (reference,), ()), *corrected(rows)]


def compare_axes(frames: StudyFrames, grids: Grids) -> list[AxisComparison]:
    """Axis by axis, each choice against the reference's choice."""
    return [compare_axis(frames, grids, axis) for axis in frames.axes]


def compare_axis(frames: StudyFrames, grids: Grids, axis: str) -> AxisComparison:
    """Each choice over all pairs of variants that differ in this axis alone, so that like is compared with like.

    In a one-factor-at-a-time study that is one pair, with the reference; in a full product it is the main effect.
    """
    home = frames.variants[frames.reference][axis]
    place = {frozenset(where.items()): name for name, where in frames.variants.items()}
    pairs: dict[str, list[tuple[str, str]]] = {}
    alone = []
    for name, where in frames.variants.items():
        if where[axis] != home:
            partner = place.get(frozenset((where | {axis: home}).items()))
            if partner is None:
                alone.append(name)
            else:
                pairs.setdefault(where[axis], []).append((name, partner))
    rows = [compare(frames, grids, choice, *zip(*found, strict=True)) for choice, found in pairs.items()]
    bases = tuple(name for name in frames.variants if any(name in row.partners for row in rows))
    first = compare(frames, grids, home, bases or (frames.reference,), ())
    return AxisComparison(axis, [first, *corrected(rows)], alone)


def compare(
    frames: StudyFrames, grids: Grids, label: str, variants: tuple[str, ...], partners: tuple[str, ...]
) -> Comparison:
    scores = {benchmark: standing(frames, variants, benchmark) for benchmark in frames.benchmarks}
    paired = {
        benchmark: grid
        for benchmark in frames.benchmarks
        if (grid := paired_grid(grids, benchmark, variants, partners)) is not None
    }
    found = {benchmark: estimate([grid]) for benchmark, grid in paired.items()}
    return Comparison(
        label=label,
        variants=variants,
        partners=partners,
        scores=scores,
        differences={benchmark: one for benchmark, one in found.items() if one is not None},
        mean_score=float(np.mean([one.score for one in scores.values()])) if scores else math.nan,
        mean=estimate([grid for benchmark, grid in paired.items() if found[benchmark] is not None]),
    )


def paired_grid(grids: Grids, benchmark: str, variants: Sequence[str], partners: Sequence[str]) -> Grid | None:
    """Differences on one benchmark, averaged over the pairs that have both sides; None when no pair has."""
    both = [
        difference(grids[name, benchmark, REAL], grids[partner, benchmark, REAL])
        for name, partner in zip(variants, partners, strict=False)
        if (name, benchmark, REAL) in grids and (partner, benchmark, REAL) in grids
    ]
    return average(both) if both else None


def standing(frames: StudyFrames, variants: Sequence[str], benchmark: str) -> Standing:
    table = frames.scores
    chosen = table[(table["benchmark"] == benchmark) & (table["condition"] == REAL) & table["variant"].isin(variants)]
    return Standing(float(chosen["score"].mean()), int(chosen["score"].notna().sum()), len(chosen))


def corrected(rows: Sequence[Comparison]) -> list[Comparison]:
    """The rows with the p-values of their mean differences corrected for their number."""
    adjusted = holm([math.nan if row.mean is None else row.mean.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


# ---- does it see


def look(frames: StudyFrames, grids: Grids, variant: str) -> list[Sight]:
    """Each benchmark with its images against each other condition that was scored; Holm over all of them."""
    found = [
        sight(variant, benchmark, condition, "", grids[variant, benchmark, REAL], grids[variant, benchmark, condition])
        for condition in blind_conditions(frames)
        for benchmark in frames.benchmarks
        if (variant, benchmark, REAL) in grids and (variant, benchmark, condition) in grids
    ]
    return with_holm(found)


def look_together(frames: StudyFrames, grids: Grids) -> list[Sight]:
    """The same over all variants together: their mean score on each example, with the image and without."""
    found = []
    for condition in blind_conditions(frames):
        for benchmark in frames.benchmarks:
            keys = [(variant, benchmark) for variant in frames.variants]
            both = [key for key in keys if (*key, REAL) in grids and (*key, condition) in grids]
            if both:
                real = average([grids[*key, REAL] for key in both])
                blind = average([grids[*key, condition] for key in both])
                found.append(sight(f"{len(both)} variants", benchmark, condition, "", real, blind))
    return with_holm(found)


def look_at_groups(frames: StudyFrames, grids: Grids, variant: str, benchmark: str) -> list[Sight]:
    """The same for each value of each tag (question type, ...) of one benchmark."""
    found = []
    for condition in blind_conditions(frames):
        real, blind = grids.get((variant, benchmark, REAL)), grids.get((variant, benchmark, condition))
        if real is not None and blind is not None:
            for group, ids in groups_of(frames, variant, benchmark).items():
                part = [name for name in real.ids if name in ids]
                flat = replace(real, stratum_N=np.zeros_like(real.stratum_N))
                if part:
                    found.append(sight(variant, benchmark, condition, group, flat.take(real.seeds, part), blind))
    return with_holm(found)


def blind_conditions(frames: StudyFrames) -> list[str]:
    return [condition for condition in frames.conditions if condition != REAL]


def groups_of(frames: StudyFrames, variant: str, benchmark: str) -> dict[str, set[str]]:
    """`tag = value` -> ids of the examples that have it, for tags with between two and a dozen values."""
    table = frames.examples
    chosen = table[(table["variant"] == variant) & (table["benchmark"] == benchmark) & (table["condition"] == REAL)]
    groups: dict[str, dict[str, set[str]]] = {}
    for name, tags in zip(chosen["example"], chosen["tags"], strict=True):
        for tag, value in (tags or {}).items():
            groups.setdefault(tag, {}).setdefault(str(value), set()).add(name)
    return {
        f"{tag} = {value}": ids
        for tag, values in sorted(groups.items())
        if 2 <= len(values) <= GROUP_VALUES
        for value, ids in sorted(values.items())
    }


def sight(variant: str, benchmark: str, condition: str, group: str, real: Grid, blind: Grid) -> Sight | None:
    """The comparison over the examples and seeds that both have; None when there are none."""
    gain_grid = difference(real, blind)
    gain = estimate([gain_grid])
    if gain is None:
        return None
    score = 100 * real.take(gain_grid.seeds, gain_grid.ids).mean()
    p = sign_flip_p(gain_grid)
    return Sight(variant, benchmark, condition, group, gain.examples, score, score - gain.value, gain, p)


def with_holm(found: Iterable[Sight | None]) -> list[Sight]:
    known = [one for one in found if one is not None]
    adjusted = holm([one.p for one in known])
    return [replace(one, p_holm=p) for one, p in zip(known, adjusted, strict=True)]
