from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Backbone, Resolution, Tower
from prism_sweeps.models import vision, weights
from prism_sweeps.models.towers import materialise
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


CONV = {
    "tf_efficientnet_lite0": {"width": 1280, "depth": 16, "patch": 32},
    "convnext_atto": {"width": 320, "depth": 12, "patch": 32},
    "resnet10t": {"width": 512, "depth": 4, "patch": 32},
}


def conv_tower(model: str, where: str = "random:1", **changed) -> Tower:
    return Tower(name="c", kind="conv", model=model, heads=0, weights={64: where}, **{**CONV[model], **changed})


def build_conv(model: str, *args, **changed):
    return build_vision(Backbone("b", {"t0": conv_tower(model, *args, **changed)}), Resolution("r", 64))


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
    pixels = torch.randn(2, 3, 64, 64)
    together = backbone({"t0": pixels})
    assert all(torch.equal(backbone.state_dict()[n], t) for n, t in before.items())
    alone = torch.cat([backbone({"t0": image}) for image in pixels[:, None]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_tower_of_the_other_kind_is_refused():
    with pytest.raises(ConfigError, match=r"convnext_atto.*img_size.*; set kind: conv"):
        build(tower("convnext_atto", kwargs={}, where="random:1"))
    with pytest.raises(ConfigError, match=r"is a VisionTransformer; kind conv .* set kind: vit"):
        build(Tower(name="t", kind="conv", model="vit_tiny_patch16_224", weights={PIXELS: "random:1"}))
    with pytest.raises(ConfigError, match="depth: 12 should be 16"):
        build_conv("tf_efficientnet_lite0", depth=12)


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
def test_a_tower_built_empty_takes_weights_like_any_other(family):
    asked = Backbone("b", {"t0": EMPTY[family]})
    full = build_vision(asked, Resolution("r", PIXELS)).eval()
    empty = build_vision(asked, Resolution("r", PIXELS), empty=True).eval()
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    materialise(empty)
    empty.load_state_dict(full.state_dict())
    pixels = {"t0": torch.randn(1, 3, PIXELS, PIXELS)}
    assert torch.equal(empty(pixels), full(pixels))


def test_an_empty_convolutional_tower_needs_no_weights_to_be_there():
    empty = build_vision(
        Backbone("b", {"t0": conv_tower("convnext_atto", "/nowhere")}), Resolution("r", 64), empty=True
    )
    assert sum(parameter.numel() for parameter in empty.parameters()) == pytest.approx(3.37e6, rel=0.01)


def test_what_is_computed_and_cannot_be_again_is_told():
    module = torch.nn.Module()
    module.register_buffer("table", torch.arange(3), persistent=False)
    with pytest.raises(ConfigError, match="Module cannot be built empty"):
        materialise(module)
