"""Answers against transformers' own generation and against scoring without a cache, at every batch size."""

import pytest
import torch
from tiny_evaluation import tiny_vlm

from prism_sweeps.evaluation.answers import choose, generate, option_scores, read_questions

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


OPTIONS = [[[10], [11, 12, 13], [14, 15]], [[20, 21], [22]], [[30], [31]], [[40, 41, 42, 43]], [[5], [6]], [[7]], [[8]]]


def naive_score(vlm, tokens_PD, ids, option):
    """Mean log-likelihood of the option by one pass over question and option, nothing cached, nothing padded."""
    logits_TV = vlm.llm(inputs_embeds=embedded(vlm, tokens_PD, ids + option)).logits[0].log_softmax(dim=-1)
    places = range(len(logits_TV) - len(option) - 1, len(logits_TV) - 1)
    return sum(float(logits_TV[place, token]) for place, token in zip(places, option, strict=True)) / len(option)


@torch.inference_mode()
def test_option_scores_are_mean_log_likelihoods(vlm, asked):
    tokens, questions = asked
    scores = option_scores(vlm, read_questions(vlm, tokens, questions), OPTIONS)
    for row, ids in enumerate(questions):
        expected = [naive_score(vlm, tokens[row], ids, option) for option in OPTIONS[row]]
        assert scores[row] == pytest.approx(expected, abs=1e-4)
    chosen = choose(vlm, tokens, questions, OPTIONS)
    assert chosen == [max(range(len(row)), key=row.__getitem__) for row in scores]
    one_by_one = [choose(vlm, tokens[r : r + 1], [questions[r]], [OPTIONS[r]])[0] for r in range(7)]
    assert one_by_one == chosen


def test_first_of_equal_options_is_chosen(vlm, asked):
    tokens, questions = asked
    assert choose(vlm, tokens, questions, [[[9], [9]]] * 7) == [0] * 7
