"""Vision towers and their patch features.

Shapes: B images, C colour channels, H height, W width, P patches, D channels (of one tower, or of all side by side).
"""

from __future__ import annotations

import difflib
from contextlib import nullcontext
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import TOWER_SOURCES, Backbone, Resolution, Tower
from prism_sweeps.models.towers import PatchTower, cut, without_memory
from prism_sweeps.models.weights import OFFLINE, check_shape, locate, private_seed, put_tensors, read_tensors

HEADS = (
    *("head.", "fc_norm.", "attn_pool.", "norm.", "ln_post.", "proj", "attn_pool_contrastive."),
    *("classifier.", "fc."),  # of convolutional networks
)
POSITIONS = ("pos_embed", "positional_embedding")
"""What timm and open_clip call the table of position embeddings."""


class VisionBackbone(nn.Module):
    """One tower, or several whose features stand side by side on the channel dimension, in the config's order."""

    def __init__(self, towers: dict[str, PatchTower], patches: int, pixels: int) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.patches = patches
        self.pixels = pixels
        self.width: int = sum(tower.shape["width"] for tower in towers.values())

    def forward(self, pixels: dict[str, Tensor]) -> Tensor:
        """Tower name -> pixels_BCHW, normalised for that tower, to features_BPD of the penultimate block."""
        return torch.cat([tower(pixels[name]) for name, tower in self.towers.items()], dim=2)

    def last_blocks(self, n: int) -> list[nn.Parameter]:
        """The parameters of the last `n` blocks that run of every tower. Raises ConfigError when one has fewer."""
        found: list[nn.Parameter] = []
        for name, tower in self.towers.items():
            try:
                found += tower.last_blocks(n)
            except ConfigError as error:
                raise ConfigError(f"tower '{name}': {error}") from error
        return found


