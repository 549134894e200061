"""Evaluation jobs end to end on a tiny random model: every kind of answer, conditions, resuming, and bad data."""

import json

import pytest
import torch
from tiny_evaluation import PARENT, model_spec, open_store, run

from prism_sweeps.config.errors import ConfigError, DataError, StoreError
from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation import runner
from prism_sweeps.evaluation.asking import ask
from prism_sweeps.evaluation.benchmarks import read_index
from prism_sweeps.evaluation.conditions import shown_images
from prism_sweeps.evaluation.loading import load_model
from prism_sweeps.tracking.records import Interrupted

KINDS = {
    "generate": {"answer": "generate", "scorer": "exact"},
    "box": {"answer": "box", "scorer": "iou"},
    "letter": {"answer": "letter", "scorer": "letter", "prompt": "{question} {options}"},
    "choice": {"answer": "choice", "scorer": "choice", "choices": list("ABCDE")},
    "long-choice": {"answer": "choice", "scorer": "pope", "choices": ["A", "B", "C", "D", "E", "none of these"]},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    return open_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def small(tmp_path):
    return open_store(tmp_path / "small")


@pytest.fixture
def other(tmp_path):
    return open_store(tmp_path / "other")


def answers(rows):
    return {name: row["answer"] for name, row in rows.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_result_and_answers_do_not_depend_on_the_batch_size(small, other, kind):
    result, rows = run(small, kind, batch=7, **KINDS[kind])
    others, other_rows = run(other, kind, batch=1, **KINDS[kind])
    assert (result, rows) == (others, other_rows)
    assert len(rows) == result["n"] == 21
    assert all(0.0 <= row["score"] <= 1.0 for row in rows.values())
    if kind != "long-choice":
        assert result["score"] == pytest.approx(100 * sum(row["score"] for row in rows.values()) / 21)
    assert {value["n"] for value in result["groups"]["number"].values()} == {7}
    assert json.loads(json.dumps(result)) == result


def test_first_examples_only(store):
    result, rows = run(store, "five", **KINDS["choice"], examples=5)
    assert result["n"] == 5
    assert sorted(rows) == ["0-0", "0-1", "0-2", "1-0", "1-1"]


def lines_of(record):
    return [line for file in sorted(record.answers.glob("*.jsonl")) for line in file.read_text().splitlines()]


@pytest.fixture
def loads(monkeypatch):
    """How often a model was asked for."""
    counted = []
    real = runner.answerer
    monkeypatch.setattr(runner, "answerer", lambda *given: counted.append(given) or real(*given))
    return counted


@pytest.mark.parametrize("kind", ["generate", "choice"])
def test_resumed_evaluation_ends_like_an_uninterrupted_one(small, other, kind):
    whole, _ = run(other, "whole", **KINDS[kind])
    calls = iter([False, True])
    with pytest.raises(Interrupted, match=r"stopped after \d+ of 21"):
        run(small, "broken", stop=lambda: next(calls), **KINDS[kind])
    record = small.job("broken")
    file = next(record.answers.glob("*.jsonl"))
    lines = file.read_text().splitlines(keepends=True)
    assert 1 < len(lines) < 21
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # a row cut off, as by a machine that dies
    resumed, _ = run(small, "broken", batch=3, **KINDS[kind])
    assert resumed == whole
    assert record.predictions.read_bytes() == other.job("whole").predictions.read_bytes()
    assert len({json.loads(line)["request"] for line in lines_of(record) if line.endswith("}")}) == 21


def test_another_scorer_or_another_truth_asks_nothing(small, loads):
    _, before = run(small, "before", **KINDS["letter"])
    index = small.data / "colours/index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    told = {row["id"]: before[row["id"]]["answer"] for row in rows}
    index.write_text("".join(json.dumps(row | {"answers": [told[row["id"]]]}) + "\n" for row in rows))
    result, _ = run(small, "after", **KINDS["letter"] | {"scorer": "exact"}, examples=20)
    assert (result["score"], result["n"]) == (100.0, 20)
    assert len(loads) == 1


def test_what_is_asked_otherwise_is_asked_again_and_nothing_else(small, loads):
    run(small, "before", **KINDS["generate"])
    index = small.data / "colours/index.jsonl"
    index.write_text(index.read_text().replace('"question": "colour', '"question": "Colour', 2))
    result, _ = run(small, "after", **KINDS["generate"])
    assert result["n"] == 21
    assert len(loads) == 2
    assert len(lines_of(small.job("after"))) == 23


def test_more_examples_of_the_same_benchmark_ask_only_the_rest(small):
    run(small, "few", **KINDS["generate"], examples=5)
    run(small, "all", **KINDS["generate"])
    assert len(lines_of(small.job("all"))) == 21


def test_blank_images_leave_only_the_question(store):
    _, rows = run(store, "blank", condition="blank", **KINDS["generate"])
    by_question = {}
    for example in read_index(store.data / "colours"):
        by_question.setdefault(example.question, set()).add(rows[example.id]["answer"])
    assert all(len(given) == 1 for given in by_question.values())
    _, real = run(store, "real", **KINDS["generate"])
    assert answers(real) != answers(rows)
    assert rows["3-0"]["image"] == "images/3.png"  # questions still cluster by what they were written about


@pytest.mark.parametrize("changes", [{"box_frame": "padded"}, {"box_units": "pixels"}])
def test_boxes_of_blank_images_are_read_in_the_frame_of_the_real_one(small, changes):
    result, rows = run(small, "boxes", condition="blank", **KINDS["box"], **changes)
    assert result["n"] == 21
    assert {tuple(row["size"]) for row in rows.values()} == {(30, 20)}
    assert {tuple(row["seen"]) for row in rows.values()} == {(0.0, 0.0, 1.0, 1.0)}  # resized without padding


def test_no_example_keeps_its_image_when_shuffled(store):
    examples = read_index(store.data / "colours")
    shown = shown_images(examples, "shuffled")
    assert all(shown[example.key] != (example.key, example.image) for example in examples)
    assert sorted(shown.values()) == sorted({(example.key, example.image) for example in examples})
    assert shown_images(list(reversed(examples)), "shuffled") == shown
    with pytest.raises(DataError, match="two images"):
        shown_images(examples[:3], "shuffled")
    with pytest.raises(ConfigError, match="did you mean 'blank'"):
        shown_images(examples, "blnk")
    result, rows = run(store, "shuffled", condition="shuffled", **KINDS["generate"])
    assert result["n"] == 21
    _, real = run(store, "real-2", **KINDS["generate"])
    assert answers(rows) != answers(real)


def test_model_is_loaded_once_per_process(store):
    weights = store.job(PARENT).weights
    model = load_model(model_spec(), weights, "fp32", Engine(device="cpu"))
    assert load_model(model_spec(), weights, "fp32", Engine(device="cpu")) is model
    assert load_model(model_spec(), weights, "bf16", Engine(device="cpu")).dtype == torch.bfloat16
    with pytest.raises(StoreError, match=r"no projector\.safetensors"):
        load_model(model_spec(), store.job("nobody").weights, "fp32", Engine(device="cpu"))


def test_ask(store):
    model = load_model(model_spec(), store.job(PARENT).weights, "fp32", Engine(device="cpu"))
    image = store.data / "colours/images/3.png"
    _, rows = run(store, "asked", **KINDS["generate"])
    example = next(example for example in read_index(store.data / "colours") if example.id == "3-1")
    assert ask(model, image, example.question, max_new_tokens=6) == rows["3-1"]["answer"]
    assert isinstance(ask(model, image, "", max_new_tokens=3), str)
    assert isinstance(ask(model, image, "</s><s><image> {0} \u202e\x00", max_new_tokens=3), str)
    with pytest.raises(DataError, match=r"the question: \d+ tokens"):
        ask(model, image, "why? " * 100)


# ---- bad data


def test_an_unreadable_image_costs_its_own_questions_alone(small, loads):
    image = small.data / "colours/images/4.png"
    whole = image.read_bytes()
    for broken in (lambda: image.write_bytes(b"not an image"), image.unlink):
        broken()
        with pytest.raises(DataError, match=r"3 of 21 questions cannot be .*: example '4-0'.*images/4\.png.*kept"):
            run(small, "bad", **KINDS["generate"])
        assert len(lines_of(small.job("bad"))) == 18
        assert not small.job("bad").predictions.exists()
    image.write_bytes(whole)
    result, _ = run(small, "bad", **KINDS["generate"])
    assert (result["n"], len(lines_of(small.job("bad"))), len(loads)) == (21, 21, 3)


def test_a_question_too_long_for_the_language_model_costs_no_other(small):
    index = small.data / "colours/index.jsonl"
    lines = index.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"question": "why? " * 100})
    index.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"1 of 21 questions.*example '0-2' on .*positions"):
        run(small, "long", **KINDS["generate"])
    assert len(lines_of(small.job("long"))) == 20


