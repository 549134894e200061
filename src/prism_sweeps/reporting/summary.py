"""What the tables say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prism_sweeps.reporting.comparisons import Comparison, Sight
from prism_sweeps.reporting.frame import StudyFrames
from prism_sweeps.reporting.tables import interval, points, probability

FAMILY = 0.05
MOSTLY_BLIND = 0.8
"""Share of a score had without the image from which on the report says that the score is little about vision."""


def sentences(
    frames: StudyFrames, rows: Sequence[Comparison], sights: Sequence[Sight], groups: Sequence[Sight]
) -> list[str]:
    """The findings of a study: coverage, each variant against the reference, seeds, and what is seen.

    `rows` are all variants, the reference first; `sights` and `groups` are those of the reference.
    """
    grouped = {one.benchmark for one in groups}
    return [
        coverage(frames),
        *reference_score(frames, rows[0]),
        *differences(rows),
        *seed_caveat(rows),
        *sight_sentences(sights),
        *blind_sentences([*(one for one in sights if one.benchmark not in grouped), *groups]),
    ]


def coverage(frames: StudyFrames) -> str:
    done, jobs = int((frames.jobs["state"] == "done").sum()), len(frames.jobs)
    variants, seeds, cells = len(frames.variants), len(frames.seeds), len(frames.cells)
    text = f"{count(cells, 'cell')}: {count(variants, 'variant')}, {count(seeds, 'seed')}."
    if done == jobs:
        return f"{text} All {jobs} jobs are done."
    failed = int((frames.jobs["state"] == "failed").sum())
    return f"{text} {done} of {jobs} jobs are done, {failed} failed; what is missing is listed at the end."


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def reference_score(frames: StudyFrames, row: Comparison) -> list[str]:
    if math.isnan(row.mean_score):
        return [f"The reference, {row.label}, has no score on some benchmarks yet."]
    return [f"The reference, {row.label}, scores {points(row.mean_score)} on average over {benchmarks(frames)}."]


def benchmarks(frames: StudyFrames) -> str:
    return count(len(frames.benchmarks), "benchmark")


def differences(rows: Sequence[Comparison]) -> list[str]:
    reference, *others = rows
    known = [row for row in others if row.mean is not None and not math.isnan(row.mean.low)]
    clear = [row for row in known if row.mean and row.mean.excludes_zero]
    clear.sort(key=lambda row: -abs(row.mean.value) if row.mean else 0.0)
    found = [difference_sentence(row, reference.label, len(known)) for row in clear]
    unclear = [f"{row.label} ({interval(row.mean)})" for row in known if row not in clear and row.mean]
    if unclear:
        found.append(f"Cannot be told from {reference.label} on average: {'; '.join(unclear)}.")
    unknown = [row.label for row in others if row not in known]
    if unknown:
        found.append(f"Cannot be compared yet, for want of scores: {'; '.join(unknown)}.")
    return found


def difference_sentence(row: Comparison, reference: str, family: int) -> str:
    if row.mean is None:
        raise ValueError(f"{row.label} has no difference to speak of")
    direction = "better" if row.mean.value > 0 else "worse"
    holds = "holds" if row.p_holm < FAMILY else "does not hold"
    return (
        f"{row.label} is {direction} than {reference} on average: {interval(row.mean)} points; after correction for "
        f"{count(family, 'comparison')} this {holds} (Holm p {probability(row.p_holm)})."
    )


def seed_caveat(rows: Sequence[Comparison]) -> list[str]:
    if any(row.mean is not None and row.mean.seeds == 1 for row in rows):
        return [
            "Some differences rest on one seed: their intervals cover the choice of test images alone, and the spread "
            "between seeds is unknown."
        ]
    return []


def sight_sentences(sights: Sequence[Sight]) -> list[str]:
    found = []
    for condition in dict.fromkeys(one.condition for one in sights):
        chosen = [one for one in sights if one.condition == condition]
        sees = [one for one in chosen if one.verdict == "sees"]
        others = [f"{one.benchmark} ({interval(one.gain)})" for one in chosen if one not in sees]
        text = f"{chosen[0].variant} uses its images on {len(sees)} of {count(len(chosen), 'benchmark')}"
        found.append(f"{text} (real against {condition})" + (f"; not on {', '.join(others)}." if others else "."))
    return found


def blind_sentences(sights: Sequence[Sight]) -> list[str]:
    found = []
    for condition in dict.fromkeys(one.condition for one in sights):
        blind = [one for one in sights if one.condition == condition and one.blind_share >= MOSTLY_BLIND]
        parts = [
            f"{one.benchmark}{', ' if one.group else ''}{one.group} ({points(one.without)} of {points(one.with_image)})"
            for one in blind
        ]
        if parts:
            share = f"{100 * MOSTLY_BLIND:.0f} %"
            found.append(
                f"Little of it needs the image: {share} or more of the score is also had with {condition} images on "
                f"{'; '.join(parts)}."
            )
    return found
