"""Each scorer against cases worked out by hand from its published definition."""

import hashlib
import json

import pytest
from scoring_rows import metrics, result, row, score, scored
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.suite import SCORER_VERSIONS, Benchmark
from prism_sweeps.evaluation.benchmarks import Example
from prism_sweeps.evaluation.contractions import CONTRACTIONS, VIZWIZ_CONTRACTIONS, VIZWIZ_OFFICIAL_CONTRACTIONS
from prism_sweeps.evaluation.scorers import SCORERS, gold_of, scorer
from prism_sweeps.evaluation.scoring.free_text import soft_accuracy
from prism_sweeps.evaluation.text_normalisation import textvqa_answer, vqa_answer, vqa_punctuation

YES_NO = {"answer": "choice", "choices": ["Yes", "No"]}


def example(tmp_path, **fields):
    return Example(**{"id": "1", "image": tmp_path, "key": "i", "question": "?", "answers": ("x",)} | fields)


# ---- the VQA metric


@pytest.mark.parametrize(
    ("table", "digest"),
    [
        # `contractions` in GT-Vision-Lab/VQA at c4e6a0e4, vqaEval.py; the same in lmms-eval 0.7.3 and vlm-evaluation
        (CONTRACTIONS, "3e5960526f62912d3b70896069c43c13d7c21be38d50ca28efbb9095b499454f"),
        # `contractions` in the VizWiz API, vqaEval.py
        (VIZWIZ_OFFICIAL_CONTRACTIONS, "6c17b211141803cbb536afa422dc80a21d1c4c1752f1fbb97c1bb80929efc556"),
        # `contractions` in vlm-evaluation, util/evaluation/vizwiz/eval.py
        (VIZWIZ_CONTRACTIONS, "bf1ceafbd8c197e96849233607c1b78484691847939815d2a88da035c4fe62c7"),
    ],
)
def test_contractions_are_the_published_tables(table, digest):
    assert len(table) == 120
    assert hashlib.sha256(json.dumps(sorted(table.items())).encode()).hexdigest() == digest


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
    assert soft_accuracy("yes", ["yes"] * matches + ["no"] * (10 - matches)) == pytest.approx(worth)


def test_variants_differ_in_what_they_do_to_the_human_answers():
    human = ["The T-Shirt"] * 10
    assert vqa_punctuation(human[0]) == "The T Shirt"
    assert score("vqav2", "t-shirt", human) == 0.0  # case and article stay on the human side
    assert score("textvqa", "t-shirt", human) == 1.0
    assert score("vqav2", "t-shirt", ["t-shirt"] * 10) == 1.0
    assert score("vizwiz", "t-shirt", ["t-shirt"] * 10) == 0.0
    assert score("vizwiz", "T shirt.", ["t shirt"] * 10) == 1.0


