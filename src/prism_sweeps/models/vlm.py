"""The vision-language model: patch features, projected, stand after BOS in the language model's input.

Shapes: B rows, I images, T text positions, S positions with patches, P patches, N text tokens of a batch, M supervised
positions, V channels of the vision features, D channels of the language model, K data sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import MODULES
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.models.batch import Batch
from prism_sweeps.models.language import load_language_model
from prism_sweeps.models.losses import by_source, supervised_loss
from prism_sweeps.models.projector import build_projector, projector_seed
from prism_sweeps.models.vision import VisionBackbone, build_vision
from prism_sweeps.models.weights import private_seed


class VLM(nn.Module):
    """Vision towers, projector and causal LM. All is trained until `train_only` says otherwise."""

    def __init__(self, vision: VisionBackbone, projector: nn.Module, llm: PreTrainedModel) -> None:
        super().__init__()
        self.vision = vision
        self.projector = projector
        self.llm = llm
        self.trained: tuple[str, ...] = MODULES
        self.sharded = False
        """Whether its weights are spread over processes, which then all have to run all of it."""

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
        dtype = next(self.vision.parameters()).dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and "vision" in self.trained):
            features_IPV = self.vision({name: tower_ICHW.to(dtype) for name, tower_ICHW in pixels.items()})
        return self.projector(features_IPV.to(next(self.projector.parameters()).dtype))

    def embed(
        self, ids_BT: Tensor, mask_BT: Tensor, has_image_B: Tensor, tokens_IPD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rows of [BOS] [patches] [text], padded on the right to the longest: embeds_BSD, mask_BS.

        Rows without an image have no patches. `tokens_IPD` are those of `image_tokens` for the rows that have one, and
        may be None if none has.
        """
        text_BTD = self.llm.get_input_embeddings()(ids_BT)
        if tokens_IPD is None or not len(tokens_IPD):
            return text_BTD, mask_BT
        patches, count = tokens_IPD.shape[1], len(ids_BT)
        tokens_IPD = tokens_IPD.to(text_BTD.dtype)
        if len(tokens_IPD) == count:
            tokens_BPD = tokens_IPD
        else:
            rank_B = (has_image_B.cumsum(0) - 1).clamp(min=0)
            tokens_BPD = tokens_IPD[rank_B]
        embeds = _after_bos(text_BTD, tokens_BPD)
        mask = _after_bos(mask_BT, mask_BT.new_ones(count, patches))
        if len(tokens_IPD) < count:
            lone_B = ~has_image_B
            embeds = _without_patches(embeds, text_BTD, lone_B, 0)
            mask = _without_patches(mask, mask_BT, lone_B, False)
            longest = int(mask.sum(dim=1).max())
            embeds, mask = embeds[:, :longest], mask[:, :longest]
        return embeds, mask

    def lay_out(self, batch: Batch) -> Tensor:
        """The language model's input, embeds_BSD: text and patches where `batch` has them, zeros elsewhere."""
        text_ND = self.llm.get_input_embeddings()(batch.ids_N)
        flat_AD = text_ND.new_zeros(batch.rows * batch.positions, text_ND.shape[1])
        flat_AD.index_copy_(0, batch.text_at_N, text_ND)
        if batch.images:
            flat_AD.index_copy_(0, batch.patch_at_Q, self.seen(batch).flatten(0, 1).to(text_ND.dtype))
        elif self.sharded:
            # All ranks have to gather the same weights and reduce the same gradients, also those without an image.
            flat_AD = flat_AD + 0.0 * self.blank_tokens(text_ND.device).sum()
        return flat_AD.unflatten(0, (batch.rows, batch.positions))

    def seen(self, batch: Batch) -> Tensor:
        """tokens_IPD of the images of `batch`, which may bring their features."""
        if batch.features_IPV is None:
            return self.image_tokens(batch.pixels)
        return self.projector(batch.features_IPV.to(next(self.projector.parameters()).dtype))

    def blank_tokens(self, device: torch.device) -> Tensor:
        """tokens_IPD of one black image."""
        if "vision" in self.trained:
            blank_ICHW = torch.zeros(1, 3, self.vision.pixels, self.vision.pixels, device=device)
            return self.image_tokens(dict.fromkeys(self.vision.towers, blank_ICHW))
        dtype = next(self.projector.parameters()).dtype
        return self.projector(torch.zeros(1, self.vision.patches, self.vision.width, device=device, dtype=dtype))

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The weighted sum of the cross entropies of a batch, and the unweighted sums of each source_K (nats, fp32).

        Padding is on the right, where causal attention never looks back from, so no mask is needed; and the head, the
        dearest layer of a small model, runs on supervised positions only.
        """
        embeds_BSD = self.lay_out(batch)
        packed = {}
        if batch.documents is not None:
            packed = {"position_ids": batch.documents.positions_S[None], "documents": batch.documents}
        hidden_BSD = self.llm.base_model(inputs_embeds=embeds_BSD, use_cache=False, **packed).last_hidden_state
        hidden_MD = hidden_BSD.flatten(0, 1).index_select(0, batch.target_at_M)
        head = self.llm.get_output_embeddings()
        loss, losses_M = supervised_loss(hidden_MD, head, batch.targets_M, batch.weight_M)
        return loss, by_source(losses_M, batch.source_M, batch.sources)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same as `loss`; what gathers sharded weights hooks in here."""
        return self.loss(batch)


def build_vlm(spec: ModelSpec, seed: int, dtype: torch.dtype | None = torch.float32) -> VLM:
    """Pretrained towers and language model with a fresh projector, in `dtype` on the CPU.

    In the type of its files a language model takes no memory but that of the mapped files: `dtype` None gives it that,
    and the rest fp32. `seed` decides the projector's initialisation, unless the vision width does
    (`Projector.drawn_from`); torch's global generator is left as it was.
    """
    vision = build_vision(spec.backbone, spec.resolution)
    llm = load_language_model(spec.llm, dtype)
    with private_seed(projector_seed(spec.projector, vision.width, seed)):
        projector = build_projector(spec.projector, vision.width, llm.get_input_embeddings().embedding_dim)
    rest = dtype or torch.float32
    return VLM(vision.to(rest), projector.to(rest), llm)


def _after_bos(text: Tensor, patches: Tensor) -> Tensor:
    return torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)


def _without_patches(rows: Tensor, text: Tensor, lone_B: Tensor, padding: float) -> Tensor:
    """`rows`, with those of `lone_B` replaced by their text alone, padded."""
    shape = (1,) * (rows.dim() - 1)
    width = rows.shape[1] - text.shape[1]
    padded = F.pad(text, (*(0, 0) * (text.dim() - 2), 0, width), value=padding)
    return torch.where(lone_B.view(-1, *shape), padded, rows)
