"""The kinds of vision towers: a library's model, cut down to what its patch features need.

Shapes: B images, C colour channels, H height, W width, P patches, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prism_sweeps.config.errors import ConfigError

CLASSIFIERS = ("head", "fc", "classifier", "global_pool")
"""What timm's convolutional networks call that which comes after their last feature map."""

FILLING = ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_", "copy_")
"""Operations that initialise parameters in place."""


class PatchTower(nn.Module):
    """pixels_BCHW, normalised for this tower, to features_BPD, row by row from the top left.

    `shape` has the keys of the config's Tower that state it: width, depth, heads, patch, prefix_tokens.
    """

    trunk: nn.Module
    shape: dict[str, int]

    def blocks(self) -> list[list[nn.Parameter]]:
        """The parameters of each block that runs, in the order they run."""
        raise NotImplementedError

    def layers(self) -> list[nn.Module]:
        """The modules that these blocks are; [] where a block is no module of its own."""
        return []

    def last_blocks(self, n: int) -> list[nn.Parameter]:
        """The parameters of the last `n` blocks that run. Raises ConfigError when fewer do."""
        blocks = self.blocks()
        if not 1 <= n <= len(blocks):
            raise ConfigError(f"the last {n} blocks are to be trained, but {len(blocks)} run: take 1 to {len(blocks)}")
        return [parameter for block in blocks[-n:] for parameter in block]


class TimmTower(PatchTower):
    """A timm ViT cut after its second-to-last block, without final norm and head (as in prismatic-vlms)."""

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

    def blocks(self) -> list[list[nn.Parameter]]:
        return [list(block.parameters()) for block in self.layers()]

    def layers(self) -> list[nn.Module]:
        return list(self.trunk.blocks)


class OpenClipTower(PatchTower):
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

    def blocks(self) -> list[list[nn.Parameter]]:
        return [list(block.parameters()) for block in self.layers()]

    def layers(self) -> list[nn.Module]:
        return list(self.trunk.transformer.resblocks)


class ConvTower(PatchTower):
    """A timm convolutional network without its head. A patch is a cell of `forward_features`, its side the stride.

    All of it runs. Its blocks are the groups that timm's layer-wise learning rates go by, without the stem.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        for name in CLASSIFIERS:
            if hasattr(trunk, name):
                setattr(trunk, name, nn.Identity())
        self.trunk = trunk
        self.shape = {
            "width": trunk.num_features,
            "depth": len(self.blocks()),
            "heads": 0,
            "patch": trunk.feature_info[-1]["reduction"],
            "prefix_tokens": 0,
        }

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.trunk.forward_features(pixels_BCHW).flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> ConvTower:
        """Batch norms keep the statistics they were trained with: those of a micro-batch would make it count."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(False)
        return self

    def blocks(self) -> list[list[nn.Parameter]]:
        groups = timm.models.group_parameters(self.trunk, self.trunk.group_matcher(coarse=False))
        named = dict(self.trunk.named_parameters())
        return [[named[name] for name in groups[key]] for key in sorted(groups)[1:]]


def cut(trunk: nn.Module, kind: str, owner: str) -> PatchTower:
    """The tower that `trunk` is cut down to. Raises ConfigError for a model that is not of this kind."""
    vit = hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens")
    own = hasattr(trunk, "transformer") and hasattr(trunk, "conv1")
    what = f"{owner} is a {type(trunk).__name__}"
    if kind == "conv":
        if vit or own or getattr(trunk, "output_fmt", "NCHW") != "NCHW" or not hasattr(trunk, "feature_info"):
            raise ConfigError(f"{what}; kind conv is for convolutional networks of timm: set kind: vit for a ViT")
        return ConvTower(trunk)
    if not vit and not own:
        raise ConfigError(f"{what}; only transformer towers have patch tokens; set kind: conv if it is convolutional")
    if len(trunk.blocks if vit else trunk.transformer.resblocks) < 2:
        raise ConfigError(f"{owner} has a single block; features are those of the second-to-last one")
    return TimmTower(trunk) if vit else OpenClipTower(trunk)


class _Unfilled(TorchFunctionMode):
    """Skips filling what has no memory, which takes torch seconds for every tower."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")  # torch.nn.init names it
        if getattr(func, "__name__", "") in FILLING and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, modules are built on the meta device: names and shapes without content."""
    with torch.device("meta"), _Unfilled():
        yield
