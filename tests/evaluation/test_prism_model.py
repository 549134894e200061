"""A trained model's answers to requests, against plain transformers: one question at a time, nothing shared."""

import logging
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from asked_models import (
    answered,
    greedy_by_transformers,
    likelihoods_without_cache,
    loaded,
    pictures,
    request,
)
from PIL import Image
from torch._dynamo.testing import CompileCounter

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.prism_model import PrismModel
from prism_sweeps.evaluation.requests import Answer, Unanswered

COUNTS = (1, 9, 3, 2, 1)
"""Questions about each image: some span batches, others share one."""


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return loaded()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("images"), len(COUNTS) - 1)


def asked(images, *options, **changes):
    """Questions of different lengths, mixed over the images, the last of which is the grey one."""
    requests = [
        request(f"{place}-{number}", image, "what" + "?" * ((5 * place + 3 * number) % 11), *options, **changes)
        for place, (image, count) in enumerate(zip([*images, None], COUNTS, strict=True))
        for number in range(count)
    ]
    return sorted(requests, key=lambda each: each.id[::-1])


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_free_answers_are_those_of_transformers(model, images, batch):
    requests = asked(images)
    ours = answered(model, requests, batch)
    assert {name: answer.text for name, answer in ours.items()} == {
        each.id: greedy_by_transformers(model, each) for each in requests
    }
    assert len({answer.text for answer in ours.values()}) > 8
    sizes = {each.id: None if each.image is None else Image.open(each.image).size for each in requests}
    assert {name: answer.size for name, answer in ours.items()} == sizes


