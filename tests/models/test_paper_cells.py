"""Every published configuration as a whole model without memory: its size, its patches, the layout of its sequence.

Shapes: B rows, T text positions, P patches, V channels of the vision features, D channels of the language model.
"""

from functools import cache
from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedModel

from prism_sweeps.config import published
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.schema import Cell
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.models.language import empty_language_model
from prism_sweeps.models.projector import build_projector
from prism_sweeps.models.vision import VisionBackbone, build_vision
from prism_sweeps.models.vlm import VLM
from prism_sweeps.planning.cost import model_parameters

# Patches and width of the towers; millions of parameters of the language models (without the embedding
# rows that the reference adds for padding).
VISION = {
    ("clip-vit-l", 224): (256, 1024),
    ("clip-vit-l", 336): (576, 1024),
    ("siglip-so400m", 224): (256, 1152),
    ("siglip-so400m", 384): (729, 1152),
    ("dinov2-vit-l", 224): (256, 1024),
    ("in1k-vit-l", 224): (196, 1024),
    ("dinoclip-vit-l-paper", 336): (576, 2048),
    ("dinosiglip-so400m", 224): (256, 2176),
    ("dinosiglip-so400m", 384): (729, 2176),
}
LANGUAGE = {
    "llama2-7b": (6_738.4, 4096),
    "llama2-13b": (13_015.9, 5120),
    "mistral-v01-7b": (7_241.7, 4096),
    "phi-2": (2_779.7, 2560),
}
LIKE = {"vicuna-v15-7b": "llama2-7b", "llama2-7b-chat": "llama2-7b", "mistral-v01-7b-instruct": "mistral-v01-7b"}
LIKE |= {"vicuna-v15-13b": "llama2-13b", "llama2-13b-chat": "llama2-13b"}
TEXT = 7


def cell_of(name: str) -> tuple[Cell, dict[str, str]]:
    return compose_cell([f"{axis}={choice}" for axis, choice in published.configurations()[name].items()])


@cache
def empty_vision(backbone: str, resolution: str) -> VisionBackbone:
    cell, _ = compose_cell([f"backbone={backbone}", f"resolution='{resolution}'"])
    return build_vision(cell.backbone, cell.resolution, empty=True)


@cache
def empty_features(backbone: str, resolution: str) -> torch.Tensor:
    """Of two images, features_BPV; what runs without memory is not fast, so once a backbone."""
    vision, side = empty_vision(backbone, resolution), int(resolution)
    with torch.no_grad():
        return vision({name: torch.zeros(2, 3, side, side, device="meta") for name in vision.towers})


@cache
def empty_llm(name: str) -> PreTrainedModel:
    return empty_language_model(compose_cell([f"llm={name}"])[0].llm)


def empty_vlm(cell: Cell, choices: dict[str, str]) -> VLM:
    vision = empty_vision(choices["backbone"], choices["resolution"])
    with torch.device("meta"):
        projector = build_projector(cell.projector, vision.width, cell.llm.width)
    return VLM(vision, projector, empty_llm(choices["llm"]))


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", published.configurations())
def test_a_configuration_is_a_model_of_the_stated_size_and_layout(name: str) -> None:
    cell, choices = cell_of(name)
    vlm = empty_vlm(cell, choices)
    patches, width = VISION[choices["backbone"], cell.resolution.pixels]
    millions, llm_width = LANGUAGE[LIKE.get(choices["llm"], choices["llm"])]
    assert (vlm.vision.patches, vlm.vision.width) == (patches, width)
    assert parameters(vlm.llm) / 1e6 == pytest.approx(millions, abs=0.1)
    sizes = (
        [width, 4 * width, llm_width, llm_width] if cell.projector.kind == "fused-mlp" else [width, *[llm_width] * 2]
    )
    assert parameters(vlm.projector) == sum((a + 1) * b for a, b in pairwise(sizes))
    planned = model_parameters(ModelSpec(cell.backbone, cell.resolution, cell.resize, cell.projector, cell.llm))
    assert planned["llm"] == pytest.approx(parameters(vlm.llm), rel=0.001)  # Phi has biases, which no plan counts
    assert planned["projector"] == parameters(vlm.projector)
    assert planned["vision"] == pytest.approx(parameters(vlm.vision), rel=0.005)

    tokens_IPD = vlm.projector(empty_features(choices["backbone"], choices["resolution"]))
    assert tokens_IPD.shape == (2, patches, llm_width)
    ids_BT = torch.zeros(2, TEXT, dtype=torch.long, device="meta")
    embeds, mask = vlm.embed(ids_BT, ids_BT == 0, torch.tensor([True, True]), tokens_IPD)
    assert embeds.shape == (2, TEXT + patches, llm_width)
    assert mask.shape == (2, TEXT + patches)


def test_patches_stand_after_bos() -> None:
    """The layout that the shapes above have, with values: [BOS] [patches] [text], as in prismatic-vlms."""
    cell, _ = compose_cell(["backbone=nano-clip", "resize=naive"])
    vlm = VLM(build_vision(cell.backbone, cell.resolution), torch.nn.Linear(128, 128), empty_language_model(cell.llm))
    vlm.llm.to_empty(device="cpu")
    ids_BT = torch.arange(5)[None]
    tokens_IPD = torch.full((1, 64, 128), 9.0)
    embeds, mask = vlm.embed(ids_BT, ids_BT >= 0, torch.tensor([True]), tokens_IPD)
    assert bool((embeds[0, 1:65] == 9).all())
    assert bool(mask.all())
