"""Kinds of towers: convolutional ones, the blocks that run, and building without memory."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_towers import CONV, FAMILIES, PIXELS, TINY, build, build_conv, conv_tower, open_clip_tower, tower

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Backbone, Resolution, Tower
from prism_sweeps.models import weights
from prism_sweeps.models.vision import build_vision


@pytest.mark.parametrize("model", CONV)
def test_a_convolutional_towers_patches_are_the_cells_of_its_last_feature_map(tmp_path, model):
    with weights.private_seed(3):
        whole = timm.create_model(model).eval()  # its classifier included
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = build_conv(model, str(tmp_path / "w.safetensors")).eval()
    pixels_BCHW = torch.randn(2, 3, 64, 64)
    map_BDHW = whole.forward_features(pixels_BCHW)
    features_BPD = backbone({"t0": pixels_BCHW})
    assert features_BPD.shape == (2, 4, CONV[model]["width"]) == (2, backbone.patches, backbone.width)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        assert torch.equal(features_BPD[:, 2 * row + column], map_BDHW[:, :, row, column])


def test_batch_norm_keeps_its_statistics_when_the_tower_is_trained():
    backbone = build_conv("tf_efficientnet_lite0").train()
    before = {n: t.clone() for n, t in backbone.state_dict().items() if "running" in n}
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    together = backbone({"t0": pixels})
    assert all(torch.equal(backbone.state_dict()[n], t) for n, t in before.items())
    alone = torch.cat([backbone({"t0": image}) for image in pixels[:, None]])
    # statistics of the batch would differ in the first digit; convolutions of one and of two images do in the last ones
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3)


def test_a_tower_of_the_other_kind_is_refused():
    with pytest.raises(ConfigError, match=r"convnext_atto.*img_size.*; set kind: conv"):
        build(tower("convnext_atto", kwargs={}, where="random:1"))
    with pytest.raises(ConfigError, match=r"is a VisionTransformer; kind conv .* set kind: vit"):
        build(Tower(name="t", kind="conv", model="vit_tiny_patch16_224", weights={PIXELS: "random:1"}))
    with pytest.raises(ConfigError, match="depth: 12 should be 16"):
        build_conv("tf_efficientnet_lite0", depth=12)


@pytest.mark.parametrize("kind", ["vit", "open_clip", "conv"])
def test_last_blocks_are_the_last_that_run(kind):
    if kind == "conv":
        backbone = build_conv("tf_efficientnet_lite0")
        names = ["blocks.5.3.", "blocks.6.0.", "conv_head.", "bn2."]
    else:
        backbone = build(tower() if kind == "vit" else open_clip_tower("random:1"))
        names = ["blocks.1.", "blocks.2."] if kind == "vit" else ["resblocks.0.", "resblocks.1."]
    (trunk,) = (each.trunk for each in backbone.towers.values())
    prefix = "transformer." if kind == "open_clip" else ""
    expected = [p for n, p in trunk.named_parameters() if n.startswith(tuple(prefix + name for name in names))]
    assert {id(p) for p in backbone.last_blocks(2)} == {id(p) for p in expected}
    with pytest.raises(ConfigError, match=r"tower 't0': the last 20 blocks are to be trained, but \d+ run"):
        backbone.last_blocks(20)
    with pytest.raises(ConfigError, match="take 1 to"):
        backbone.last_blocks(0)


def test_a_gradient_reaches_the_last_blocks_alone():
    backbone = build(tower(where="random:1"), tower(where="random:2")).requires_grad_(False)
    last = backbone.last_blocks(1)
    for parameter in last:
        parameter.requires_grad_(True)
    backbone({name: torch.randn(1, 3, PIXELS, PIXELS) for name in ("t0", "t1")}).square().sum().backward()
    with_gradient = {n for n, p in backbone.named_parameters() if p.grad is not None}
    assert {n.split(".trunk.")[1].split(".")[1] for n in with_gradient} == {"2"}
    assert len(with_gradient) == len(last)


EMPTY = {
    **{
        family: tower(name.replace("{pixels}", "336"), kwargs, prefix)
        for family, (name, kwargs, prefix) in FAMILIES.items()
    },
    "eva02 clip": tower("eva02_base_patch16_clip_224", {**TINY, "scale_mlp": False}, 1),
    "open_clip": open_clip_tower("random:1"),
}


@pytest.mark.parametrize("family", EMPTY)
def test_a_tower_built_empty_has_the_names_and_shapes_of_any_other(family):
    asked = Backbone("b", {"t0": EMPTY[family]})
    full = build_vision(asked, Resolution("r", PIXELS)).eval()
    empty = build_vision(asked, Resolution("r", PIXELS), empty=True).eval()
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in full.state_dict().items()}


def test_an_empty_convolutional_tower_needs_no_weights_to_be_there():
    empty = build_vision(
        Backbone("b", {"t0": conv_tower("convnext_atto", "/nowhere")}), Resolution("r", 64), empty=True
    )
    assert sum(parameter.numel() for parameter in empty.parameters()) == pytest.approx(3.37e6, rel=0.01)
