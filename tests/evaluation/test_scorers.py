"""The scorers against hand-computed cases, scikit-learn, and properties that the metrics' definitions imply."""

import hashlib
import json
import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.benchmarks import Example
from prism_sweeps.evaluation.contractions import CONTRACTIONS
from prism_sweeps.evaluation.results import clustered_error, result_of
from prism_sweeps.evaluation.scorers import SCORERS, gold_of, scorer, soft_accuracy
from prism_sweeps.evaluation.text_normalisation import textvqa_answer, vqa_answer, vqa_punctuation

VQA = Benchmark(name="vqa", index="vqa", prompt="{question}", answer="generate", scorer="vqav2")
WORDS = st.sampled_from(["red", "blue", "a dog", "2", "two"])


def example(tmp_path, **fields):
    return Example(**{"id": "1", "image": tmp_path, "key": "i", "question": "?", "answers": ("x",)} | fields)


def score(name, answer, gold, benchmark=VQA):
    return SCORERS[name].score(row(answer, gold, 0.0), benchmark)


def result(rows, name):
    return result_of(rows, replace(VQA, scorer=name))


def row(answer, gold, score, image="i", **tags):
    return {"id": "1", "image": image, "answer": answer, "gold": gold, "score": score, "tags": tags}


# ---- the VQA metric


def test_contractions_are_the_official_table():
    # sha256 of the sorted pairs of `contractions` in GT-Vision-Lab/VQA at c4e6a0e4, vqaEval.py
    digest = hashlib.sha256(json.dumps(sorted(CONTRACTIONS.items())).encode()).hexdigest()
    assert (len(CONTRACTIONS), digest) == (120, "3e5960526f62912d3b70896069c43c13d7c21be38d50ca28efbb9095b499454f")


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("The Dog.", "dog"),
        ("  two \n dogs\t", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("t-shirt", "t shirt"),  # no space beside the mark: a space takes its place
        ("red- blue", "red blue"),  # a space beside it: nothing does
        ("1,000", "1000"),  # a comma between digits: every mark goes
        ("1,000-2", "10002"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("U.S.A.", "usa"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),  # sic
        ("a", ""),
        ("", ""),
        ("what?!", "what"),
        ("." * 40, "." * 8),  # the official pattern is applied 32 times
    ],
)
def test_vqa_normalisation(raw, normal):
    assert vqa_answer(raw) == normal


def test_textvqa_drops_commas_and_splits_possessives_first():
    assert textvqa_answer("Joe's, cafe?") == "joe 's cafe"
    assert vqa_answer("Joe's, cafe") == "joe's cafe"


