"""Paired comparisons against scipy, statsmodels, the benchmark's own scoring, and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from prism_sweeps.evaluation.results import score_and_error
from prism_sweeps.reporting.paired import (
    bootstrap,
    compare,
    disagreement,
    grids_of,
    mcnemar_p,
    weighted_flip_p,
)
from prism_sweeps.reporting.statistics import Grid, difference


def rows(scores: Any, images: Any = None, splits: Any = None) -> list[dict[str, Any]]:
    return [
        {
            "id": f"e{index}",
            "image": f"{index if images is None else images[index]}.png",
            "answer": "Yes",
            "gold": "yes",
            "score": float(score),
            "tags": {} if splits is None else {"split": str(splits[index])},
        }
        for index, score in enumerate(scores)
    ]


def gap_of(a: Any, b: Any, images: Any = None) -> Grid:
    return difference(*grids_of((rows(a, images), rows(b, images)), by_split=False))


# ---- difference and standard error


def test_equal_splits_are_those_of_the_benchmarks_score() -> None:
    rng = np.random.default_rng(1)
    splits = np.repeat(["random", "popular", "adversarial"], [10, 30, 80])
    sides = [rows(rng.integers(0, 2, 120), np.arange(120) // 2, splits) for _ in "ab"]
    told = [score_and_error(side, splits.tolist())[0] for side in sides]
    found = compare(*sides, by_split=True, resamples=50)
    assert found is not None
    assert [found.score_a, found.score_b] == pytest.approx(told)
    assert found.difference == pytest.approx(told[0] - told[1])
    plain = compare(*sides, by_split=False, resamples=50)
    assert plain is not None
    assert abs(plain.difference - found.difference) > 0.1


def test_standard_error_is_that_of_the_differences_clustered_by_image() -> None:
    rng = np.random.default_rng(2)
    a, b, images = rng.choice([0, 0.3, 1], 90), rng.choice([0, 0.3, 1], 90), rng.integers(0, 25, 90)
    _, expected = score_and_error(rows(a - b, images), [""] * 90)
    found = compare(rows(a, images), rows(b, images), by_split=False, resamples=50)
    assert found is not None
    assert found.standard_error == pytest.approx(expected)
    assert (found.examples, found.images) == (90, 25)


def test_examples_of_one_side_alone_are_left_out_and_counted() -> None:
    a, b = rows([1, 1, 0, 1])[:3], rows([0, 0, 0, 1])[1:]
    found = compare(a, b, by_split=False, resamples=50)
    assert found is not None
    assert (found.examples, found.only_a, found.only_b) == (2, 1, 1)
    assert (found.score_a, found.score_b) == (50, 0)
    assert compare(a[:1], b, by_split=False) is None


# ---- tests of no difference


@pytest.mark.parametrize(
    ("both", "a_alone", "b_alone", "neither", "p"),
    # statsmodels 0.15.0: mcnemar([[both, a_alone], [b_alone, neither]], exact=True).pvalue
    [
        (101, 121, 59, 33, 4.4344492637551645e-06),
        (10, 3, 12, 20, 0.03515625),
        (5, 0, 6, 2, 0.03125),
        (1, 4, 4, 1, 1.0),
    ],
)
def test_mcnemar_is_statsmodels_exact_one(both: int, a_alone: int, b_alone: int, neither: int, p: float) -> None:
    counts = [both, a_alone, b_alone, neither]
    a, b = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    found = compare(rows(a), rows(b), by_split=False, resamples=50)
    assert found is not None
    assert found.test == "McNemar"
    assert found.p == found.mcnemar == pytest.approx(p, rel=1e-6)
    assert weighted_flip_p(gap_of(a, b)) == pytest.approx(p, rel=1e-6)


def test_soft_scores_have_the_paired_permutation_test() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.choice([0, 0.3, 0.6, 0.9, 1], 12), rng.choice([0, 0.3, 0.6], 12)
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    found = compare(rows(a), rows(b), by_split=False, resamples=50)
    assert found is not None
    assert (found.test, found.mcnemar) == ("sign flips", None)
    assert found.p == pytest.approx(expected.pvalue)


def test_questions_about_one_image_flip_together() -> None:
    a, b = np.array([1] * 8 + [0] * 2), np.zeros(10)
    images = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    found = compare(rows(a, images), rows(b, images), by_split=False, resamples=50)
    assert found is not None
    assert found.test == "sign flips"
    assert found.p == pytest.approx(0.5)  # two images of three differ: ++, +-, -+, --
    assert found.mcnemar == pytest.approx(2 / 2**8)


def test_splits_of_equal_weight_weigh_so_in_the_test() -> None:
    # A wins the three examples of the small split, B four of the large one: by examples B, by splits A.
    a, b = [1, 1, 1, *[0] * 9], [0, 0, 0, *[1] * 4, *[0] * 5]
    splits = ["small"] * 3 + ["large"] * 9
    found = compare(rows(a, splits=splits), rows(b, splits=splits), by_split=True, resamples=50)
    assert found is not None
    gaps = np.array([1 / 3] * 3 + [-1 / 9] * 4)
    signs = 1 - 2 * ((np.arange(2**7)[:, None] >> np.arange(7)) & 1)
    assert found.p == pytest.approx(np.mean(np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9))
    assert found.test == "sign flips"


def test_false_positives_are_as_rare_as_said_also_where_questions_share_images() -> None:
    """Two equal models whose answers about one image are right or wrong together: 40 images of six questions."""
    rng, images = np.random.default_rng(4), np.repeat(np.arange(40), 6)
    flips, mcnemar = [], []
    for _ in range(300):
        a, b = (np.repeat(rng.integers(0, 2, 40), 6) for _ in "ab")
        flips.append(weighted_flip_p(gap_of(a, b, images)) <= 0.05)
        mcnemar.append(mcnemar_p(gap_of(a, b, images)) <= 0.05)
    assert stats.binomtest(sum(flips), 300, 0.05, alternative="greater").pvalue > 0.01
    assert np.mean(mcnemar) > 0.3


# ---- interval


def test_interval_is_that_of_scipy() -> None:
    skewed = np.random.default_rng(5).exponential(size=40) ** 2
    expected = stats.bootstrap((skewed,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(6))
    low, high = expected.confidence_interval
    found = bootstrap(gap_of(skewed, np.zeros(40)), 20_000)
    assert found == pytest.approx((low, high), abs=0.03 * (high - low))
    plain = stats.bootstrap((skewed,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(6))
    assert abs(plain.confidence_interval.high - found[1]) > 0.06 * (high - low)


def test_interval_draws_images_with_all_their_questions() -> None:
    rng = np.random.default_rng(7)
    images = np.repeat(np.arange(50), rng.integers(1, 8, 50))
    gaps = (rng.normal(size=50)[images] + rng.normal(size=len(images))) ** 2
    sums, sizes = np.bincount(images, weights=gaps), np.bincount(images)

    def ratio(s: Any, n: Any, axis: int) -> Any:
        return s.sum(axis=axis) / n.sum(axis=axis)

    expected = stats.bootstrap(
        (sums, sizes), ratio, paired=True, n_resamples=20_000, method="BCa", rng=np.random.default_rng(8)
    )
    low, high = expected.confidence_interval
    found = bootstrap(gap_of(gaps, np.zeros(len(gaps)), images), 20_000)
    assert found == pytest.approx((low, high), abs=0.03 * (high - low))


def test_interval_holds_the_truth_as_often_as_said() -> None:
    """60 images of three questions, on which one model is 10 points better."""
    rng, images = np.random.default_rng(9), np.repeat(np.arange(60), 3)
    held = []
    for seed in range(200):
        hardness = np.repeat(rng.uniform(0.1, 0.8, 60), 3)
        a, b = rng.random(180) < hardness + 0.1, rng.random(180) < hardness
        low, high = bootstrap(gap_of(a, b, images), 400, seed)
        held.append(low <= 0.1 <= high)
    assert stats.binomtest(sum(held), 200, 0.95).pvalue > 0.005


def test_interval_is_the_same_every_time_and_whatever_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    gap = gap_of(rng.integers(0, 2, 80), rng.integers(0, 2, 80), np.arange(80) // 2)
    once = bootstrap(gap, 300)
    assert bootstrap(gap, 300) == once
    monkeypatch.setattr("prism_sweeps.reporting.paired.CHUNK", 50)
    assert bootstrap(gap, 300) == once


@pytest.mark.parametrize("images", [None, [0, 0, 1]])
def test_images_that_are_all_alike_give_no_interval(images: list[int] | None) -> None:
    same = rows([1, 0, 1], images)
    found = compare(same, same, by_split=False)
    assert found is not None
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert (found.p, found.standard_error) == (1.0, 0.0)
    alone = compare(rows([1, 0], [0, 0]), rows([0, 0], [0, 0]), by_split=False)
    assert alone is not None
    assert math.isnan(alone.standard_error)
    assert math.isnan(alone.low)


def test_draws_without_a_whole_split_do_not_count() -> None:
    a, b, splits = [1, 0, 1, 0, 1], [0, 0, 0, 1, 0], ["one", "two", "two", "two", "two"]
    found = compare(rows(a, splits=splits), rows(b, splits=splits), by_split=True, resamples=500)
    assert found is not None
    assert 0 <= found.low < found.difference < found.high <= 100


# ---- records that contradict each other


@pytest.mark.parametrize(("what", "other"), [("gold", "no"), ("image", "x.png"), ("tags", {"split": "b"})])
def test_records_that_tell_an_example_differently_are_noticed(what: str, other: object) -> None:
    a, b = rows([1, 0]), rows([1, 1])
    assert disagreement(a, b) is None
    b[1][what] = other
    told = disagreement(a, b)
    assert told is not None
    assert f"'e1' has {what}" in told
    assert disagreement(a[:1], b) is None
