"""Vision towers and their patch features.

Shapes: B images, C colour channels, H height, W width, P patches, D channels (of one tower, or of all side by side).
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import TOWER_SOURCES, Backbone, Resolution, Tower
from prism_sweeps.models.weights import OFFLINE, check_shape, locate, private_seed, put_tensors, read_tensors

HEADS = ("head.", "fc_norm.", "attn_pool.", "norm.", "ln_post.", "proj", "attn_pool_contrastive.")


class TimmTower(nn.Module):
    """A timm ViT cut after its second-to-last block: no last block, no final norm, no head (prismatic facts §1.2)."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        blocks = trunk.blocks
        self.shape = {
            "width": trunk.embed_dim,
            "depth": len(blocks),
            "heads": blocks[0].attn.num_heads,
            "patch": trunk.patch_embed.patch_size[0],
            "prefix_tokens": trunk.num_prefix_tokens,
        }
        trunk.prune_intermediate_layers([-2], prune_norm=True, prune_head=True)
        self.trunk = trunk

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.trunk.forward_features(pixels_BCHW)[:, self.shape["prefix_tokens"] :]


class OpenClipTower(nn.Module):
    """open_clip's own ViT, cut the same way."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        blocks = trunk.transformer.resblocks
        self.shape = {
            "width": trunk.conv1.out_channels,
            "depth": len(blocks),
            "heads": blocks[0].attn.num_heads,
            "patch": trunk.patch_size[0],
            "prefix_tokens": 1,
        }
        trunk.prune_intermediate_layers([-2], prune_norm=True, prune_head=True)
        trunk.attn_pool = trunk.attn_pool_contrastive = None
        self.trunk = trunk

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        out = self.trunk.forward_intermediates(pixels_BCHW, indices=[-1], intermediates_only=True, output_fmt="NLC")
        return out["image_intermediates"][0]


class VisionBackbone(nn.Module):
    """One tower, or several whose features stand side by side on the channel dimension, in the config's order."""

    def __init__(self, towers: dict[str, nn.Module], patches: int) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.patches = patches
        self.width: int = sum(tower.shape["width"] for tower in towers.values())

    def forward(self, pixels: dict[str, Tensor]) -> Tensor:
        """Tower name -> pixels_BCHW, normalised for that tower, to features_BPD of the penultimate block."""
        return torch.cat([tower(pixels[name]) for name, tower in self.towers.items()], dim=2)


