"""Areas under curves against scikit-learn."""

import math
import random

import numpy as np
import pytest
from scoring_rows import metrics, row, scored
from sklearn.metrics import average_precision_score, roc_auc_score

from prism_sweeps.evaluation.scoring.curves import average_precision, roc_auc

TRUE_FALSE = {"answer": "choice", "choices": ["True", "False"]}


def rows_of(rng, options, count, ties=False, **tags):
    """Rows whose likelihoods are no probabilities: they do not add up to one."""
    rows = []
    for _ in range(count):
        nats = {option: round(rng.uniform(-8, 0), 0 if ties else 4) for option in options}
        gold = rng.choice(options)
        nats[gold] = min(0.0, nats[gold] + rng.choice([0, 2]))
        drawn = {tag: rng.choice(values) for tag, values in tags.items()}
        rows.append(row(max(nats, key=nats.get), gold, **drawn) | {"log_likelihoods": nats})
    return rows


def softmax(rows, options):
    weights = np.array([[math.exp(one["log_likelihoods"][option]) for option in options] for one in rows])
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_two_options_agree_with_scikit_learn_for_the_first(seed, ties):
    rows = rows_of(random.Random(seed), TRUE_FALSE["choices"], 60, ties)
    told = metrics(rows, "choice", **TRUE_FALSE)
    positive, probability = [one["gold"] == "True" for one in rows], softmax(rows, TRUE_FALSE["choices"])[:, 0]
    # rounded as results are, so that equal log-likelihood ratios are equal probabilities
    probability = np.round(probability, 12)
    assert told["roc_auc"] == pytest.approx(roc_auc_score(positive, probability), abs=5.1e-5)
    assert told["pr_auc"] == pytest.approx(average_precision_score(positive, probability), abs=5.1e-5)
    assert "roc_auc_ovo" not in told
    assert 0.5 < told["roc_auc"] < 1


@pytest.mark.parametrize("seed", range(10))
def test_letters_agree_with_scikit_learn(seed):
    rows = rows_of(random.Random(seed), "ABCD", 80, split=["val", "test"])
    told = metrics(rows, "ai2d")
    for part, prefix in ((rows, ""), ([one for one in rows if one["tags"]["split"] == "val"], "val_")):
        gold, probability = ["ABCD".index(one["gold"]) for one in part], softmax(part, "ABCD")
        expected = {
            "roc_auc": roc_auc_score(gold, probability, multi_class="ovr"),
            "roc_auc_ovo": roc_auc_score(gold, probability, multi_class="ovo"),  # what vlm-evaluation prints
            "pr_auc": average_precision_score(gold, probability),
        }
        assert {name: told[prefix + name] for name in expected} == pytest.approx(expected, abs=5.1e-5)
    assert told["invalid_likelihood_count"] == 0


