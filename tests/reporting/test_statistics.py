"""Statistics against scipy, hand computation and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prism_sweeps.reporting.statistics import Grid, average, difference, estimate, holm, sign_flip_p


def grid(score_SN: object, images: object = None, strata: object = None, seeds: object = None, first: int = 0) -> Grid:
    score_SN = np.atleast_2d(np.asarray(score_SN, dtype=float))
    S, N = score_SN.shape
    return Grid(
        tuple(seeds or range(1, S + 1)),
        tuple(f"e{index}" for index in range(first, first + N)),
        np.arange(N) if images is None else np.asarray(images),
        np.zeros(N, dtype=int) if strata is None else np.asarray(strata),
        score_SN,
    )


# ---- intervals


def test_one_seed_and_one_question_per_image_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, 80), rng.integers(0, 2, 80)
    expected = stats.ttest_rel(a, b)
    found = estimate([difference(grid(a), grid(b))])
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)
    bounds = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * bounds.low, 100 * bounds.high))


def test_questions_about_one_image_count_as_one_draw() -> None:
    scores = np.random.default_rng(2).normal(0.1, 1, 40)
    once, thrice = estimate([grid(scores)]), estimate([grid(np.repeat(scores, 3), np.repeat(np.arange(40), 3))])
    assert once is not None
    assert thrice is not None
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_seeds_that_differ_alone_give_the_t_interval_of_their_means() -> None:
    means = np.array([0.10, 0.16, 0.07])
    found = estimate([grid(np.repeat(means[:, None], 50, axis=1))])
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high))
    assert found.degrees == pytest.approx(2)


def test_variance_is_the_sum_of_the_components_of_a_two_way_analysis_of_variance() -> None:
    x_SG = np.random.default_rng(3).normal(size=(4, 30)) + np.arange(4)[:, None] + np.arange(30) / 10
    seeds, images, mean = x_SG.mean(axis=1, keepdims=True), x_SG.mean(axis=0, keepdims=True), x_SG.mean()
    ms_seed = 30 * ((seeds - mean) ** 2).sum() / 3
    ms_image = 4 * ((images - mean) ** 2).sum() / 29
    ms_rest = ((x_SG - seeds - images + mean) ** 2).sum() / (3 * 29)
    found = estimate([grid(x_SG)])
    assert found is not None
    assert (found.standard_error / 100) ** 2 == pytest.approx((ms_seed + ms_image - ms_rest) / 120)


def test_equal_splits_weigh_equally() -> None:
    found = estimate([grid([1, 1, 1, 1, 0, 0], strata=[0, 0, 0, 0, 1, 1])])
    assert found is not None
    assert found.value == pytest.approx(50)


def test_only_shared_seeds_and_examples_are_compared() -> None:
    a, b = grid(np.ones((2, 4)), seeds=(1, 2)), grid(np.zeros((2, 4)), seeds=(2, 3), first=1)
    found = difference(a, b)
    assert (found.seeds, found.ids) == ((2,), ("e1", "e2", "e3"))
    assert average([a, found]).score_SN.tolist() == [[1, 1, 1]]


def test_without_shared_seeds_there_is_no_estimate() -> None:
    assert estimate([difference(grid([1, 0], seeds=(1,)), grid([1, 0], seeds=(2,)))]) is None
    assert estimate([]) is None


def test_a_single_image_has_a_value_but_no_interval() -> None:
    found = estimate([grid([1.0])])
    assert found is not None
    assert found.value == 100
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert not found.excludes_zero


def test_no_difference_at_all_is_no_evidence() -> None:
    found = estimate([grid(np.zeros((2, 10)))])
    assert found is not None
    assert (found.low, found.high, found.p) == (0, 0, 1)


SETTINGS = [
    # seeds, images, questions per image, benchmarks, spread of: seeds, seeds per benchmark, images, residual
    (1, 60, 2, 1, 0.0, 0.0, 0.3, 0.4),
    (3, 60, 1, 1, 0.03, 0.0, 0.3, 0.4),
    (3, 60, 3, 1, 0.02, 0.0, 0.3, 0.4),
    (5, 60, 1, 1, 0.06, 0.0, 0.3, 0.4),
    (5, 30, 2, 3, 0.02, 0.01, 0.3, 0.4),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_intervals_cover_the_true_effect_95_times_in_100(setting: tuple[int, int, int, int, float, ...]) -> None:
    found = coverage(*setting, runs=500)
    # 500 runs of a true 95 % give 93 to 97 in 96 of 100 such tests; the seed is fixed. Three seeds are a little
    # cautious where seeds hardly matter (up to 98 %).
    assert 0.93 <= found <= (0.985 if setting[0] == 3 else 0.97)


def test_leaving_out_the_spread_of_seeds_would_not_cover() -> None:
    """The reason for the two-way variance: one seed's interval misses most effects when seeds differ much."""
    assert coverage(1, 60, 1, 1, 0.1, 0.0, 0.3, 0.4, runs=300) < 0.8