def build_vision(backbone: Backbone, resolution: Resolution) -> VisionBackbone:
    """Build every tower at this resolution and load its weights; fp32, on the CPU.

    Weights are `hub` (position embeddings resampled by the library where it was trained at another resolution),
    `zoo:FILE` or a path to safetensors with the library's own names, or `random:SEED`. Raises ConfigError for weights
    that are missing or do not fit, a stated shape that is not the tower's, and towers of unequal patch counts.
    """
    if not backbone.towers:
        raise ConfigError(f"backbone '{backbone.name}' has no towers")
    pixels = resolution.pixels
    towers = {name: build_tower(tower, pixels, f"tower '{name}'") for name, tower in backbone.towers.items()}
    counts = {name: (pixels // tower.patch) ** 2 for name, tower in backbone.towers.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"towers of backbone '{backbone.name}' give different numbers of patches at {pixels} px: {counts}"
        )
    return VisionBackbone(towers, next(iter(counts.values())))


def build_tower(tower: Tower, pixels: int, owner: str) -> nn.Module:
    """One tower with its weights; `{pixels}` in its model name stands for the resolution."""
    if tower.source not in TOWER_SOURCES:
        raise ConfigError(f"{owner}: unknown source '{tower.source}'; {nearest(tower.source, TOWER_SOURCES)}")
    model = tower.model.replace("{pixels}", str(pixels))
    owner = f"{owner} ({tower.source} {model})"
    if pixels not in tower.weights:
        raise ConfigError(f"{owner} has no weights for {pixels} px; it has them for {sorted(tower.weights)}")
    place = _place(tower.weights[pixels], owner)
    with private_seed(place if isinstance(place, int) else 0):
        trunk = _trunk(replace(tower, model=model), pixels, owner, from_hub=place is None)
    built = _cut(trunk, owner)
    stated = {key: getattr(tower, key) for key in built.shape}
    check_shape(owner, stated, built.shape)
    if isinstance(place, Path):
        _load(built.trunk, place, owner)
    return built


def _place(reference: str, owner: str) -> int | Path | None:
    if reference == "hub":
        return None
    place = locate(reference, owner)
    if place is None:
        raise ConfigError(f"{owner}: weights '{reference}' do not exist; give hub, zoo:FILE or a path to .safetensors")
    return place


def _trunk(tower: Tower, pixels: int, owner: str, from_hub: bool) -> nn.Module:
    create = _create_timm if tower.source == "timm" else _create_open_clip
    try:
        return create(tower, pixels, from_hub)
    except OSError as error:
        raise ConfigError(f"{owner}: its weights cannot be had from the hub: {error}. {OFFLINE}") from error
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{owner} cannot be built at {pixels} px: {error}{_did_you_mean(tower)}") from error


def _did_you_mean(tower: Tower) -> str:
    """For a misspelt timm name; timm knows a thousand, so the valid ones are not listed."""
    name = tower.model.split(".")[0]
    known = [] if tower.source != "timm" or timm.is_model(name) else timm.list_models()
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _create_timm(tower: Tower, pixels: int, from_hub: bool) -> nn.Module:
    return timm.create_model(tower.model, pretrained=from_hub, num_classes=0, img_size=pixels, **tower.kwargs)


def _create_open_clip(tower: Tower, pixels: int, from_hub: bool) -> nn.Module:
    """`kwargs` are those of `open_clip.create_model`; `pretrained` among them is the tag of the hub's weights."""
    import open_clip  # takes seconds to import, and few towers come from it

    kwargs: dict[str, Any] = {**tower.kwargs}
    tag = kwargs.pop("pretrained", None)
    if "vision_cfg" in kwargs:  # replaces the named model's, so `force_image_size` would be lost
        kwargs["vision_cfg"] = {**kwargs["vision_cfg"], "image_size": pixels}
    model = open_clip.create_model(
        tower.model,
        pretrained=tag if from_hub else None,
        load_weights=from_hub,
        require_pretrained=from_hub,
        force_image_size=pixels,
        pretrained_text=False,
        **kwargs,
    )
    return getattr(model.visual, "trunk", model.visual)


def _cut(trunk: nn.Module, owner: str) -> nn.Module:
    is_timm = hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens")
    if not is_timm and not (hasattr(trunk, "transformer") and hasattr(trunk, "conv1")):
        raise ConfigError(f"{owner} is a {type(trunk).__name__}; only transformer towers have patch tokens")
    if len(trunk.blocks if is_timm else trunk.transformer.resblocks) < 2:
        raise ConfigError(f"{owner} has a single block; features are those of the second-to-last one")
    return TimmTower(trunk) if is_timm else OpenClipTower(trunk)


def _load(trunk: nn.Module, path: Path, owner: str) -> None:
    """A file may hold the whole tower, or a whole CLIP: what was cut away is left out, what remains has to be all."""
    tensors = read_tensors(path, owner)
    if any(name.startswith("visual.") for name in tensors):
        tensors = {
            n.removeprefix("visual.").removeprefix("trunk."): t for n, t in tensors.items() if n.startswith("visual.")
        }
    own = trunk.state_dict().keys()
    blocks = "blocks" if hasattr(trunk, "blocks") else "transformer.resblocks"
    last = f"{blocks}.{len(trunk.get_submodule(blocks))}."
    cut_away = (*HEADS, last)
    put_tensors(trunk, {n: t for n, t in tensors.items() if n in own or not n.startswith(cut_away)}, owner, path)