def test_official_vqav2_leaves_answers_that_agree_alone():
    assert score("vqav2-official", "t-shirt", ["t-shirt"] * 10) == 0.0
    assert score("vqav2-official", "t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1.0
    assert score("vqav2", "t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1.0
    assert score("vqav2-official", "Two", ["2"] * 10) == 1.0


def test_vizwiz_contractions_are_what_nobody_types():
    assert score("vqav2", "dont know", ["don't know"] * 10) == 1.0
    for name, mark in (("vizwiz", "`"), ("vizwiz-official", "\u2019")):
        assert score(name, "dont know", ["don't know"] * 10) == 0.0
        assert score(name, "dont know", [f"don{mark}t know"] * 10) == 1.0
        assert score(name, "don't know", ["don't know"] * 10) == 1.0


def test_empty_answer_earns_only_what_an_empty_human_answer_gives_it():
    assert score("textvqa", "", ["the"] * 10) == 1.0  # as published: both are nothing once normalised
    assert [score(name, "", ["red"] * 10) for name in ("vqav2", "vqav2-official", "vizwiz", "textvqa", "exact")] == [
        0
    ] * 5
    assert [score(name, "", "red") for name in ("gqa", "gqa-official", "choice")] == [0] * 3
    assert score("exact", " ", ["?"]) == 0.0


# ---- GQA, words and letters


def test_gqa_strips_the_prediction_only():
    assert score("gqa", " To the left. ", "to the left") == 1.0
    assert score("gqa", "t-shirt", "t-shirt") == 0.0
    assert score("gqa", "left - right", "left right") == 0.0  # two spaces are left, as in vlm-evaluation
    assert [score("gqa-official", answer, "to the left") for answer in ("to the left", "To the left.")] == [1.0, 0.0]
    rows = scored([row("t-shirt", "t-shirt"), row("Left  right", "left right")], "gqa")
    assert metrics(rows, "gqa")["accuracy_both_stripped"] == 100.0
    assert result(rows, "gqa")["score"] == 0.0


def test_exact_tells_marks_apart_and_takes_any_of_the_answers():
    assert score("exact", "The dog!", ["cat", "the dog"]) == 1.0
    assert (score("exact", "+", ["+"]), score("exact", "+", ["-"])) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("answer", "worth"), [("B", 1), (" B.", 1), ("(B) two", 1), ("A", 0), ("Blue", 0), ("b", 0), ("", 0)]
)
def test_letter_at_the_start_counts(answer, worth):
    assert score("letter", answer, "B") == worth


def test_choices_are_counted_and_so_is_what_is_none_of_them():
    rows = [row(answer, "Yes") for answer in ("Yes", "yes.", "No", "maybe", "")]
    told = metrics(scored(rows, "choice", **YES_NO), "choice", **YES_NO)
    assert told == {"chose_Yes": 40.0, "chose_No": 20.0, "invalid_answer_count": 2, "empty_answer_count": 1}


def test_tallyqa_and_ai2d_report_their_parts_and_the_mean_over_all_examples():
    rows = [row("A", "A", kind="simple"), row("A", "B", kind="complex"), row("A", "A", kind="complex"), row("?", "A")]
    told = result(scored(rows, "tallyqa"), "tallyqa")
    assert told["score"] == 50.0  # over examples, not over kinds
    assert (told["metrics"]["simple_accuracy"], told["metrics"]["complex_accuracy"]) == (100.0, 50.0)
    assert told["metrics"]["invalid_answer_count"] == 1
    halves = scored([row("A", "A", split="val"), row("B", "A", split="test"), row("A", "A", split="test")], "ai2d")
    assert (metrics(halves, "ai2d")["val_accuracy"], metrics(halves, "ai2d")["test_accuracy"]) == (100.0, 50.0)
    assert result(halves, "ai2d")["score"] == pytest.approx(200 / 3)


# ---- POPE and VizWiz


def test_pope_is_the_mean_of_its_splits_and_agrees_with_scikit_learn():
    answers = [("Yes", "Yes", "random"), ("Yes", "No", "random"), ("No", "No", "random"), ("No", "Yes", "random")]
    answers += [("Yes", "No", "popular"), ("Yes", "Yes", "popular")] * 3 + [("No", "No", "adversarial")]
    rows = scored([row(a, g, image=str(i), split=s) for i, (a, g, s) in enumerate(answers)], "pope")
    told = result(rows, "pope", **YES_NO)
    assert told["score"] == pytest.approx((50 + 50 + 100) / 3)
    assert told["metrics"]["accuracy"] == pytest.approx(100 * 6 / 11)
    assert told["groups"]["split"]["adversarial"] == {"score": 100.0, "standard_error": None, "n": 1}
    said, true = [a == "Yes" for a, *_ in answers], [g == "Yes" for _, g, _ in answers]
    expected = precision_recall_fscore_support(true, said, average="binary")[:3]
    assert [told["metrics"][name] / 100 for name in ("precision", "recall", "f1")] == pytest.approx(list(expected))
    assert told["metrics"]["popular_yes_ratio"] == 100.0
    assert told["metrics"]["adversarial_precision"] == 0.0  # it never said yes
    assert told["metrics"]["invalid_answer_count"] == 0


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("Yes, there is. No doubt.", "yes"),  # its first sentence only
        ("No, there is not", "no"),
        ("There is not one", "no"),
        ("Nothing", "yes"),
        ("NO", "yes"),  # sic
        ("no.", "no"),
        ("", "yes"),  # sic
    ],
)
def test_official_pope_reads_a_first_sentence(answer, says):
    assert score("pope-official", answer, says) == 1.0
    assert score("pope-official", answer, {"yes": "No", "no": "Yes"}[says]) == 0.0


