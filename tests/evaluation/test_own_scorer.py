"""Scorers of one's own, named as package.module:name."""

import pytest
from scoring_rows import result, row, score, scored

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.benchmarks import Example
from prism_sweeps.evaluation.scorers import gold_of, scorer
from prism_sweeps.evaluation.scoring.own import own_scorer

CODE = """
from prism_sweeps.evaluation.scoring.rows import Scorer

def first_letter(answer, gold):
    return answer[:1] in {right[:1] for right in gold}

def partial(answer, gold):
    return sum(answer == right for right in gold) / len(gold)

def too_much(answer, gold):
    return 2

def too_little(answer, gold):
    return -0.5

def nothing(answer, gold):
    return None

def not_a_number(answer, gold):
    return float("nan")

def broken(answer, gold):
    raise RuntimeError("mine")

length = Scorer(
    score=lambda row, benchmark: float(len(row["answer"]) == row["gold"]),
    gold=lambda example: len(example.answers[0]),
    metrics=lambda rows, benchmark: {"rows_count": len(rows)},
)
text = "not a function"
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    folder = tmp_path / "own_scoring_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "scores.py").write_text(CODE)
    (folder / "needy.py").write_text("import no_such_package_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    own_scorer.cache_clear()


def test_function_is_a_scorer_over_the_examples_answers(tmp_path):
    example = Example(id="1", image=tmp_path, key="i", question="?", answers=("dog", "cat"))
    gold = gold_of(example, Benchmark(name="b", scorer="own_scoring_package.scores:partial", answer="generate"))
    assert gold == ["dog", "cat"]
    assert score("own_scoring_package.scores:partial", "dog", gold) == 0.5
    assert score("own_scoring_package.scores:first_letter", "door", gold) == 1.0
    told = result(
        scored([row("dog", gold)], "own_scoring_package.scores:partial"), "own_scoring_package.scores:partial"
    )
    assert (told["score"], told["metrics"]) == (50.0, {"empty_answer_count": 0})


def test_function_gets_the_box_where_there_is_no_answer(tmp_path):
    benchmark = Benchmark(name="b", scorer="own_scoring_package.scores:partial", answer="box")
    boxed = Example(id="1", image=tmp_path, key="i", question="?", answers=(), box=(0.1, 0.2, 0.3, 0.4))
    assert gold_of(boxed, benchmark) == [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(DataError, match="neither an answer nor a box"):
        gold_of(Example(id="1", image=tmp_path, key="i", question="?", answers=()), benchmark)


def test_choices_are_checked_for_a_function_too(tmp_path):
    benchmark = Benchmark(name="b", scorer="own_scoring_package.scores:partial", answer="choice", choices=["dog"])
    with pytest.raises(DataError, match="'cat' is not among the choices dog"):
        gold_of(Example(id="1", image=tmp_path, key="i", question="?", answers=("cat",)), benchmark)


def test_scorer_is_taken_as_it_is(tmp_path):
    name = "own_scoring_package.scores:length"
    example = Example(id="1", image=tmp_path, key="i", question="?", answers=("dog",))
    assert gold_of(example, Benchmark(name="b", scorer=name, answer="generate")) == 3
    assert score(name, "cat", 3) == 1.0
    assert result(scored([row("cat", 3)], name), name)["metrics"]["rows_count"] == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_scoring_package.scores:", "package.module:name is wanted"),
        (":name", "package.module:name is wanted"),
        ("own_scoring_package.scores:absent", "module own_scoring_package.scores has no absent"),
        ("own_scoring_package.missing:name", "there is no module own_scoring_package.missing"),
        ("nowhere_at_all.scores:name", "there is no module nowhere_at_all; its folder belongs on PYTHONPATH"),
        ("own_scoring_package.needy:name", "its module needs no_such_package_anywhere, which is not installed"),
        ("own_scoring_package.scores:text", "of type str; a Scorer or a function"),
    ],
)
def test_what_is_missing_is_named(name, reason):
    with pytest.raises(ConfigError, match=f"scorer '{name}': {reason}"):
        scorer(name)


@pytest.mark.parametrize(
    ("name", "said"), [("too_much", "2"), ("too_little", "-0.5"), ("nothing", "None"), ("not_a_number", "nan")]
)
def test_value_that_is_no_score_is_refused(name, said):
    with pytest.raises(ConfigError, match=f"it said {said} of example '1'; a number of 0..1"):
        score(f"own_scoring_package.scores:{name}", "dog", ["dog"])


def test_error_inside_of_it_is_not_disguised():
    with pytest.raises(RuntimeError, match="mine"):
        score("own_scoring_package.scores:broken", "dog", ["dog"])
