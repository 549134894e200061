"""Every architecture of the design space trains and answers inside the VLM, with windows shorter than an image too."""

from dataclasses import replace

import pytest
import torch
from rows import Rows
from tiny_evaluation import model_spec

from prism_sweeps.evaluation.answers import generate, option_scores, read_questions
from prism_sweeps.models.vlm import build_vlm

END = [1]
ARCHITECTURES = {
    "llama": {"head_dim": 16},
    "mistral": {"sliding_window": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"partial_rotary_factor": 0.5},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8},
    "smollm3": {},
    "olmo2": {},
}
QUESTIONS = [[0, 5, 9, 33], [0, 7, 7, 8, 120, 4, 91, 17, 60, 2], [0, 11]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def vlm(request):
    spec = model_spec()
    tied = request.param == "gemma3_text"
    llm = replace(spec.llm, architecture=request.param, config=ARCHITECTURES[request.param], tied_embeddings=tied)
    vlm = build_vlm(replace(spec, llm=replace(llm, depth=6 if tied else 2)), 1)
    with torch.no_grad():  # large weights, so that rows differ
        for parameter in vlm.llm.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    vlm.train_only(())
    return vlm


@pytest.fixture
def tokens(vlm):
    with torch.inference_mode():
        return vlm.image_tokens({"tiny": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))})


def alone(vlm, tokens_PD, ids):
    text_TD = vlm.llm.get_input_embeddings()(torch.tensor(ids))
    return torch.cat([text_TD[:1], tokens_PD, text_TD[1:]])[None]


def test_answers_are_those_of_the_model_without_a_cache(vlm, tokens):
    ours = generate(vlm, tokens, QUESTIONS, END, [6] * 3)
    for row, ids in enumerate(QUESTIONS):
        said: list[int] = []
        with torch.inference_mode():
            while len(said) < 6 and (not said or said[-1] not in END):
                logits = vlm.llm(inputs_embeds=alone(vlm, tokens[row], [*ids, *said]), use_cache=False).logits
                said.append(int(logits[0, -1].argmax()))
        assert ours[row] == [token for token in said if token not in END]


def test_options_are_scored_as_without_a_cache(vlm, tokens):
    options = [[3], [40, 41, 42]]
    with torch.inference_mode():
        found = option_scores(vlm, read_questions(vlm, tokens, QUESTIONS), [options] * 3)
        for row, ids in enumerate(QUESTIONS):
            for option, score in zip(options, found[row], strict=True):
                logits = vlm.llm(inputs_embeds=alone(vlm, tokens[row], [*ids, *option]), use_cache=False).logits[0]
                given = logits[-len(option) - 1 : -1].log_softmax(-1)
                assert float(given[range(len(option)), option].mean()) == pytest.approx(float(score), abs=1e-4)


def test_a_batch_has_the_loss_of_its_rows_and_reaches_the_projector(vlm):
    ids = [[0, 5, 9, 33, 1], [0, 7, 7, 8, 120, 4, 91, 1]]
    answers = [[False] * 3 + [True] * (len(row) - 3) for row in ids]
    rows = Rows(ids, answers, [True, True], {"tiny": torch.randn(2, 3, 32, 32)}, vlm.vision.patches)
    vlm.train_only(["projector", "llm"])
    loss, _ = vlm.loss(rows.batch())
    loss.backward()
    with torch.no_grad():
        apart = [float(vlm.loss(rows.only([row]).batch())[0]) for row in range(2)]
    vlm.train_only(())
    assert float(loss.detach()) == pytest.approx(sum(apart), rel=1e-4)
    assert all(bool(each.grad.abs().sum() > 0) for each in vlm.projector.parameters())
