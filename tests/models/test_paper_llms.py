"""Every language model of the design space against what its makers publish, on the meta device."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prism_sweeps.config.compose import compose_cell, design_space
from prism_sweeps.config.flops import language_model_part
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.config.shapes import linear_layers
from prism_sweeps.models.language import empty_language_model
from prism_sweeps.models.weights import HUB_ID

PARAMETERS = {
    # Counts to the unit are those that the hub shows for the safetensors, a tied head counted once. After each: what
    # the paper or model card says.
    "llama2-7b": 6_738_415_616,  # 7B and 13B: Touvron et al. 2023, arXiv 2307.09288, table 1
    "llama2-13b": 13_015_864_320,
    "mistral-v01-7b": 7_241_732_096,  # 7B: Jiang et al. 2023, arXiv 2310.06825
    "mistral-v03-7b": 7_248_023_552,  # 768 more tokens, in and out
    "phi-2": 2_779_683_840,  # 2.7B: the model card
    "llama31-8b": 8_030_261_248,  # 8B: Grattafiori et al. 2024, arXiv 2407.21783, table 3
    "llama32-1b": 1_235_814_400,  # 1.23B and 3.21B: the model cards
    "llama32-3b": 3_212_749_824,
    "qwen25-0.5b": 494_032_768,  # .49B, 1.54B, 3.09B, 7.61B: the model cards (arXiv 2412.15115, table 1)
    "qwen25-1.5b": 1_543_714_304,
    "qwen25-3b": 3_085_938_688,
    "qwen25-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,  # .6B, 1.7B, 4.0B, 8.2B: the model cards (arXiv 2505.09388, table 1)
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma3-1b": 999_885_952,  # 302M of embeddings and 698M: arXiv 2503.19786, table 1
    "phi4-mini-instruct": 3_836_021_760,  # 3.8B: arXiv 2503.01743
    "smollm2-135m": 134_515_008,  # 135M, 360M, 1.7B: arXiv 2502.02737
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,  # 3B: the model card
    "olmo2-1b": 1_484_916_736,  # 1B and 7B: arXiv 2501.00656
    "olmo2-7b": 7_298_617_344,
}
TUNED = {
    "llama2-7b": ["llama2-7b-chat", "vicuna-v15-7b"],
    "llama2-13b": ["llama2-13b-chat", "vicuna-v15-13b"],
    **{f"qwen3-{size}-base": [f"qwen3-{size}"] for size in ("0.6b", "1.7b", "4b", "8b")},
    "smollm3-3b-base": ["smollm3-3b"],
}
"""Base -> what was made of it, where that is not the name and -instruct."""
LONE = {"phi-2", "phi4-mini-instruct"}
"""Models whose counterpart was never published."""


def llm(name: str) -> LanguageModel:
    return design_space().part("llm", name, {})


CHOICES = [name for name in design_space().choices("llm") if HUB_ID.fullmatch(llm(name).weights)]
"""All but those that come with the package or are made on the spot."""
PAIRS = [
    (base, tuned)
    for base in CHOICES
    for tuned in TUNED.get(base, [f"{base}-instruct"])
    if tuned in CHOICES and base not in LONE
]


def counted(name: str) -> str:
    """The entry of PARAMETERS that a choice falls under."""
    if name in PARAMETERS:
        return name
    return next(each for pair in PAIRS if name in pair for each in pair if each in PARAMETERS)


@pytest.mark.parametrize("name", CHOICES)
def test_parameters_are_as_many_as_published(name):
    model = empty_language_model(llm(name))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[counted(name)]
    linear = {n.split(".")[-1]: m for n, m in model.base_model.layers[0].named_modules() if isinstance(m, nn.Linear)}
    assert linear_layers(llm(name)) == {n: (m.in_features, m.out_features) for n, m in linear.items()}


@pytest.mark.parametrize(("base", "tuned"), PAIRS)
def test_a_base_and_what_was_made_of_it_have_equal_shapes(base, tuned):
    one, other = (empty_language_model(llm(name)) for name in (base, tuned))
    assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
    one, other = llm(base), llm(tuned)
    assert one.weights != other.weights
    assert one.prompt == "in-out" != other.prompt
    assert (one.architecture, one.config) == (other.architecture, other.config)


def test_every_family_has_both():
    assert {name for pair in PAIRS for name in pair} == set(CHOICES) - LONE


@pytest.mark.parametrize("name", CHOICES)
def test_names_are_choices_on_the_command_line(name):
    cell, choices = compose_cell([f"llm={name}"])
    assert (choices["llm"], cell.llm.name) == (name, name)
    assert cell.llm.tokenisation == "whole"


@pytest.mark.parametrize("name", ["llama32-1b", "qwen3-0.6b", "gemma3-1b", "phi-2"])
def test_a_block_costs_what_torch_counts(name):
    """Qwen 3 and Gemma 3 have heads wider, or narrower, than their width divided among them."""
    one, length = replace(llm(name), depth=1), 600
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty_language_model(one).base_model(inputs_embeds=torch.zeros(1, length, one.width, device="meta"))
    assert language_model_part(one).forward.of(length, 0) == pytest.approx(counter.get_total_flops(), rel=0.002)