def build_vision(backbone: Backbone, resolution: Resolution, empty: bool = False) -> VisionBackbone:
    """Build every tower at this resolution and load its weights; fp32, on the CPU.

    Weights are `hub` or, where the library has another name for this resolution, `hub:NAME`; `zoo:FILE` or a path to
    safetensors with the library's own names; or `random:SEED`. `empty` builds the same on the meta device and reads no
    weights, for counting. Raises ConfigError for weights that are
    missing or do not fit, those of another size where the tower may not be interpolated, a stated shape that is not the
    tower's, and towers of unequal patch counts.
    """
    if not backbone.towers:
        raise ConfigError(f"backbone '{backbone.name}' has no towers")
    pixels = resolution.pixels
    towers = {name: build_tower(tower, pixels, f"tower '{name}'", empty) for name, tower in backbone.towers.items()}
    counts = {name: (pixels // tower.patch) ** 2 for name, tower in backbone.towers.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"towers of backbone '{backbone.name}' give different numbers of patches at {pixels} px: {counts}"
        )
    return VisionBackbone(towers, next(iter(counts.values())), pixels)


def build_tower(tower: Tower, pixels: int, owner: str, empty: bool = False) -> PatchTower:
    """One tower with its weights; `{pixels}` in its model name stands for the resolution."""
    if tower.source not in TOWER_SOURCES:
        raise ConfigError(f"{owner}: unknown source '{tower.source}'; {nearest(tower.source, TOWER_SOURCES)}")
    if pixels not in tower.weights:
        raise ConfigError(
            f"{owner} ({tower.source} {tower.model}) has no weights for {pixels} px; "
            f"it has them for {sorted(tower.weights)}"
        )
    weights, _, another = tower.weights[pixels].partition(":")
    from_hub = weights == "hub"
    model = another if from_hub and another else tower.model.replace("{pixels}", str(pixels))
    tower, owner = replace(tower, model=model), f"{owner} ({tower.source} {model})"
    place = None if from_hub or empty else _place(tower.weights[pixels], owner)
    if from_hub:
        _check_trained_size(tower, pixels, owner)
    with private_seed(place if isinstance(place, int) else 0):
        trunk = _trunk(tower, pixels, owner, from_hub=from_hub and not empty, empty=empty)
    built = cut(trunk, tower.kind, owner)
    check_shape(owner, {key: getattr(tower, key) for key in built.shape}, built.shape)
    if isinstance(place, Path):
        _load(built, place, owner, pixels, tower.interpolate)
    return built


def _place(reference: str, owner: str) -> int | Path:
    place = locate(reference, owner)
    if place is None:
        raise ConfigError(f"{owner}: weights '{reference}' do not exist; give hub, zoo:FILE or a path to .safetensors")
    return place


def _check_trained_size(tower: Tower, pixels: int, owner: str) -> None:
    """The libraries would resample position embeddings to any size, and say nothing."""
    if tower.kind == "conv" or tower.interpolate:
        return
    trained = _trained_size(tower)
    if trained is not None and trained // tower.patch != pixels // tower.patch:
        raise ConfigError(_other_size(owner, trained // tower.patch, trained, pixels, tower.patch))


def _trained_size(tower: Tower) -> int | None:
    """In pixels, of the published weights; None where the library does not say, or not know the model."""
    if tower.source == "timm":
        architecture, _, tag = tower.model.partition(".")
        known = timm.is_model(architecture) and (not tag or timm.is_model_pretrained(tower.model))
        return timm.get_pretrained_cfg(tower.model).input_size[-1] if known else None
    import open_clip

    config = open_clip.get_model_config(tower.model) or {}
    return config.get("vision_cfg", {}).get("image_size")


def _other_size(what: str, grid: int, trained: int, pixels: int, patch: int) -> str:
    own = pixels // patch
    return (
        f"{what} was trained at {trained} px ({grid} x {grid} patches), not at {pixels} px ({own} x {own}): take "
        f"resolution={trained}, name weights made for this resolution, or set `interpolate: true` to have its position "
        "embeddings resampled"
    )


def _trunk(tower: Tower, pixels: int, owner: str, from_hub: bool, empty: bool) -> nn.Module:
    create = _create_timm if tower.source == "timm" else _create_open_clip
    try:
        with without_memory() if empty else nullcontext():
            return create(tower, pixels, from_hub, "meta" if empty else "cpu")
    except (OSError, SafetensorError, RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{owner} {_reason(error, tower, pixels)}") from error


def _reason(error: BaseException, tower: Tower, pixels: int) -> str:
    """Why it cannot be built. open_clip tells what the hub said as the cause of an error of its own."""
    chain = [error]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    text = str(error).strip().rstrip(".")
    if any(isinstance(each, GatedRepoError) for each in chain):
        return (
            "has gated weights: accept their licence on their page on the hub, log in with `hf auth login` (or set "
            f"HF_TOKEN), and run this again ({text})"
        )
    if any(isinstance(each, (OSError, SafetensorError)) for each in chain):
        return f"cannot have its weights from the hub: {text}. {OFFLINE}"
    hint = "; set kind: conv if it is convolutional" if "'img_size'" in text else _did_you_mean(tower)
    return f"cannot be built at {pixels} px: {text}{hint}"


def _did_you_mean(tower: Tower) -> str:
    """For a misspelt timm name; timm knows a thousand, so the valid ones are not listed."""
    name = tower.model.split(".")[0]
    known = [] if tower.source != "timm" or timm.is_model(name) else timm.list_models()
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _create_timm(tower: Tower, pixels: int, from_hub: bool, device: str) -> nn.Module:
    """A convolutional network takes images of any size, and no argument for it."""
    size = {} if tower.kind == "conv" else {"img_size": pixels}
    return timm.create_model(tower.model, pretrained=from_hub, num_classes=0, **size, **tower.kwargs)


def _create_open_clip(tower: Tower, pixels: int, from_hub: bool, device: str) -> nn.Module:
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
        device=device,
        **kwargs,
    )
    return getattr(model.visual, "trunk", model.visual)


def _load(tower: PatchTower, path: Path, owner: str, pixels: int, interpolate: bool) -> None:
    """A file may hold the whole tower, or a whole CLIP: what was cut away is left out, what remains has to be all."""
    trunk, tensors = tower.trunk, read_tensors(path, owner)
    if any(name.startswith("visual.") for name in tensors):
        tensors = {
            n.removeprefix("visual.").removeprefix("trunk."): t for n, t in tensors.items() if n.startswith("visual.")
        }
    own = trunk.state_dict()
    cut_away = (*HEADS, *_last_block(trunk))
    tensors = {n: t for n, t in tensors.items() if n in own or not n.startswith(cut_away)}
    for name in POSITIONS:
        if name in tensors and name in own and tensors[name].shape[:-1] != own[name].shape[:-1]:
            patch = tower.shape["patch"]
            tensors[name] = _resampled(
                tensors[name], len(own[name].flatten(0, -2)), pixels, patch, f"{owner}: '{path}'", interpolate
            )
    put_tensors(trunk, tensors, owner, path)


def _last_block(trunk: nn.Module) -> list[str]:
    """How the names of its tensors begin, where there was one and it was cut away."""
    if not hasattr(trunk, "num_prefix_tokens") and not hasattr(trunk, "transformer"):
        return []
    blocks = "blocks" if hasattr(trunk, "blocks") else "transformer.resblocks"
    return [f"{blocks}.{len(trunk.get_submodule(blocks))}."]


def _resampled(table: Tensor, own: int, pixels: int, patch: int, what: str, interpolate: bool) -> Tensor:
    """A table of position embeddings (..., positions, D) for a grid of `pixels`, as the libraries resample it.

    `own` counts the positions it has to have: those of the grid, and the prefix tokens'.
    """
    grid = pixels // patch
    prefix = own - grid**2
    trained = isqrt(max(table.shape[-2] - prefix, 0))
    if trained**2 + prefix != table.shape[-2]:
        return table  # of no square grid: told as another shape
    if not interpolate:
        raise ConfigError(_other_size(what, trained, trained * patch, pixels, patch))
    rows = table.reshape(1, -1, table.shape[-1])
    new = resample_abs_pos_embed(rows, [grid, grid], [trained, trained], num_prefix_tokens=prefix)
    return new.reshape(*table.shape[:-2], own, table.shape[-1])
