from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from tiny_towers import FAMILIES, OPEN_CLIP, PIXELS, TINY, build, open_clip_tower, timm_model, tower

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Backbone, Resolution, Tower
from prism_sweeps.models import vision, weights
from prism_sweeps.models.vision import build_vision


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


def hub_open_clip() -> Tower:
    kwargs = {**OPEN_CLIP, "pretrained": "openai"}
    tower = open_clip_tower("hub")
    tower.kwargs, tower.interpolate = kwargs, True
    return tower


def test_open_clips_hub_without_network_says_the_same():
    with pytest.raises(ConfigError, match=r"(?s)tower 't0' \(open_clip ViT-B-32\) cannot have .*HF_HUB_OFFLINE"):
        build(hub_open_clip())


def test_unknown_models_sizes_and_sources():
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny_patch16_224'"):
        build(tower("vit_tiny_patch16_244"))
    with pytest.raises(ConfigError, match=r"no weights for 32 px; it has them for \[64\]"):
        build(Tower(name="t", model="vit_tiny_patch16_224", weights={64: "random:1"}))
    with pytest.raises(ConfigError, match="did you mean 'timm'"):
        build(Tower(name="t", model="m", source="tim", weights={PIXELS: "random:1"}))
    with pytest.raises(ConfigError, match="resnet18"):
        build(tower("resnet18", kwargs={}))


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


def test_the_same_clip_through_timm_and_through_open_clip_has_the_same_features(tmp_path):
    """open_clip's own weights, in timm's names by timm's own conversion of OpenAI's checkpoints."""
    vision = {**OPEN_CLIP["vision_cfg"], "image_size": PIXELS}
    clip = open_clip.create_model("ViT-B-32", quick_gelu=True, **{**OPEN_CLIP, "vision_cfg": vision}).eval()
    for parameter in clip.visual.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {n: t.contiguous() for n, t in clip.state_dict().items()}
    kwargs = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    model = "vit_base_patch16_clip_quickgelu_224"
    converted = checkpoint_filter_fn(state, timm.create_model(model, num_classes=0, img_size=PIXELS, **kwargs))
    save_file(state, tmp_path / "open_clip.safetensors")
    save_file({n: t.contiguous() for n, t in converted.items()}, tmp_path / "timm.safetensors")
    own = open_clip_tower(str(tmp_path / "open_clip.safetensors"))
    own.kwargs = {**OPEN_CLIP, "quick_gelu": True}
    pixels = {"t0": torch.randn(2, 3, PIXELS, PIXELS)}
    through_open_clip = build(own).eval()(pixels)
    through_timm = build(tower(model, kwargs, depth=3, where=str(tmp_path / "timm.safetensors"))).eval()(pixels)
    assert through_open_clip.abs().max() > 1
    torch.testing.assert_close(through_timm, through_open_clip, atol=1e-5, rtol=1e-5)
    gelu = tower("vit_base_patch16_clip_224", kwargs, depth=3, where=str(tmp_path / "timm.safetensors"))
    assert (build(gelu).eval()(pixels) - through_open_clip).abs().max() > 1e-2


@pytest.mark.parametrize("source", ["timm", "open_clip"])
def test_position_embeddings_are_resampled_where_the_config_says_so(tmp_path, source):
    """From 64 px to 32 px, as the library itself does it when it loads its own weights."""
    if source == "timm":
        trained = timm_model("vit_tiny_patch16_224", TINY, 1, size=64)
        state, here = trained.state_dict(), tower(where=str(tmp_path / "w.safetensors"))
        expected = checkpoint_filter_fn(dict(state), timm_model("vit_tiny_patch16_224", TINY, 1))["pos_embed"]
    else:
        big = {**OPEN_CLIP["vision_cfg"], "image_size": 64}
        trained = open_clip.create_model("ViT-B-32", **{**OPEN_CLIP, "vision_cfg": big})
        small = open_clip.create_model("ViT-B-32", **{**OPEN_CLIP, "vision_cfg": {**big, "image_size": PIXELS}})
        resampled = dict(trained.state_dict())
        open_clip.model.resize_pos_embed(resampled, small)
        state, expected = trained.state_dict(), resampled["visual.positional_embedding"]
        here = open_clip_tower(str(tmp_path / "w.safetensors"))
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"was trained at 64 px .*take resolution=64, .*`interpolate: true`"):
        build(here)
    here.interpolate = True
    trunk = build(here).towers["t0"].trunk
    positions = trunk.pos_embed if source == "timm" else trunk.positional_embedding
    assert torch.equal(positions, expected)


@pytest.mark.parametrize(
    ("model", "source", "where", "trained"),
    [
        ("vit_large_patch14_reg4_dinov2.lvd142m", "timm", "hub", 518),
        ("vit_base_patch16_siglip_256.webli", "timm", "hub", 256),
        ("anything", "timm", "hub:vit_base_patch16_siglip_384.webli", 384),
        ("ViT-L-14-quickgelu", "open_clip", "hub:ViT-L-14-336-quickgelu", 336),
    ],
)
def test_published_weights_at_another_size_are_refused_before_any_download(monkeypatch, model, source, where, trained):
    monkeypatch.setattr(vision, "_trunk", lambda *_, **__: pytest.fail("was built"))
    patch = 14 if "14" in model + where else 16
    asked = Tower(name="t", source=source, model=model, weights={224: where}, width=1, depth=1, heads=1, patch=patch)
    with pytest.raises(ConfigError, match=rf"was trained at {trained} px .*resolution={trained}.*interpolate: true"):
        build_vision(Backbone("b", {"t": asked}), Resolution("r", 224))


def test_a_gated_repository_says_where_to_accept_its_licence(monkeypatch):
    def gated(*_, **__):
        response = SimpleNamespace(headers={}, request=None)
        raise GatedRepoError("Access to model timm/some_vit is restricted.", response=response)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", gated)
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", gated)
    through_timm = tower("vit_tiny_patch16_224.augreg_in21k_ft_in1k", where="hub", interpolate=True)
    for asked in (through_timm, hub_open_clip()):
        with pytest.raises(ConfigError, match=r"gated weights: accept their licence .*hf auth login.*timm/some_vit"):
            build(asked)


def test_a_truncated_download_is_told_as_one_error(monkeypatch, tmp_path):
    def truncated(*_, **__):
        save_file({"w": torch.zeros(64)}, tmp_path / "w.safetensors")
        (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-8])
        return load_file(tmp_path / "w.safetensors")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", truncated)
    with pytest.raises(ConfigError, match=r"tower 't0' .*cannot have its weights from the hub"):
        build(tower("vit_tiny_patch16_224.augreg_in21k_ft_in1k", where="hub", interpolate=True))


def test_weights_that_do_not_fit_leave_a_module_as_it_was(tmp_path):
    module = timm_model("vit_tiny_patch16_224", TINY, 1)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    other = timm_model("vit_tiny_patch16_224", {**TINY, "mlp_ratio": 2}, 2).state_dict()
    with pytest.raises(ConfigError, match=r"blocks\.0\.mlp\.fc1\.weight is \[64, 32\], not \[128, 32\]"):
        weights.put_tensors(module, other, "tower 't'", tmp_path / "w")
    assert all(torch.equal(module.state_dict()[n], t) for n, t in before.items())