def test_an_answer_has_no_more_tokens_than_there_is_room_for(small):
    result, rows = run(small, "endless", **KINDS["generate"] | {"max_new_tokens": 10_000})
    assert result["n"] == 21
    assert max(len(row["answer"]) for row in rows.values()) > 50


@pytest.mark.parametrize(
    "question", ["", "</s></s>", "<image>", "{options}{0}", "\x00\u202e\ud7ff", "In: a\nOut: b</s>"]
)
def test_hostile_questions_are_answered(small, question):
    index = small.data / "colours/index.jsonl"
    lines = [json.dumps(json.loads(line) | {"question": question}) for line in index.read_text().splitlines()]
    index.write_text("\n".join(lines))
    result, _ = run(small, "hostile", **KINDS["letter"])
    assert result["n"] == 21


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"answer": "guess"}, ConfigError, "unknown answer 'guess'"),
        ({"scorer": "exakt"}, ConfigError, "did you mean 'exact'"),
        ({"answer": "choice", "choices": []}, ConfigError, "needs `choices`"),
        ({"answer": "choice", "choices": ["A", ""]}, ConfigError, "none of them empty"),
        ({"answer": "choice", "scorer": "choice", "choices": ["A", "B"]}, DataError, "not among the choices"),
        ({"prompt": "{qestion}"}, ConfigError, "did you mean 'question'"),
        ({"scorer": "vqav2"}, DataError, "10 human answers"),
        ({"index": "colours/test"}, DataError, "index.jsonl does not exist"),
        ({"index": "colors"}, DataError, "no dataset 'colors'"),
    ],
)
def test_benchmark_that_cannot_be_run(store, changes, error, reason):
    with pytest.raises(error, match=reason):
        run(store, "wrong", **changes)
