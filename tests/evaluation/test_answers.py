"""Greedy text and likelihoods of options against transformers' own generation and against scoring without a cache."""

import pytest
import torch
from tiny_evaluation import tiny_vlm

from prism_sweeps.evaluation.answers import first_scores, greedy, option_scores
from prism_sweeps.evaluation.prefix import read_prefix, read_suffixes

END = [1]


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm()


@pytest.fixture(scope="module")
def asked(vlm):
    """Seven questions of different lengths, two about the same image."""
    draw = torch.Generator().manual_seed(5)
    pixels_ICHW = torch.randn(7, 3, 32, 32, generator=draw)
    pixels_ICHW[6] = pixels_ICHW[0]
    questions = [[0, *torch.randint(2, 250, (length,), generator=draw).tolist()] for length in (3, 9, 1, 5, 5, 12, 3)]
    with torch.inference_mode():
        return vlm.image_tokens({"tiny": pixels_ICHW}), questions


@torch.inference_mode()
def read_questions(vlm, tokens_BPD, questions):
    """Each question with an image of its own."""
    prefixes = read_prefix(vlm, tokens_BPD, [0], 0)
    return read_suffixes(vlm, prefixes, range(len(questions)), [ids[1:] for ids in questions], 0)


def generate(vlm, tokens_BPD, questions, end_ids, limits):
    return greedy(vlm, read_questions(vlm, tokens_BPD, questions), end_ids, limits)


def embedded(vlm, tokens_PD, ids):
    text_TD = vlm.llm.get_input_embeddings()(torch.tensor(ids))
    return torch.cat([text_TD[:1], tokens_PD, text_TD[1:]])[None]


@pytest.mark.filterwarnings("error::FutureWarning")
def test_greedy_answers_are_those_of_transformers(vlm, asked):
    tokens, questions = asked
    ours = generate(vlm, tokens, questions, END, [8] * 7)
    for row, ids in enumerate(questions):
        theirs = vlm.llm.generate(
            inputs_embeds=embedded(vlm, tokens[row], ids), max_new_tokens=8, do_sample=False, eos_token_id=END
        )[0].tolist()
        assert ours[row] == [token for token in theirs if token not in END]
    assert len({tuple(answer) for answer in ours}) > 3  # else the test could not tell rows apart


@pytest.mark.parametrize("size", [1, 2, 3])
def test_greedy_answers_do_not_depend_on_the_batch(vlm, asked, size):
    tokens, questions = asked
    together = generate(vlm, tokens, questions, END, [8] * 7)
    apart = []
    for start in range(0, 7, size):
        part = slice(start, start + size)
        apart += generate(vlm, tokens[part], questions[part], END, [8] * len(questions[part]))
    assert apart == together


def test_answers_stop_at_end_tokens_and_limits(vlm, asked):
    tokens, questions = asked
    free = generate(vlm, tokens, questions, [], [8] * 7)
    limits = [0, 1, 2, 3, 4, 8, 8]
    assert generate(vlm, tokens, questions, [], limits) == [
        answer[:limit] for answer, limit in zip(free, limits, strict=True)
    ]
    end = free[5][2]
    stopped = generate(vlm, tokens, questions, [end], [8] * 7)
    assert stopped == [answer[: answer.index(end)] if end in answer else answer for answer in free]
    assert len({len(answer) for answer in stopped}) > 1


def test_no_step_is_taken_that_nobody_needs_and_rows_that_ended_leave(vlm, asked, monkeypatch):
    tokens, questions = asked
    rows = []
    forward = vlm.llm.base_model.forward
    monkeypatch.setattr(
        vlm.llm.base_model, "forward", lambda **given: rows.append(len(given["inputs_embeds"])) or forward(**given)
    )
    read = read_questions(vlm, tokens, questions)
    assert rows == [7, 7]  # prefixes, then the rest of the questions
    greedy(vlm, read, [], [1] * 7)
    assert len(rows) == 2  # the first token is read off the question
    limits = [1, 2, 2, 2, 4, 4, 7]
    greedy(vlm, read, [], limits)
    assert rows[2:] == [7, 3, 3, 1, 1, 1]


