"""What differences a set can show: published sample sizes, the records' own errors, and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from prism_sweeps.evaluation.results import score_and_error
from prism_sweeps.reporting.paired import grids_of, weighted_flip_p
from prism_sweeps.reporting.power import detectable, examples_for, seen, standard_error
from prism_sweeps.reporting.statistics import difference


def rows(scores: Any, images: Any = None) -> list[dict[str, Any]]:
    where = range(len(scores)) if images is None else images
    return [
        {"id": str(index), "image": str(image), "score": float(score), "tags": {}}
        for index, (image, score) in enumerate(zip(where, scores, strict=True))
    ]


def clustered(rng: np.random.Generator, images: int, each: int, gap: float) -> tuple[Any, Any]:
    """0/1 scores of two models, `gap` apart; half of a model's answers about one image are right or wrong together."""
    hardness = np.repeat(rng.uniform(0.1, 0.9 - gap, images), each)
    own, shared = rng.random((2, images * each)), np.repeat(rng.random((2, images)), each, axis=1)
    luck = np.where(rng.random((2, images * each)) < 0.5, own, shared)
    return luck[0] < hardness + gap, luck[1] < hardness


@pytest.mark.parametrize(
    ("one_alone", "other_alone", "n"),
    # (0.45, 0.05): the worked example of powerandsamplesize.com for Connor 1987; (0.3, 0.15): clinicaltrials-tools.
    [(0.45, 0.05, 23), (0.30, 0.15, 155)],
)
def test_examples_are_those_of_published_tables(one_alone: float, other_alone: float, n: int) -> None:
    gap, discordance = one_alone - other_alone, one_alone + other_alone
    assert examples_for(gap, discordance, 1.0, 0.05, 0.8) == n
    assert examples_for(gap, discordance, 3.0, 0.05, 0.8) in range(3 * n - 3, 3 * n + 1)


def test_small_differences_need_what_millers_formula_says() -> None:
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert examples_for(0.01, 0.2, 1.0, 0.05, 0.8) == pytest.approx(z**2 * (0.2 - 0.01**2) / 0.01**2, rel=1e-3)


@pytest.mark.parametrize("power", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("effect", [1.0, 2.5])
@pytest.mark.parametrize("gap", [0.005, 0.05, 0.15])
def test_the_two_questions_are_each_others_inverse(gap: float, effect: float, power: float) -> None:
    count = examples_for(gap, 0.2, effect, 0.01, power)
    assert count is not None
    found = detectable(count, 0.2, effect, 0.01, power)
    fewer = detectable(math.floor(count * 0.97), 0.2, effect, 0.01, power)
    assert found is not None
    assert found <= gap
    assert fewer is None or fewer > gap or count < 60


def test_no_difference_is_larger_than_the_discordance() -> None:
    assert examples_for(0.21, 0.2, 1.0, 0.05, 0.8) is None
    assert examples_for(0.2, 0.2, 1.0, 0.05, 0.8) is not None
    assert detectable(20, 0.2, 1.0, 0.05, 0.8) is None
    assert detectable(2, 0.2, 1.0, 0.05, 0.8) is None


def test_the_power_is_that_of_mcnemars_exact_test() -> None:
    gap, discordance = 0.05, 0.2
    count = examples_for(gap, discordance, 1.0, 0.05, 0.8)
    rng = np.random.default_rng(1)
    alone = rng.binomial(count, discordance, 4000)
    wins = rng.binomial(alone, (discordance + gap) / 2 / discordance)
    p = 2 * stats.binom.cdf(np.minimum(wins, alone - wins), alone, 0.5)
    assert 0.76 < np.mean(p <= 0.05) < 0.82


def test_the_design_effect_of_scored_models_gives_the_power_on_new_images() -> None:
    rng, each = np.random.default_rng(2), 4
    pilot = clustered(rng, 4000, each, 0.06)
    known = seen([rows(scores, np.arange(4000).repeat(each)) for scores in pilot], by_split=False)
    assert known.design_effect > 1.2
    count = examples_for(0.06, known.discordance, known.design_effect, 0.05, 0.8)
    assert count is not None
    images = count // each
    where = np.arange(images).repeat(each)
    found = []
    for _ in range(250):
        a, b = clustered(rng, images, each, 0.06)
        found.append(weighted_flip_p(difference(*grids_of((rows(a, where), rows(b, where)), False))) <= 0.05)
    assert 0.72 < np.mean(found) < 0.88


def test_standard_error_is_that_of_the_records() -> None:
    rng = np.random.default_rng(3)
    plain = rows(rng.random(2000) < 0.7)
    score, error = score_and_error(plain, [""] * 2000)
    assert 100 * standard_error(score / 100, 2000) == pytest.approx(error, rel=1e-3)
    soft = rows(rng.choice([0, 0.3, 1], 2000), rng.integers(0, 300, 2000))
    score, error = score_and_error(soft, [""] * 2000)
    known = seen([soft], by_split=False)
    assert 100 * standard_error(known.accuracy, 2000, known.spread) == pytest.approx(error)
    assert 100 * standard_error(known.accuracy, 500, known.spread) == pytest.approx(2 * error)


def test_what_models_show_is_the_mean_over_their_pairs() -> None:
    a, b, c = rows([1, 1, 0, 0]), rows([1, 0, 1, 0]), rows([1, 1, 1, 0])
    known = seen([a, b, c], by_split=False)
    assert known.discordance == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert known.accuracy == pytest.approx((2 + 2 + 3) / 12)
    assert known.models == 3


def test_one_model_or_two_that_never_differ_tell_nothing_of_pairs() -> None:
    a = rows([1, 1, 0, 0])
    for models in ([a], [a, a]):
        known = seen(models, by_split=False)
        assert known.accuracy == 0.5
        assert math.isnan(known.discordance)
        assert math.isnan(known.design_effect)