@pytest.mark.parametrize(("matches", "worth"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_of_ten(matches, worth):
    # e.g. 3 of 10: the three see 2 others (2/3 each), the seven see 3 others (1 each): (3 * 2/3 + 7) / 10 = 0.9
    human = ["yes"] * matches + ["no"] * (10 - matches)
    assert soft_accuracy("yes", human) == pytest.approx(worth)


def test_variants_differ_in_what_they_do_to_the_human_answers():
    human = ["The T-Shirt"] * 10
    assert vqa_punctuation(human[0]) == "The T Shirt"
    assert score("vqav2", "t-shirt", human) == 0.0  # case and article stay on the human side
    assert score("textvqa", "t-shirt", human) == 1.0
    assert score("vqav2", "t-shirt", ["t-shirt"] * 10) == 1.0
    assert score("vizwiz", "t-shirt", ["t-shirt"] * 10) == 0.0
    assert score("vizwiz", "T shirt.", ["t shirt"] * 10) == 1.0


@given(answer=WORDS, human=st.lists(WORDS, min_size=10, max_size=10), seed=st.randoms())
def test_soft_accuracy_properties(answer, human, seed):
    for name in ("vqav2", "vizwiz", "textvqa"):
        value = score(name, answer, human, VQA)
        shuffled = seed.sample(human, k=10)
        agreeing = [*human[1:], answer]
        assert 0.0 <= value <= 1.0
        assert score(name, answer, shuffled) == pytest.approx(value)
        if name == "textvqa":  # both sides normalised alike, so one more person who agrees can only help
            assert score(name, answer, agreeing) >= value - 1e-12


@given(answer=st.text(max_size=200), human=st.lists(st.text(max_size=20), min_size=10, max_size=10))
def test_every_text_has_a_score(answer, human):
    golds = {"gqa": human[0], "choice": human[0], "pope": human[0], "iou": [0.1, 0.1, 0.2, 0.2]}
    golds |= dict.fromkeys(("letter", "tallyqa", "ai2d"), "A")
    for name in SCORERS:
        assert 0.0 <= score(name, answer, golds.get(name, human)) <= 1.0


def test_very_long_answer_is_scored_quickly():
    for text in ("1" * 200_000, "." * 200_000, ", " * 100_000, "(" * 200_000):
        assert score("vqav2", text, ["x"] * 10) == 0.0
        assert score("iou", text, [0.1, 0.1, 0.2, 0.2]) == 0.0


# ---- the others


def test_gqa_strips_the_prediction_only():
    assert score("gqa", " To the left. ", "to the left") == 1.0
    assert score("gqa", "t-shirt", "t-shirt") == 0.0
    assert result([row("t-shirt", "t-shirt", 0.0)], "gqa")["metrics"]["accuracy_both_stripped"] == 100.0


@pytest.mark.parametrize(
    ("answer", "worth"), [("B", 1), (" B.", 1), ("(B) two", 1), ("A", 0), ("Blue", 0), ("b", 0), ("", 0)]
)
def test_letter_at_the_start_counts(answer, worth):
    assert score("letter", answer, "B") == worth


def test_iou_threshold_is_inclusive():
    # half of the true box: IoU exactly 0.5
    half, true = "[0.0, 0.0, 0.5, 0.5]", [0.0, 0.0, 0.5, 1.0]
    at = {t: Benchmark(name="r", scorer="iou", iou_threshold=t) for t in (0.25, 0.5, 0.51)}
    assert [score("iou", half, true, benchmark) for benchmark in at.values()] == [1.0, 1.0, 0.0]
    rows = [row(half, true, 1.0), row("nothing here", true, 0.0)]
    assert scorer("iou").metrics(rows, VQA) == {"mean_iou": 25.0, "invalid_boxes": 50.0}


def test_pope_is_the_mean_of_its_splits_and_agrees_with_scikit_learn():
    answers = [("Yes", "Yes", "random"), ("Yes", "No", "random"), ("No", "No", "random"), ("No", "Yes", "random")]
    answers += [("Yes", "No", "popular"), ("Yes", "Yes", "popular")] * 3 + [("No", "No", "adversarial")]
    rows = [row(a, g, float(a == g), image=str(i), split=s) for i, (a, g, s) in enumerate(answers)]
    told = result(rows, "pope")
    assert told["score"] == pytest.approx((50 + 50 + 100) / 3)
    assert told["metrics"]["accuracy"] == pytest.approx(100 * 6 / 11)
    assert told["groups"]["split"]["adversarial"] == {"score": 100.0, "n": 1}
    said, true = [a == "Yes" for a, *_ in answers], [g == "Yes" for _, g, _ in answers]
    expected = precision_recall_fscore_support(true, said, average="binary")[:3]
    found = [told["metrics"][name] / 100 for name in ("precision", "recall", "f1")]
    assert found == pytest.approx(list(expected))
    assert told["metrics"]["popular_yes_ratio"] == 100.0
    assert told["metrics"]["adversarial_precision"] == 0.0  # it never said yes


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_vizwiz_unanswerable_detection_agrees_with_scikit_learn(pairs):
    rows = [
        row("unanswerable" if says else "a dog", ["unanswerable"] * 10 if is_so else ["dog"] * 10, 1.0)
        for says, is_so in pairs
    ]
    metrics = scorer("vizwiz").metrics(rows, VQA)
    said, true = [says for says, _ in pairs], [is_so for _, is_so in pairs]
    expected = precision_recall_fscore_support(true, said, average="binary", zero_division=0)[2]
    assert metrics["unanswerable_f1"] / 100 == pytest.approx(expected)
    if any(true):
        assert metrics["unanswerable_average_precision"] / 100 == pytest.approx(average_precision_score(true, said))


def test_vizwiz_reports_both_kinds_of_question():
    rows = [row("dog", ["dog"] * 10, 1.0, answerable=1), row("dog", ["unanswerable"] * 10, 0.0, answerable=0)]
    metrics = scorer("vizwiz").metrics(rows, VQA)
    assert (metrics["answerable_accuracy"], metrics["unanswerable_accuracy"]) == (100.0, 0.0)


def test_tallyqa_reports_simple_and_complex():
    rows = [row("A", "A", 1.0, kind="simple"), row("A", "B", 0.0, kind="complex"), row("A", "A", 1.0, kind="complex")]
    told = result(rows, "tallyqa")
    assert told["score"] == pytest.approx(200 / 3)  # over examples, not over kinds
    assert told["metrics"]["simple_accuracy"] == 100.0
    assert told["metrics"]["complex_accuracy"] == 50.0


# ---- standard errors


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


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=2, max_size=50), st.randoms())
def test_clustered_error_is_equation_4_of_miller(pairs, seed):
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


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=2, max_size=50), st.randoms())
def test_result_does_not_depend_on_the_order_of_rows(pairs, seed):
    rows = [row("x", ["x"], score, image=str(image), kind=str(image % 2)) for score, image in pairs]
    assert result(rows, "exact") == result(seed.sample(rows, k=len(rows)), "exact")


# ---- errors


def test_unknown_scorer_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'vqav2'"):
        scorer("vqa2")


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("vqav2", {"answers": ("red",)}, "10 human answers"),
        ("exact", {"answers": ()}, "no answer"),
        ("gqa", {"answers": ("a", "b")}, "one answer"),
        ("letter", {"answers": ("C",), "options": ("x", "y")}, "letter of one of its 2 options"),
        ("iou", {}, "no box"),
    ],
)
def test_example_that_lacks_what_the_scorer_needs(tmp_path, name, fields, reason):
    with pytest.raises(DataError, match=f"example '1'.*{reason}"):
        gold_of(example(tmp_path, **fields), Benchmark(name="b", scorer=name, answer="generate"))


def test_answer_must_be_among_the_choices(tmp_path):
    benchmark = Benchmark(name="b", scorer="choice", answer="choice", choices=["True", "False"])
    assert gold_of(example(tmp_path, answers=("True",)), benchmark) == "True"
    with pytest.raises(DataError, match="'Maybe' is not among the choices True, False"):
        gold_of(example(tmp_path, answers=("Maybe",)), benchmark)