@pytest.mark.parametrize("seed", range(50))
def test_areas_agree_with_scikit_learn_where_scores_tie(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(0, 5, 40) / 4, rng.random(40) < 0.4
    right[:2] = True, False
    assert roc_auc(scores, right) == pytest.approx(roc_auc_score(right, scores))
    assert average_precision(scores, right) == pytest.approx(average_precision_score(right, scores))


def test_areas_by_hand():
    # wrong ones at 0.1 and 0.6, right ones at 0.4 and 0.8: of four pairs three are in order.
    # From above: 0.8 right (precision 1, half of them found), 0.6 wrong, 0.4 right (2/3): 1/2 + 1/2 * 2/3
    scores, right = np.array([0.1, 0.4, 0.6, 0.8]), np.array([False, True, False, True])
    assert roc_auc(scores, right) == 0.75
    assert average_precision(scores, right) == pytest.approx(5 / 6)


def shaken(rng, likelihoods):
    return {option: nats + rng.uniform(-2e-6, 2e-6) for option, nats in likelihoods.items()}


def test_last_bits_of_likelihoods_change_nothing():
    rng = random.Random(1)
    rows = rows_of(rng, TRUE_FALSE["choices"], 40, ties=True)
    told = metrics(rows, "choice", **TRUE_FALSE)
    for _ in range(10):
        noisy = [
            one
            | {"log_likelihoods": {o: nats + rng.uniform(-2e-6, 2e-6) for o, nats in one["log_likelihoods"].items()}}
            for one in rows
        ]
        assert metrics(noisy, "choice", **TRUE_FALSE) == told


def test_extreme_likelihoods_are_told_apart():
    # in single precision the first three probabilities of "True" are all 1
    nats = [(-1e-9, -300.0), (-1e-9, -200.0), (-1e-9, -20.0), (-30.0, -1e-9)]
    golds = ["True", "True", "False", "False"]
    rows = [
        row("True", gold) | {"log_likelihoods": {"True": a, "False": b}}
        for gold, (a, b) in zip(golds, nats, strict=True)
    ]
    assert metrics(rows, "choice", **TRUE_FALSE)["roc_auc"] == 1.0
    rows[0]["log_likelihoods"]["False"] = -math.inf
    assert metrics(rows, "choice", **TRUE_FALSE)["roc_auc"] == 1.0


def test_no_area_without_likelihoods_or_with_one_class():
    rows = rows_of(random.Random(0), TRUE_FALSE["choices"], 10)
    bare = [{key: value for key, value in one.items() if key != "log_likelihoods"} for one in rows]
    assert not any("auc" in name or "likelihood" in name for name in metrics(bare, "choice", **TRUE_FALSE))
    assert not any("auc" in name for name in metrics([*rows, bare[0]], "choice", **TRUE_FALSE))
    one_class = [one | {"gold": "True"} for one in rows]
    assert not any("auc" in name for name in metrics(one_class, "choice", **TRUE_FALSE))
    letters = [one | {"gold": "B"} for one in rows_of(random.Random(0), "ABC", 10)]
    assert not any("auc" in name for name in metrics(letters, "letter"))


def test_likelihoods_that_are_no_numbers_are_counted_and_no_area_is_told():
    rows = rows_of(random.Random(0), TRUE_FALSE["choices"], 10)
    rows[3]["log_likelihoods"]["True"] = math.nan
    rows[5]["log_likelihoods"] = {"True": -math.inf, "False": -math.inf}
    told = metrics(rows, "choice", **TRUE_FALSE)
    assert told["invalid_likelihood_count"] == 2
    assert not any("auc" in name for name in told)


def test_options_that_differ_from_row_to_row():
    rows = rows_of(random.Random(2), "ABCD", 40) + rows_of(random.Random(3), "ABC", 40)
    gold = ["ABCD".index(one["gold"]) for one in rows]
    padded = np.vstack([softmax(rows[:40], "ABCD"), np.c_[softmax(rows[40:], "ABC"), np.zeros(40)]])
    told = metrics(rows, "letter")
    assert told["roc_auc"] == pytest.approx(roc_auc_score(gold, padded, multi_class="ovr"), abs=5.1e-5)
    assert told["pr_auc"] == pytest.approx(average_precision_score(gold, padded), abs=5.1e-5)


def test_option_that_is_never_right_is_left_out_of_the_mean():
    rows = [one for one in rows_of(random.Random(4), "ABC", 90) if one["gold"] != "C"]
    gold, probability = np.array([one["gold"] for one in rows]), softmax(rows, "ABC")
    expected = np.mean([roc_auc_score(gold == letter, probability[:, i]) for i, letter in enumerate("AB")])
    assert metrics(rows, "letter")["roc_auc"] == pytest.approx(expected, abs=5.1e-5)


def test_pope_has_areas_of_its_splits():
    yes_no = {"answer": "choice", "choices": ["Yes", "No"]}
    rows = scored(rows_of(random.Random(5), yes_no["choices"], 60, split=["random", "popular"]), "pope")
    told = metrics(rows, "pope", **yes_no)
    part = [one for one in rows if one["tags"]["split"] == "popular"]
    positive, probability = [one["gold"] == "Yes" for one in part], softmax(part, yes_no["choices"])[:, 0]
    assert told["popular_roc_auc"] == pytest.approx(roc_auc_score(positive, probability), abs=5.1e-5)
    assert {"roc_auc", "pr_auc", "random_roc_auc", "random_pr_auc", "popular_pr_auc"} <= set(told)