OPTIONS = [[[10], [11, 12, 13], [14, 15]], [[20, 21], [22]], [[30], [31]], [[40, 41, 42, 43]], [[5], [6]], [[7]], [[8]]]


def naive_scores(vlm, tokens_PD, ids, option):
    """Log-likelihood of each token of the option by one pass over all, nothing cached, nothing padded."""
    logits_TV = vlm.llm(inputs_embeds=embedded(vlm, tokens_PD, ids + option)).logits[0].log_softmax(dim=-1)
    places = range(len(logits_TV) - len(option) - 1, len(logits_TV) - 1)
    return [float(logits_TV[place, token]) for place, token in zip(places, option, strict=True)]


@torch.inference_mode()
def test_option_scores_are_mean_log_likelihoods(vlm, asked):
    tokens, questions = asked
    read = read_questions(vlm, tokens, questions)
    scores, first = option_scores(vlm, read, OPTIONS), first_scores(read, OPTIONS)
    for row, ids in enumerate(questions):
        each = [naive_scores(vlm, tokens[row], ids, option) for option in OPTIONS[row]]
        assert scores[row] == pytest.approx([sum(gained) / len(gained) for gained in each], abs=1e-5)
        assert first[row] == pytest.approx([gained[0] for gained in each], abs=1e-5)


@torch.inference_mode()
def test_scoring_leaves_what_was_read_as_it_was(vlm, asked):
    read = read_questions(vlm, *asked)
    said = greedy(vlm, read_questions(vlm, *asked), END, [8] * 7)
    assert option_scores(vlm, read, OPTIONS) == option_scores(vlm, read, OPTIONS)
    assert greedy(vlm, read, END, [8] * 7) == said


# ---- prefixes


@torch.inference_mode()
def test_questions_go_on_from_their_images_prefix_in_any_order(vlm, asked):
    tokens, _ = asked
    common, images = [0, 9, 9], [2, 0, 0, 1, 2]
    rest = [[5, 6, 7], [8], [8, 8, 8, 8], [4, 3], [3]]
    whole = [[*common, *ids] for ids in rest]
    apart = [generate(vlm, tokens[image][None], [ids], END, [6])[0] for image, ids in zip(images, whole, strict=True)]
    prefixes = read_prefix(vlm, tokens[:3], common, 0)
    for _ in range(2):  # a prefix is not used up
        assert greedy(vlm, read_suffixes(vlm, prefixes, images, rest, 0), END, [6] * 5) == apart


@torch.inference_mode()
@pytest.mark.parametrize("room", [0, 19, 22, 100])
def test_answers_outgrow_the_room_that_was_thought_enough(vlm, asked, room):
    tokens, _ = asked
    prefixes = read_prefix(vlm, tokens[:2], [0, 9, 9], room)
    others = read_suffixes(vlm, prefixes, [0, 1], [[8, 8, 8], [7, 7]], room)
    assert greedy(vlm, others, [], [5, 5])
    read = read_suffixes(vlm, prefixes, [0, 1], [[5], [6]], room)
    ends = [layer.get_seq_length() for layer in prefixes.layers]
    expected = generate(vlm, tokens[:2], [[0, 9, 9, 5], [0, 9, 9, 6]], [], [90, 40])
    assert greedy(vlm, read, [], [90, 40]) == expected
    assert [layer.get_seq_length() for layer in prefixes.layers] == ends
    assert all(bool(torch.isfinite(layer.keys).all()) for layer in prefixes.layers)


def test_one_question_on_each_image_needs_no_second_copy_of_their_prefixes(vlm, asked):
    tokens, _ = asked
    prefixes = read_prefix(vlm, tokens[:2], [0, 9], 30)
    straight = read_suffixes(vlm, prefixes, [0, 1], [[5], [6]], 30)
    turned = read_suffixes(vlm, prefixes, [1, 0], [[6], [5]], 30)
    assert straight.cache.layers[0].stored[0] is prefixes.layers[0].stored[0]
    assert turned.cache.layers[0].stored[0] is not prefixes.layers[0].stored[0]
    torch.testing.assert_close(straight.logits_BV, turned.logits_BV.flip(0))
