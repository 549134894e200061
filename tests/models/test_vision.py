import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Backbone, Resolution, Tower
from prism_sweeps.models import weights
from prism_sweeps.models.vision import build_vision

PIXELS = 32
TINY = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
FAMILIES = {
    "class token": ("vit_tiny_patch16_224", TINY, 1),
    "no class token": ("vit_tiny_patch16_224", {**TINY, "class_token": False, "global_pool": "avg"}, 0),
    "clip": ("vit_large_patch14_clip_quickgelu_{pixels}.openai", TINY, 1),
    "siglip": ("vit_base_patch16_siglip_224", TINY, 0),
    "dinov2 with registers": ("vit_large_patch14_reg4_dinov2", TINY, 5),
    "dinov3": ("vit_small_patch16_dinov3", TINY, 5),
}
CLIP = {"embed_dim": 16, "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8}}
OPEN_CLIP = {**CLIP, "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}}


def tower(
    model: str = "vit_tiny_patch16_224", kwargs=TINY, prefix: int = 1, where: str = "random:1", **stated
) -> Tower:
    shape = {"width": 32, "depth": 4, "heads": 2, "patch": 8, "prefix_tokens": prefix, **stated}
    return Tower(name="t", model=model, kwargs=kwargs, weights={PIXELS: where}, **shape)


def build(*towers: Tower):
    named = {f"t{i}": tower for i, tower in enumerate(towers)}
    return build_vision(Backbone("b", named), Resolution("r", PIXELS))


def timm_model(model: str, kwargs, seed: int, size: int = PIXELS):
    with weights.private_seed(seed):
        return timm.create_model(model.replace("{pixels}", "336"), num_classes=0, img_size=size, **kwargs).eval()


def output_of_block(whole, pixels_BCHW, n: int):
    """timm's own answer, from the whole tower (Eva has only the newer of the two calls)."""
    if hasattr(whole, "get_intermediate_layers"):
        return whole.get_intermediate_layers(pixels_BCHW, n={n})[0]
    return whole.forward_intermediates(pixels_BCHW, indices=[n], output_fmt="NLC", intermediates_only=True)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_penultimate_blocks_and_the_last_is_gone(tmp_path, family):
    name, kwargs, prefix = FAMILIES[family]
    whole = timm_model(name, kwargs, seed=7)
    for parameter in whole.parameters():  # or LayerScale makes all blocks alike
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    model = name.replace("{pixels}", "336")
    backbone = build(tower(model, kwargs, prefix, where=str(tmp_path / "w.safetensors"))).eval()
    pixels_BCHW = torch.randn(2, 3, PIXELS, PIXELS)
    expected, last = (output_of_block(whole, pixels_BCHW, n) for n in (4 - 2, 4 - 1))
    features_BPD = backbone({"t0": pixels_BCHW})
    assert features_BPD.shape == (2, 16, 32) == (2, backbone.patches, backbone.width)
    assert torch.equal(features_BPD, expected)
    assert not torch.allclose(features_BPD, last)
    assert len(backbone.towers["t0"].trunk.blocks) == 3


def test_a_file_of_the_cut_tower_loads_like_that_of_the_whole(tmp_path):
    cut = build(tower(where="random:3")).eval()
    save_file(cut.towers["t0"].trunk.state_dict(), tmp_path / "cut.safetensors")
    again = build(tower(where=str(tmp_path / "cut.safetensors"))).eval()
    pixels = {"t0": torch.randn(1, 3, PIXELS, PIXELS)}
    assert torch.equal(cut(pixels), again(pixels))


def test_fused_features_stand_side_by_side_in_order():
    first, second = tower(where="random:1"), tower(where="random:2", kwargs={**TINY, "embed_dim": 48}, width=48)
    pixels = {name: torch.randn(2, 3, PIXELS, PIXELS) for name in ("t0", "t1")}
    fused = build(first, second).eval()
    assert fused.width == 80
    alone = [build(first).eval()({"t0": pixels["t0"]}), build(second).eval()({"t0": pixels["t1"]})]
    assert torch.equal(fused(pixels), torch.cat(alone, dim=2))


def test_towers_of_unequal_patch_counts_are_refused():
    with pytest.raises(ConfigError, match=r"'t0': 16, 't1': 4"):
        build(tower(), tower(kwargs={**TINY, "patch_size": 16}, patch=16))


@pytest.mark.parametrize(
    ("key", "lie"), [("width", 64), ("depth", 5), ("heads", 4), ("patch", 16), ("prefix_tokens", 0)]
)
def test_a_stated_shape_that_is_not_the_towers_is_refused(key, lie):
    with pytest.raises(ConfigError, match=f"{key}: {lie} should be"):
        build(tower(**{**({"prefix": lie} if key == "prefix_tokens" else {key: lie})}))


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build(tower(where=f"random:{seed}")) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    key = "towers.t0.trunk.patch_embed.proj.weight"
    assert torch.equal(one.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])


def test_weights_for_another_resolution_are_refused(tmp_path):
    save_file(timm_model("vit_tiny_patch16_224", TINY, 1, size=64).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError, match=r"tower 't0'.*w\.safetensors' was trained at 64 px \(8 x 8 patches\), not at 32 px \(4 x 4\)"
    ):
        build(tower(where=str(tmp_path / "w.safetensors")))


def test_broken_and_missing_weights_name_tower_and_file(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(ConfigError, match=r"tower 't0'.*w\.safetensors' do not exist; give hub, zoo:FILE"):
        build(tower(where=str(path)))
    save_file(timm_model("vit_tiny_patch16_224", TINY, 1).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"tower 't0'.*w\.safetensors' is not a whole safetensors file"):
        build(tower(where=str(path)))
    save_file({"some.other.model": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match=r"another architecture.*some\.other\.model"):
        build(tower(where=str(path)))
    with pytest.raises(ConfigError, match=r"one \.safetensors file"):
        build(tower(where=str(tmp_path)))


def test_zoo_entries_are_looked_up_and_suggested(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    save_file(timm_model("vit_tiny_patch16_224", TINY, 1).state_dict(), tmp_path / "nano-clip-32.safetensors")
    build(tower(where="zoo:nano-clip-32.safetensors"))
    with pytest.raises(ConfigError, match=r"did you mean 'nano-clip-32\.safetensors'"):
        build(tower(where="zoo:nano-clip-64.safetensors"))


def test_the_hub_without_network_says_what_to_do():
    with pytest.raises(ConfigError, match=r"(?s)tower 't0' \(timm vit_tiny_patch16_224\).*HF_HUB_OFFLINE"):
        build(tower(where="hub", interpolate=True))


def test_unknown_models_sizes_and_sources():
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny_patch16_224'"):
        build(tower("vit_tiny_patch16_244"))
    with pytest.raises(ConfigError, match=r"no weights for 32 px; it has them for \[64\]"):
        build(Tower(name="t", model="vit_tiny_patch16_224", weights={64: "random:1"}))
    with pytest.raises(ConfigError, match="did you mean 'timm'"):
        build(Tower(name="t", model="m", source="tim", weights={PIXELS: "random:1"}))
    with pytest.raises(ConfigError, match="resnet18"):
        build(tower("resnet18", kwargs={}))


def open_clip_tower(where: str) -> Tower:
    shape = {"width": 32, "depth": 3, "heads": 2, "patch": 8, "prefix_tokens": 1}
    return Tower(name="o", source="open_clip", model="ViT-B-32", kwargs=OPEN_CLIP, weights={PIXELS: where}, **shape)


@pytest.mark.parametrize("part", ["whole", "visual"])
def test_open_clip_features_are_its_penultimate_blocks(tmp_path, part):
    vision = {**OPEN_CLIP["vision_cfg"], "image_size": PIXELS}
    clip = open_clip.create_model("ViT-B-32", **{**OPEN_CLIP, "vision_cfg": vision}).eval()
    saved = clip if part == "whole" else clip.visual
    save_file({n: t.contiguous() for n, t in saved.state_dict().items()}, tmp_path / "w.safetensors")
    backbone = build(open_clip_tower(str(tmp_path / "w.safetensors"))).eval()
    pixels_BCHW = torch.randn(2, 3, PIXELS, PIXELS)
    seen = []
    clip.visual.transformer.resblocks[1].register_forward_hook(lambda _, __, out: seen.append(out))
    clip.encode_image(pixels_BCHW)
    assert torch.allclose(backbone({"t0": pixels_BCHW}), seen[0][:, 1:], atol=1e-6)
    assert len(backbone.towers["t0"].trunk.transformer.resblocks) == 2