@pytest.mark.parametrize("likelihood", ["full-string", "first-token"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_likelihoods_are_those_of_transformers(model, images, batch, likelihood):
    requests = asked(images, "A", "no", "the third one", "x", likelihood=likelihood)
    ours = answered(model, requests, batch)
    for each in requests:
        expected = likelihoods_without_cache(model, each)
        assert ours[each.id].log_likelihoods == pytest.approx(expected, abs=1e-5)
        assert ours[each.id].text == each.options[max(range(4), key=expected.__getitem__)]
    assert len({round(answer.log_likelihoods[1], 3) for answer in ours.values()}) > 8


def test_requests_of_all_kinds_may_come_together(model, images):
    free, full = asked(images), asked(images, "A", "no")
    first = asked(images[:1] * 4, "yes", "no", "B", likelihood="first-token")
    together = {each.key: each for each in [*free, *full, *first]}.values()
    model_ = PrismModel(model, Engine(device="cpu", eval_batch=5))
    ours = {each.key: answer.text for part in model_.answers(list(together)) for each, answer in part}
    assert ours == {
        each.key: each.options[max(range(len(each.options)), key=likelihoods_without_cache(model, each).__getitem__)]
        if each.options
        else greedy_by_transformers(model, each)
        for each in together
    }


def test_options_of_one_token_take_no_step_after_the_question(model, images, monkeypatch):
    steps = []
    llm = model.vlm.llm.base_model
    forward = llm.forward
    monkeypatch.setattr(llm, "forward", lambda **given: steps.append(1) or forward(**given))
    answered(model, asked(images, "A", "B"), 64)
    assert len(steps) == 2  # images, then questions
    answered(model, asked(images, "yes", "none", likelihood="first-token"), 64)
    assert len(steps) == 4
    answered(model, asked(images, "yes", "none"), 64)
    assert len(steps) == 8


def test_an_image_is_read_once_however_many_batches_ask_about_it(model, images, monkeypatch):
    seen, read = [], []
    llm, encode = model.vlm.llm.base_model, model.vlm.image_tokens
    forward = llm.forward
    monkeypatch.setattr(
        model.vlm, "image_tokens", lambda pixels: seen.append(len(pixels["tiny"])) or encode(pixels), raising=True
    )
    monkeypatch.setattr(llm, "forward", lambda **given: read.append(given["inputs_embeds"].shape) or forward(**given))
    requests = [request(str(n), images[0], f"what {n:02}", "A", "B") for n in range(30)]
    answered(model, requests, 4)
    assert sum(seen) == 1
    assert read[0][:2] == (1, 16 + 1 + len("[user]what "))
    assert {tuple(shape[:2]) for shape in read[1:]} == {(4, len("29[assistant]")), (2, len("29[assistant]"))}


def test_memory_is_bounded_by_the_batch_not_by_the_images(model, tmp_path, monkeypatch):
    seen, encode = [], model.vlm.image_tokens
    monkeypatch.setattr(
        model.vlm, "image_tokens", lambda pixels: seen.append(len(pixels["tiny"])) or encode(pixels), raising=True
    )
    requests = [request(path.stem, path, "what?", "A", "B") for path in pictures(tmp_path, 23)]
    answered(model, requests, 4)
    assert sum(seen) == 23
    assert max(seen) == 4


# ---- what cannot be answered


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_disturb_no_other(model, images, tmp_path, workers):
    (tmp_path / "torn.png").write_bytes(images[0].read_bytes()[:80])
    (tmp_path / "text.jpg").write_text("no image")
    bad = {"gone": tmp_path / "gone.png", "torn": tmp_path / "torn.png", "text": tmp_path / "text.jpg"}
    good = asked(images)
    requests = [*good[:5], *(request(name, path, "what?") for name, path in bad.items()), *good[5:]]
    ours = answered(model, requests, 4, data_workers=workers)
    for name, path in bad.items():
        assert isinstance(ours[name], Unanswered)
        assert f"example '{name}'" in ours[name].reason
        assert str(path) in ours[name].reason
        del ours[name]
    assert ours == answered(model, good, 4)


def test_all_images_missing(model, tmp_path):
    ours = answered(model, [request(str(n), tmp_path / "gone.png", "what?") for n in range(3)])
    assert all(isinstance(answer, Unanswered) for answer in ours.values())
    assert answered(model, []) == {}


def test_a_text_that_leaves_no_room_for_an_answer_says_so(model, images):
    overhead = len(model.prompts.question("x")) - 1
    full = model.text_positions - overhead
    texts = {"fits": full - 1, "full": full, "over": 1000}
    requests = [request(name, images[0], "x" * length) for name, length in texts.items()]
    ours = answered(model, requests)
    assert ours["fits"].text == greedy_by_transformers(model, request("fits", images[0], "x" * (full - 1), limit=1))
    for name in ("full", "over"):
        assert isinstance(ours[name], Unanswered)
        assert f"example '{name}' on image '{images[0]}'" in ours[name].reason
    assert f"{model.text_positions} tokens of text and 1 of an answer" in ours["full"].reason
    options = [request("short", images[0], "x" * (full - 2), "AB"), request("long", images[0], "x" * (full - 2), "ABC")]
    ours = answered(model, options)
    assert isinstance(ours["short"], Answer)
    assert isinstance(ours["long"], Unanswered)


def test_an_answer_ends_where_the_room_does(model, images):
    model.prompts.end_ids, ends = [], model.prompts.end_ids
    try:
        each = request("long", images[1], "what?", limit=10_000)
        said = answered(model, [each, request("other", images[0], "a question that is much longer")])["long"]
        room = model.text_positions - len(model.prompts.question("what?"))
        expected = greedy_by_transformers(model, request("long", images[1], "what?", limit=room))
    finally:
        model.prompts.end_ids = ends
    assert said.text == expected


def test_an_answer_may_be_empty(model, images):
    model.prompts.end_ids, ends = list(range(258)), model.prompts.end_ids
    try:
        assert answered(model, [request("empty", images[0], "what?")])["empty"].text == ""
    finally:
        model.prompts.end_ids = ends


# ---- options that cannot be compared


def test_options_with_one_first_token_need_the_whole_string(model, images):
    requests = [request("a", images[0], "?", "no", "yes", "none", likelihood="first-token")]
    asked_ = PrismModel(model, Engine(device="cpu"))
    with pytest.raises(ConfigError, match=r"'no' and 'none' apart.*full-string"):
        next(asked_.answers(requests))
    assert answered(model, [request("a", images[0], "?", "no", "yes", "none")])


def test_an_option_without_tokens_is_refused(model, images):
    for prompt in ("chat-template", "in-out"):  # the latter puts a blank before an answer
        with pytest.raises(ConfigError, match="option '</s>' is nothing"):
            answered(loaded(model.vlm, prompt=prompt), [request("a", images[0], "?", "A", "</s>")])


# ---- hostile texts

HOSTILE = {
    "image": "<image>\nwhat <image>?",
    "end": "what</s> is</s>",
    "nested": "what <</s>/s> is <s<s>>",
    "begin": "<s>In: what?\nOut: yes</s>In: why?",
    "other": "<|endoftext|><|im_end|>[INST]",
    "nul": "what\0is\x07\x1b[31m this",
    "scripts": "\u202eтест \u200b🤖 e\u0301",
    "empty": "",
    "blank": " \n\t ",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_becomes_a_control_token(model, images, kind):
    each = request("hostile", images[0], HOSTILE[kind])
    ids = model.prompts.question(each.text)
    assert ids[0] == model.prompts.bos_id
    assert not {0, 1} & set(ids[1:])
    ours = answered(model, [each, request("other", images[0], "what?")])
    assert ours["hostile"].text == greedy_by_transformers(model, each)
    assert ours["other"].text == greedy_by_transformers(model, request("other", images[0], "what?"))


def test_an_answer_is_text_without_control_tokens(model, images):
    """Also where the model says them, and none of them ends an answer."""
    model.prompts.end_ids, ends = [], model.prompts.end_ids
    head = model.vlm.llm.get_output_embeddings()
    weight = head.weight.detach().clone()
    try:
        with torch.no_grad():
            head.weight[:2] = head.weight.abs().max() * torch.sign(torch.randn(2, head.weight.shape[1]))
        requests = [request(str(n), images[n % 4], "what" * n) for n in range(8)]
        ours = [answer.text for answer in answered(model, requests).values()]
    finally:
        model.prompts.end_ids = ends
        head.weight.data.copy_(weight)
    assert not any("<s>" in text or "</s>" in text for text in ours)


# ---- images


def test_the_size_is_that_of_the_upright_image(model, tmp_path):
    image = Image.new("RGB", (40, 24), (200, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert answered(model, [request("t", tmp_path / "turned.jpg", "?")])["t"].size == (24, 40)


def test_images_opened_by_processes_are_the_same(model, images):
    requests = asked(images, "A", "B")
    assert answered(model, requests, 2, data_workers=2) == answered(model, requests, 2)


def test_the_time_spent_waiting_for_images_is_told(model, images, monkeypatch, caplog):
    from prism_sweeps.evaluation import prism_model

    ticks = iter(range(1000))
    monkeypatch.setattr(prism_model.time, "perf_counter", lambda: float(next(ticks)))
    asked_ = PrismModel(model, Engine(device="cpu", eval_batch=2))
    with caplog.at_level(logging.INFO, logger="prism_sweeps"):
        assert sum(map(len, asked_.answers(asked(images)))) == sum(COUNTS)
    units = asked_.waited - 1  # the last wait is for the end
    assert units == pytest.approx(4)
    assert f"{asked_.waited:.1f} of them waiting for images" in caplog.text


def test_an_answer_that_is_not_wanted_any_more_ends_the_reading_ahead(model, images, tmp_path: Path):
    requests = [request(path.stem, path, "what?") for path in pictures(tmp_path, 40)]
    asked_ = PrismModel(model, Engine(device="cpu", eval_batch=2)).answers(requests)
    next(asked_)
    asked_.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


# ---- compiled


def test_compiled_steps_say_the_same_with_few_graphs(images, monkeypatch):
    """Whatever lengths, limits and numbers of rows come, there is a graph for each of 16, 4 and 1 rows."""
    graphs, fresh = CompileCounter(), loaded()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs, fullgraph=True))
    requests = asked(images)
    for batch in (16, 15, 5, 3):
        limited = [replace(each, limit=1 + number % batch) for number, each in enumerate(requests)]
        assert answered(fresh, limited, batch, compile=True) == answered(fresh, limited, batch)
    assert graphs.frame_count == 3
    torch._dynamo.reset()
