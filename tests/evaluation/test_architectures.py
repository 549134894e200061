"""Every architecture of the design space trains and answers inside the VLM, with windows shorter than an image too."""

from dataclasses import replace

import pytest
import torch
from asked_models import answered, greedy_without_cache, likelihoods_without_cache, loaded, pictures, request, with_llm
from rows import Rows
from tiny_evaluation import model_spec
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from prism_sweeps.evaluation.prefix import bears_padding, read_prefix, read_suffixes
from prism_sweeps.models.vlm import build_vlm
from prism_sweeps.models.weights import private_seed

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
WINDOWED = ("mistral", "gemma3_text")
TEXTS = ("what is it?", "a", "is it the red one over there?", "what")


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
    assert bears_padding(vlm.llm) == (request.param not in WINDOWED)
    return vlm


def asked(folder, *options):
    """Two images and the grey one, four questions about each."""
    images = [*pictures(folder, 2), None]
    return [request(f"{place}-{text}", image, text, *options) for place, image in enumerate(images) for text in TEXTS]


def check_answers(model, folder):
    requests = asked(folder)
    ours = answered(model, requests, 5)
    expected = {each.id: greedy_without_cache(model, each) for each in requests}
    assert {name: answer.text for name, answer in ours.items()} == expected
    return expected


def check_likelihoods(model, folder):
    requests = asked(folder, "no", "A", "none of them")
    ours = answered(model, requests, 5)
    for each in requests:
        expected = likelihoods_without_cache(model, each)
        assert ours[each.id].log_likelihoods == pytest.approx(expected, abs=2e-5)
        assert ours[each.id].text == each.options[max(range(3), key=expected.__getitem__)]


def test_answers_are_those_of_the_model_without_a_cache(vlm, tmp_path):
    check_answers(loaded(vlm), tmp_path)


def test_options_are_scored_as_without_a_cache(vlm, tmp_path):
    check_likelihoods(loaded(vlm), tmp_path)


# ---- other ways to tell positions: learned ones, and none but a bias by distance (ALiBi)

SHAPE = {"vocab_size": 258, "hidden_size": 32}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=160)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **SHAPE,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            max_position_embeddings=160,
            word_embed_proj_dim=32,
        )
    ),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(**SHAPE, num_hidden_layers=2, num_attention_heads=4, alibi=True, max_position_embeddings=160)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SHAPE, n_layer=2, n_head=4, tie_word_embeddings=False)),
    "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=258, d_model=32, n_layers=2, n_heads=4, max_seq_len=160)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_positions_may_be_learned_or_distances(kind, tmp_path):
    with private_seed(4):
        model = with_llm(OTHERS[kind]())
    assert len(set(check_answers(model, tmp_path).values())) > 2
    check_likelihoods(model, tmp_path)


@torch.inference_mode()
def test_a_window_is_not_asked_through_padding(tmp_path):
    spec = model_spec()
    llm = replace(spec.llm, architecture="mistral", config={"sliding_window": 8})
    vlm = build_vlm(replace(spec, llm=llm), 1)
    prefixes = read_prefix(vlm, torch.randn(1, 16, 32), [0], 0)
    with pytest.raises(ValueError, match="one length at a time"):
        read_suffixes(vlm, prefixes, [0, 0], [[5], [5, 6]], 0)
    wide = build_vlm(replace(spec, llm=replace(llm, config={"sliding_window": 4096})), 1)
    assert bears_padding(wide.llm)  # no question is as long


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
