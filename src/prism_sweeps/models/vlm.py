"""The vision-language model: patch features, projected, stand after BOS in the language model's input.

Shapes: B rows, I rows that have an image, T text positions, S positions with patches, P patches, V channels of the
vision features, D channels of the language model, N supervised positions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prism_sweeps.config.errors import ConfigError, StoreError, nearest
from prism_sweeps.config.schema import MODULES
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.models.language import load_language_model
from prism_sweeps.models.projector import build_projector, projector_seed
from prism_sweeps.models.vision import VisionBackbone, build_vision
from prism_sweeps.models.weights import private_seed, write_tensors

IGNORED = -100
"""The label of a position without a target (torch's and transformers' convention)."""


@dataclass(frozen=True)
class Batch:
    """Rows of text, some with an image."""

    pixels: dict[str, Tensor]
    """Tower -> pixels_ICHW of the rows that have an image, in row order."""
    has_image_B: Tensor
    ids_BT: Tensor
    """BOS first, padded on the right."""
    mask_BT: Tensor
    labels_BT: Tensor
    """The id itself where it is supervised, else IGNORED."""
    names: list[str]

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: getattr(self, name).to(device) for name in ("has_image_B", "ids_BT", "mask_BT", "labels_BT")}
        return replace(self, pixels={name: pixels.to(device) for name, pixels in self.pixels.items()}, **moved)

    def rows(self, rows: slice) -> Batch:
        """Consecutive rows with their images, text cut to the longest of them."""
        if rows.step not in (None, 1):
            raise ValueError(f"rows of a batch are taken one after another, not with step {rows.step}")
        start, stop, _ = rows.indices(len(self.names))
        first = int(self.has_image_B[:start].sum())
        images = slice(first, first + int(self.has_image_B[start:stop].sum()))
        longest = int(self.mask_BT[start:stop].sum(dim=1).max()) if stop > start else 0
        return Batch(
            pixels={name: pixels[images] for name, pixels in self.pixels.items()},
            has_image_B=self.has_image_B[start:stop],
            ids_BT=self.ids_BT[start:stop, :longest],
            mask_BT=self.mask_BT[start:stop, :longest],
            labels_BT=self.labels_BT[start:stop, :longest],
            names=self.names[start:stop],
        )


class VLM(nn.Module):
    """Vision towers, projector and causal LM. All is trained until `train_only` says otherwise."""

    def __init__(self, vision: VisionBackbone, projector: nn.Module, llm: PreTrainedModel) -> None:
        super().__init__()
        self.vision = vision
        self.projector = projector
        self.llm = llm
        self.trained: tuple[str, ...] = MODULES

    def train_only(self, modules: Sequence[str], vision_blocks: int | None = None) -> None:
        """Train these of vision, projector and llm, and freeze the rest.

        With `vision_blocks`, of vision only the last so many blocks of every tower. Raises ConfigError.
        """
        for name in modules:
            if name not in MODULES:
                raise ConfigError(f"a stage cannot train '{name}'; {nearest(name, MODULES)}")
        self.trained = tuple(name for name in MODULES if name in modules)
        for name in MODULES:
            self.get_submodule(name).requires_grad_(name in self.trained)
        if vision_blocks is not None and "vision" in self.trained:
            self.vision.requires_grad_(False)
            for parameter in self.vision.last_blocks(vision_blocks):
                parameter.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> VLM:
        """Training mode for the modules that are trained; frozen ones stay in evaluation mode."""
        super().train(False)
        for name in self.trained:
            self.get_submodule(name).train(mode)
        self.training = mode
        return self

    def image_tokens(self, pixels: dict[str, Tensor]) -> Tensor:
        """Tower -> pixels_ICHW to tokens_IPD in the language model's width."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "vision" in self.trained):
            features_IPV = self.vision(pixels)
        return self.projector(features_IPV)

    def embed(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        has_image_B: Tensor,
        tokens_IPD: Tensor | None,
        labels_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of [BOS] [patches] [text], padded on the right to the longest: embeds_BSD, mask_BS, labels_BS.

        Rows without an image have no patches. `tokens_IPD` are those of `image_tokens` for the rows that have one, and
        may be None if none has; `labels_BT` None gives None.
        """
        text_BTD = self.llm.get_input_embeddings()(ids_BT)
        if tokens_IPD is None or not len(tokens_IPD):
            return text_BTD, mask_BT, labels_BT
        patches, count = tokens_IPD.shape[1], len(ids_BT)
        tokens_IPD = tokens_IPD.to(text_BTD.dtype)
        if len(tokens_IPD) == count:
            tokens_BPD = tokens_IPD
        else:
            rank_B = (has_image_B.cumsum(0) - 1).clamp(min=0)
            tokens_BPD = tokens_IPD[rank_B]
        embeds = _after_bos(text_BTD, tokens_BPD)
        mask = _after_bos(mask_BT, mask_BT.new_ones(count, patches))
        labels = None if labels_BT is None else _after_bos(labels_BT, labels_BT.new_full((count, patches), IGNORED))
        if len(tokens_IPD) < count:
            lone_B = ~has_image_B
            embeds = _without_patches(embeds, text_BTD, lone_B, 0)
            mask = _without_patches(mask, mask_BT, lone_B, False)
            labels = None if labels_BT is None else _without_patches(labels, labels_BT, lone_B, IGNORED)
            longest = int(mask.sum(dim=1).max())
            embeds, mask = embeds[:, :longest], mask[:, :longest]
            labels = None if labels is None else labels[:, :longest]
        return embeds, mask, labels

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed cross entropy (nats, fp32) over the supervised positions, and how many there are.

        Padding is on the right, where causal attention never looks back from, so no mask is needed; and the head, the
        dearest layer of a small model, runs on supervised positions only.
        """
        has_images = any(len(pixels) for pixels in batch.pixels.values())
        tokens_IPD = self.image_tokens(batch.pixels) if has_images else None
        embeds_BSD, _, labels_BS = self.embed(
            batch.ids_BT, batch.mask_BT, batch.has_image_B, tokens_IPD, batch.labels_BT
        )
        hidden_BSD = self.llm.base_model(inputs_embeds=embeds_BSD, use_cache=False).last_hidden_state
        wanted_BS = labels_BS[:, 1:] != IGNORED
        targets_N = labels_BS[:, 1:][wanted_BS]
        logits = self.llm.get_output_embeddings()(hidden_BSD[:, :-1][wanted_BS])
        return F.cross_entropy(logits.float(), targets_N, reduction="sum"), len(targets_N)

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """The same as `loss`, for wrappers that hook `forward`."""
        return self.loss(batch)


def build_vlm(spec: ModelSpec, seed: int, dtype: torch.dtype = torch.float32) -> VLM:
    """Pretrained towers and language model with a fresh projector, in `dtype` on the CPU.

    In the type of its files a language model takes no memory but that of the mapped files; training keeps fp32 masters
    and needs twice as much. `seed` decides the projector's initialisation, unless the vision width does
    (`Projector.drawn_from`); torch's global generator is left as it was.
    """
    vision = build_vision(spec.backbone, spec.resolution)
    llm = load_language_model(spec.llm, dtype)
    with private_seed(projector_seed(spec.projector, vision.width, seed)):
        projector = build_projector(spec.projector, vision.width, llm.get_input_embeddings().embedding_dim)
    return VLM(vision.to(dtype), projector.to(dtype), llm)


def save_trained(vlm: VLM, folder: Path, modules: Sequence[str]) -> None:
    """Write `MODULE.safetensors` for each of `modules`; `folder` appears only when it is complete. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        for name in modules:
            write_tensors(temporary / f"{name}.safetensors", _own_tensors(vlm.get_submodule(name)))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_trained(vlm: VLM, weights: Path) -> None:
    """Put the modules that `save_trained` wrote into `vlm`; raises StoreError for files not whole or not fitting."""
    files = {path.stem: path for path in sorted(weights.glob("*.safetensors"))}
    if not files or files.keys() - set(MODULES):
        raise StoreError(f"trained weights '{weights}' should hold some of {', '.join(MODULES)}, has {sorted(files)}")
    for name, path in files.items():
        try:
            tensors = load_file(path)
            own = _own_tensors(vlm.get_submodule(name))
            if own.keys() != tensors.keys():
                raise StoreError(
                    f"'{path}' is of another model: {sorted(own.keys() ^ tensors.keys())[:3]} do not match"
                )
            vlm.get_submodule(name).load_state_dict(tensors, strict=False)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise StoreError(f"'{path}' cannot be loaded: {error}") from error


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Each tensor once: tied weights (an LM head that is its embedding) go under their first name."""
    seen: dict[int, str] = {}
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    return {name: tensor for name, tensor in tensors.items() if seen.setdefault(tensor.data_ptr(), name) == name}


def _after_bos(text: Tensor, patches: Tensor) -> Tensor:
    return torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)


def _without_patches(rows: Tensor, text: Tensor, lone_B: Tensor, padding: float) -> Tensor:
    """`rows`, with those of `lone_B` replaced by their text alone, padded."""
    shape = (1,) * (rows.dim() - 1)
    width = rows.shape[1] - text.shape[1]
    padded = F.pad(text, (*(0, 0) * (text.dim() - 2), 0, width), value=padding)
    return torch.where(lone_B.view(-1, *shape), padded, rows)
