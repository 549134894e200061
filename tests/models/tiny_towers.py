"""Towers of a few thousand parameters, and the ways to build them."""

import timm

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


def open_clip_tower(where: str) -> Tower:
    shape = {"width": 32, "depth": 3, "heads": 2, "patch": 8, "prefix_tokens": 1}
    return Tower(name="o", source="open_clip", model="ViT-B-32", kwargs=OPEN_CLIP, weights={PIXELS: where}, **shape)


CONV = {
    "tf_efficientnet_lite0": {"width": 1280, "depth": 16, "patch": 32},
    "convnext_atto": {"width": 320, "depth": 12, "patch": 32},
    "resnet10t": {"width": 512, "depth": 4, "patch": 32},
}


def conv_tower(model: str, where: str = "random:1", **changed) -> Tower:
    return Tower(name="c", kind="conv", model=model, heads=0, weights={64: where}, **{**CONV[model], **changed})


def build_conv(model: str, *args, **changed):
    return build_vision(Backbone("b", {"t0": conv_tower(model, *args, **changed)}), Resolution("r", 64))
