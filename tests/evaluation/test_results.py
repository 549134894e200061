"""Results: means, errors clustered by image, groups; whatever the order of rows."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring_rows import result, row

from prism_sweeps.evaluation.results import clustered_error

PAIRS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=2, max_size=50)


def test_error_is_that_of_the_mean_when_every_image_has_one_question():
    scores = [1.0, 0.0, 1.0, 1.0, 0.3]
    rows = [row("x", ["x"], value, image=str(i)) for i, value in enumerate(scores)]
    plain = statistics.stdev(scores) / math.sqrt(len(scores))
    assert result(rows, "exact")["standard_error"] == pytest.approx(100 * plain)


def test_clustered_error_by_hand():
    # two images, scores (1, 1) and (0, 0): mean 0.5, shares (.125 .125) and (-.125 -.125);
    # 2 / (2 - 1) * (0.25^2 + 0.25^2) = 0.25, its root 0.5: as if there were two observations, not four
    rows = [row("x", ["x"], score, image=image) for score, image in [(1, "a"), (1, "a"), (0, "b"), (0, "b")]]
    assert result(rows, "exact")["standard_error"] == pytest.approx(50.0)


@given(PAIRS)
def test_clustered_error_is_equation_4_of_miller(pairs):
    n, mean = len(pairs), math.fsum(score for score, _ in pairs) / len(pairs)
    groups = {group for _, group in pairs}
    shares = [(score - mean) / n for score, _ in pairs]
    error = clustered_error(shares, [group for _, group in pairs])
    if len(groups) < 2:
        assert error is None
        return
    own = math.fsum((s - mean) ** 2 for s, _ in pairs) / n**2
    cross = math.fsum(
        (s - mean) * (t - mean) for i, (s, a) in enumerate(pairs) for j, (t, b) in enumerate(pairs) if i != j and a == b
    )
    expected = len(groups) / (len(groups) - 1) * (own + cross / n**2)
    assert error**2 == pytest.approx(expected, abs=1e-12)


def test_groups_have_errors_of_their_own():
    rows = [row("x", ["x"], float(i % 3 == 0), image=str(i), kind="ab"[i % 2], shade=i % 2 == 0) for i in range(20)]
    told = result(rows, "exact")["groups"]
    alone = {kind: result([one for one in rows if one["tags"]["kind"] == kind], "exact") for kind in "ab"}
    for kind, one in told["kind"].items():
        assert one == {name: alone[kind][name] for name in ("score", "standard_error", "n")}
        assert one["standard_error"] > 0
    assert list(told) == ["kind", "shade"]
    assert told["shade"]["True"] == told["kind"]["a"]


def test_error_of_a_mean_of_splits_is_that_of_independent_means():
    # no image in two splits: the variance of the mean of means is the sum of theirs over four
    rows = [row("Yes", "Yes", float(i % 3 > 0), image=f"{i}", split="a") for i in range(12)]
    rows += [row("Yes", "Yes", float(i % 2), image=f"b{i}", split="b") for i in range(40)]
    told = result(rows, "pope")
    assert told["score"] == pytest.approx(100 * (8 / 12 + 0.5) / 2)
    parts = [told["groups"]["split"][split] for split in "ab"]
    # each part's own factor for few clusters, n / (n - 1), is here that of all 52
    variances = [part["standard_error"] ** 2 * (part["n"] - 1) / part["n"] for part in parts]
    assert told["standard_error"] == pytest.approx(math.sqrt(52 / 51 * sum(variances)) / 2)


def test_empty_answers_are_counted():
    rows = [row(answer, ["x"]) for answer in ("", " \n", "\u00a0", "x", "?")]
    assert result(rows, "exact")["metrics"]["empty_answer_count"] == 3


@given(PAIRS, st.randoms())
def test_result_does_not_depend_on_the_order_of_rows(pairs, seed):
    rows = [row("x", ["x"], score, image=str(image), kind=str(image % 2)) for score, image in pairs]
    assert result(rows, "exact") == result(seed.sample(rows, k=len(rows)), "exact")


def test_results_of_boxes_and_likelihoods_do_not_depend_on_the_order_of_rows():
    rng = random.Random(3)
    boxes = [
        row(f"[0, 0, {rng.random():.3f}, {rng.random():.3f}]", [0.0, 0.0, 0.5, 0.5], kind=i % 3) for i in range(60)
    ]
    letters = [
        row(rng.choice("ABC"), rng.choice("ABC"), split=rng.choice("xy"))
        | {"log_likelihoods": {letter: -rng.random() for letter in "ABC"}}
        for _ in range(60)
    ]
    for rows, name in ((boxes, "iou"), (letters, "ai2d")):
        assert result(rows, name) == result(rng.sample(rows, k=len(rows)), name)


def test_many_groups_take_no_longer_than_few():
    rows = [row("x", ["x"], 1.0, image=str(i), each=i, one=0) for i in range(20_000)]
    told = result(rows, "exact")["groups"]
    assert (len(told["each"]), told["one"]["0"]["n"]) == (20_000, 20_000)