def test_pope_answer_that_says_neither_is_wrong_and_counted():
    rows = scored([row("maybe", "No", split="random"), row("No", "No", split="random")], "pope")
    told = result(rows, "pope", **YES_NO)
    assert (told["score"], told["metrics"]["invalid_answer_count"], told["metrics"]["yes_ratio"]) == (50.0, 1, 0.0)


def test_pope_in_another_language_has_its_first_choice_for_yes():
    rows = scored([row("Ja", "Ja"), row("Ja", "Nein"), row("Nein", "Nein")], "pope")
    told = metrics(rows, "pope", answer="choice", choices=["Ja", "Nein"])
    assert (told["recall"], told["precision"], told["yes_ratio"]) == (100.0, 50.0, pytest.approx(200 / 3))


@pytest.mark.parametrize("bits", range(64))
def test_vizwiz_unanswerable_detection_agrees_with_scikit_learn(bits):
    pairs = [(bool(bits >> 2 * i & 1), bool(bits >> 2 * i & 2)) for i in range(3)] + [(True, True), (False, False)]
    rows = [
        row("Unanswerable." if says else "a dog", ["unanswerable"] * 10 if is_so else ["dog"] * 10)
        for says, is_so in pairs
    ]
    told = metrics(rows, "vizwiz")
    said, true = [says for says, _ in pairs], [is_so for _, is_so in pairs]
    expected = precision_recall_fscore_support(true, said, average="binary", zero_division=0)[:3]
    found = [told[f"unanswerable_{name}"] / 100 for name in ("precision", "recall", "f1")]
    assert found == pytest.approx(list(expected))
    assert told["unanswerable_average_precision"] / 100 == pytest.approx(average_precision_score(true, said))


def test_vizwiz_reports_both_kinds_of_question():
    rows = scored([row("dog", ["dog"] * 10, answerable=1), row("dog", ["unanswerable"] * 10, answerable=0)], "vizwiz")
    told = metrics(rows, "vizwiz")
    assert (told["answerable_accuracy"], told["unanswerable_accuracy"]) == (100.0, 0.0)


# ---- the registry and what an example must have


def test_unknown_scorer_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'vqav2'"):
        scorer("vqa2")


def test_versions_are_of_scorers_there_are():
    assert set(SCORER_VERSIONS) <= set(SCORERS)
    assert all(version > 1 for version in SCORER_VERSIONS.values())


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("vqav2", {"answers": ("red",)}, "10 human answers"),
        ("exact", {"answers": ()}, "no answer"),
        ("gqa", {"answers": ("a", "b")}, "one answer"),
        ("pope-official", {"answers": ("maybe",)}, "yes or no"),
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


def test_iou_literal_takes_the_true_box_with_two_decimals():
    """As vlm-evaluation writes it into its index: half a hundredth is worth a hundredth of a small box."""
    gold = [0.105, 0.1, 0.204, 0.2]
    benchmark = Benchmark(name="b", scorer="iou-literal")
    row = {"id": "1", "image": "1", "answer": "[0.1, 0.1, 0.2, 0.2]", "gold": gold, "tags": {}}
    assert scorer("iou-literal").metrics([row], benchmark)["mean_iou"] == pytest.approx(100.0)
    assert scorer("iou").metrics([row], benchmark)["mean_iou"] == pytest.approx(100 * 0.095 / (0.1 + 0.099 - 0.095))
    point = row | {"gold": [0.101, 0.1, 0.104, 0.2]}
    assert scorer("iou-literal").score(point, benchmark) == 0.0