def coverage(
    S: int, G: int, per: int, K: int, seed: float, mixed: float, image: float, rest: float, runs: int
) -> float:
    rng, effect, hits = np.random.default_rng(7), 0.05, 0
    images = np.repeat(np.arange(G), per)
    for _ in range(runs):
        luck_S = rng.normal(0, seed, S)
        grids = []
        for benchmark in range(K):
            shared = effect + luck_S + rng.normal(0, mixed, S)
            score_SN = shared[:, None] + rng.normal(0, image, G)[images] + rng.normal(0, rest, (S, G * per))
            grids.append(grid(score_SN, images + benchmark * G))
        found = estimate(grids)
        assert found is not None
        hits += found.low <= 100 * effect <= found.high
    return hits / runs


def test_benchmarks_that_share_images_are_not_independent() -> None:
    """Three benchmarks over one set of images, with the same results, say no more than one of them."""
    scores = np.random.default_rng(5).normal(0, 1, 60)
    one, three = estimate([grid(scores)]), estimate([grid(scores)] * 3)
    apart = estimate([grid(scores, np.arange(60) + 60 * benchmark) for benchmark in range(3)])
    assert one is not None
    assert three is not None
    assert apart is not None
    assert three.standard_error == pytest.approx(one.standard_error)
    assert apart.standard_error < 0.6 * one.standard_error


# ---- the sign-flip test


@pytest.mark.parametrize(("worse", "better"), [(3, 10), (0, 8), (1, 0), (33, 60), (0, 0)])
def test_sign_flip_is_mcnemars_exact_test_on_0_1_scores(worse: int, better: int) -> None:
    changes = np.concatenate([-np.ones(worse), np.ones(better), np.zeros(20)])
    expected = stats.binomtest(better, worse + better).pvalue if worse + better else 1.0
    assert sign_flip_p(grid(changes)) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([-1, -0.6, -0.3, 0, 1 / 3, 0.5, 1]), min_size=1, max_size=9))
def test_sign_flip_is_the_exhaustive_permutation_test(changes: list[float]) -> None:
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(changes))).reshape(len(changes), -1).T
    totals = np.abs(signs @ np.array(changes))
    expected = np.mean(totals >= abs(sum(changes)) - 1e-9)
    assert sign_flip_p(grid(changes)) == pytest.approx(expected, abs=1e-9)


def test_sign_flip_flips_images_not_questions() -> None:
    changes = np.ones(12)
    assert sign_flip_p(grid(changes, np.repeat(np.arange(4), 3))) == pytest.approx(2 / 2**4)


def test_sign_flip_of_many_graded_scores_agrees_with_the_t_test() -> None:
    changes = np.random.default_rng(11).normal(0.02, 0.4, 2000)
    assert sign_flip_p(grid(changes)) == pytest.approx(stats.ttest_1samp(changes, 0).pvalue, rel=0.05)


def test_sign_flip_rejects_one_true_null_in_a_hundred() -> None:
    rng = np.random.default_rng(13)
    rejected = [sign_flip_p(grid(rng.choice([-1, 0, 1], (2, 60), p=[0.2, 0.6, 0.2]))) < 0.01 for _ in range(1500)]
    assert np.mean(rejected) <= 0.016


# ---- Holm


def test_holm_against_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_unknown_p_values_out() -> None:
    assert holm([math.nan, 0.02])[1] == pytest.approx(0.02)
