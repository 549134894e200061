"""Every shipped tower and backbone, built without weights: its size, its features, its statistics, its cost."""

from functools import cache
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prism_sweeps.config.compose import design_space
from prism_sweeps.config.flops import tower_part
from prism_sweeps.config.plain import from_plain
from prism_sweeps.config.schema import Backbone, Resolution, Tower
from prism_sweeps.models.towers import without_memory
from prism_sweeps.models.vision import VisionBackbone, build_vision

CONF = Path(__file__).parents[2] / "conf"
TOWERS = sorted(path.stem for path in (CONF / "tower").glob("*.yaml"))

PUBLISHED = [
    # backbone, pixels, width, patches, whole towers in millions of parameters (timm 0.9.10)
    ("clip-vit-b16", 224, 768, 196, 85.8),
    ("clip-vit-l", 224, 1024, 256, 303.2),
    ("clip-vit-l", 336, 1024, 576, 303.5),
    ("clip-vit-l-openclip", 224, 1024, 256, 303.2),
    ("clip-vit-l-openclip", 336, 1024, 576, 303.5),
    ("siglip-b16", 224, 768, 196, 92.9),
    ("siglip-b16", 256, 768, 256, 92.9),
    ("siglip-b16", 384, 768, 576, 93.2),
    ("siglip-so400m", 224, 1152, 256, 427.7),
    ("siglip-so400m", 384, 1152, 729, 428.2),
    ("dinov2-vit-l", 224, 1024, 256, 303.2),
    ("in1k-vit-l", 224, 1024, 196, 303.3),
    ("dinoclip-vit-l", 336, 2048, 576, 607.1),
    ("dinoclip-vit-l-paper", 336, 2048, 576, 607.1),
    ("dinosiglip-so400m", 224, 2176, 256, 730.9),
    ("dinosiglip-so400m", 384, 2176, 729, 731.9),
    # beyond the paper: parameters as timm 1.0.31 builds them
    ("siglip2-so400m", 224, 1152, 256, 427.7),
    ("siglip2-so400m", 378, 1152, 729, 428.2),
    ("siglip2-so400m", 384, 1152, 729, 428.2),
    ("siglip2-so400m-p16", 256, 1152, 256, 427.9),
    ("siglip2-so400m-p16", 384, 1152, 576, 428.3),
    ("dinov3-vit-l", 224, 1024, 196, 303.1),
    ("metaclip-vit-l", 224, 1024, 256, 303.2),
    ("datacomp-vit-l", 224, 1024, 256, 303.2),
    ("eva02-clip-l", 224, 1024, 256, 303.3),
    ("eva02-clip-l", 336, 1024, 576, 303.6),
    ("convnext-clip-l", 256, 1536, 64, 196.2),
    ("convnext-clip-l", 320, 1536, 100, 196.2),
    ("efficientnet-lite0", 128, 1280, 16, 3.4),
    ("efficientnet-lite0", 224, 1280, 49, 3.4),
]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def configured(name: str) -> Backbone:
    return design_space().part("backbone", name, {})


def stated(name: str) -> Tower:
    return from_plain(Tower, OmegaConf.to_container(OmegaConf.load(CONF / "tower" / f"{name}.yaml")))


@cache
def empty(name: str, pixels: int) -> VisionBackbone:
    return build_vision(configured(name), Resolution("r", pixels), empty=True)


def library_name(tower: Tower, pixels: int) -> str:
    return tower.weights[pixels].removeprefix("hub").removeprefix(":") or tower.model.replace("{pixels}", str(pixels))


@cache
def library_parameters(tower_name: str, pixels: int) -> int:
    """Of the whole tower, as its library builds it; without CLIP's projection into the space of the texts."""
    tower = stated(tower_name)
    name = library_name(tower, pixels)
    with without_memory():
        if tower.source == "timm":
            return parameters(timm.create_model(name, num_classes=0, img_size=pixels, **tower.kwargs))
        model = open_clip.create_model(name, load_weights=False, device="meta", force_image_size=pixels)
        return parameters(model.visual) - model.visual.proj.numel()


def whole_parameters(backbone: Backbone, pixels: int) -> int:
    convolutional = {name for name, tower in backbone.towers.items() if tower.kind == "conv"}
    built = empty(backbone.name, pixels) if convolutional else None
    return sum(
        parameters(built.towers[name]) if built and name in convolutional else library_parameters(tower.name, pixels)
        for name, tower in backbone.towers.items()
    )


SIZES = sorted(
    (path.stem, pixels)
    for path in (CONF / "backbone").glob("*.yaml")
    for pixels in set.intersection(*(set(tower.weights) for tower in configured(path.stem).towers.values()))
)


@pytest.mark.parametrize(("name", "pixels", "width", "patches", "millions"), PUBLISHED)
def test_a_backbone_has_its_published_size(name, pixels, width, patches, millions):
    built = empty(name, pixels)
    assert (built.width, built.patches) == (width, patches)
    assert whole_parameters(configured(name), pixels) / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_shipped_tower_is_of_some_backbone_and_every_big_backbone_is_in_the_table():
    used = {tower.name for name, _ in SIZES for tower in configured(name).towers.values()}
    assert used == set(TOWERS)
    from_hub = {n for n, pixels in SIZES if any("hub" in t.weights[pixels] for t in configured(n).towers.values())}
    assert from_hub == {row[0] for row in PUBLISHED}


@pytest.mark.parametrize(("name", "pixels"), [(name, pixels) for name in TOWERS for pixels in stated(name).weights])
def test_features_have_the_stated_shape_and_cost_what_the_plan_says(name, pixels):
    """On the meta device, whose tensors have a shape and no content; operations as torch counts them."""
    tower = stated(name)
    built = build_vision(Backbone(name, {"t": tower}), Resolution("r", pixels), empty=True).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        features_BPD = built({"t": torch.empty(1, 3, pixels, pixels, device="meta")})
    assert features_BPD.shape == (1, built.patches, tower.width)
    planned = tower_part(tower, built.patches)
    assert planned.parameters == pytest.approx(parameters(built), rel=0.005)
    assert planned.forward.of(0, 0) == pytest.approx(counted.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("tower_name", TOWERS)
def test_a_tower_from_the_hub_is_normalised_as_its_library_publishes_it(tower_name):
    tower = stated(tower_name)
    for pixels in (size for size, weights in tower.weights.items() if weights.startswith("hub")):
        name = library_name(tower, pixels)
        if tower.source == "timm":
            published = timm.get_pretrained_cfg(name)
            assert published.has_weights
            mean, std = published.mean, published.std
        else:
            published = open_clip.get_pretrained_cfg(name, tower.kwargs["pretrained"])
            mean, std = published["mean"], published["std"]
        assert (tuple(tower.mean), tuple(tower.std)) == (pytest.approx(mean), pytest.approx(std))


@pytest.mark.parametrize("name", ["clip-vit-l", "clip-vit-l-openclip", "eva02-clip-l", "dinov2-vit-l"])
def test_what_is_cut_away_is_the_last_block_and_the_final_norm(name):
    built = empty(name, 224)
    (tower,) = built.towers.values()
    block, norm = sum(parameter.numel() for parameter in tower.last_blocks(1)), 2 * built.width
    assert library_parameters(name, 224) - parameters(built) == block + norm


@pytest.mark.parametrize(("name", "gelu"), [("dinoclip-vit-l", "QuickGELU"), ("dinoclip-vit-l-paper", "GELU")])
def test_the_fused_clip_has_the_activation_its_name_says(name, gelu):
    clip = empty(name, 336).towers["clip"].trunk
    assert {type(block.mlp.act).__name__ for block in clip.blocks} == {gelu}
