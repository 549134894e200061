"""What training keeps of one forward pass until its backward pass, in bytes, from shapes alone.

Counted is what autograd keeps in the modules as they are built here: transformers' Llama blocks, timm's ViT blocks, the
projector, the chunked loss. A test holds it against the memory that is really alive in tiny models. Attention is
computed by fused kernels, which keep no matrix of scores (FlashAttention, arXiv 2205.14135).
"""

from __future__ import annotations

from dataclasses import dataclass

from prism_sweeps.config.checks import backbone_patches
from prism_sweeps.config.schema import LanguageModel, Tower, Tuning
from prism_sweeps.config.shapes import head_width, linear_layers, projector_widths
from prism_sweeps.config.specs import ModelSpec, StageSpec

LOGITS_AT_A_TIME = 1 << 26
"""As `models.losses.CHUNK`; a test holds them equal."""
LOGIT_BYTES = 8
"""The logits, their logarithms in fp32 and the slope: 4 + 4 in fp32, 2 + 4 + 2 in bfloat16."""
GELU_SPELT_OUT = 4
"""Tensors of the MLP's width that a Phi keeps besides its last: transformers has its GELU in powers and products."""


@dataclass(frozen=True)
class Pass:
    """The largest forward pass of one process."""

    positions: int
    """In the language model, padding included."""
    targets: int
    """At which a token is predicted."""
    images: int


@dataclass(frozen=True)
class Kept:
    """Bytes that are alive at the end of the forward pass, and those that come and go."""

    until_backward: int
    passing: int
    """The most of: logits of one chunk, a block that is computed again, a frozen tower's."""

    @property
    def peak(self) -> int:
        return self.until_backward + self.passing


def kept(spec: StageSpec, one: Pass, checkpointing: str, compiled: bool) -> Kept:
    """Of a pass of this stage under `engine.activation_checkpointing`. A trained conv tower is left out."""
    size = 4 if spec.precision == "fp32" else 2
    model, llm = spec.model, spec.model.llm
    whole = _llm_block(spec, size, compiled) * one.positions
    stored = {"none": whole, "selective": _selected(spec, size) * one.positions}.get(
        checkpointing, size * llm.width * one.positions
    )
    again = whole - stored + one.positions * size * (3 * llm.width + 2 * llm.mlp_width)
    of_vision, vision_again = _vision(spec, one, size, checkpointing)
    inputs = size * llm.width * one.positions + _pixels(spec, one, size)
    lasting = inputs + llm.depth * stored + of_vision + _projector(spec, one, size) + _head(spec, one, size)
    looking = 0 if "vision" in spec.stage.trains else _frozen_towers(model, one, size)
    return Kept(lasting, max(_logits(spec, one, size), again, vision_again, looking - lasting))


def _llm_block(spec: StageSpec, size: int, compiled: bool) -> int:
    """Bytes a position of a block of which nothing is computed again.

    A norm keeps its input in fp32, and where its weight is trained what it has normalised; a linear layer that is
    trained, or has an adapter, its input. Compiled, what follows from its neighbours by the element is not kept.
    """
    llm, trained = spec.model.llm, "llm" in spec.stage.trains
    queries, keys = llm.heads * head_width(llm), llm.kv_heads * head_width(llm)
    attention = size * (2 * queries + 2 * keys) + 4 * llm.heads
    adapted = _adapter_outputs(llm, spec.tuning, size) if trained else 0
    if compiled:
        return attention + size * ((2 + 2 * trained) * llm.width + (2 + trained) * llm.mlp_width) + adapted
    norm = llm.width * (4 + size * (_learns(spec) + trained))
    if "fc1" in linear_layers(llm):
        return (
            attention + size * llm.width * (1 + trained) + size * (GELU_SPELT_OUT + trained) * llm.mlp_width + adapted
        )
    return attention + 2 * norm + size * (3 + trained) * llm.mlp_width + adapted


def _learns(spec: StageSpec) -> bool:
    """Whether the language model's own weights are trained."""
    return "llm" in spec.stage.trains and spec.tuning.method == "full"


def _adapter_outputs(llm: LanguageModel, tuning: Tuning, size: int) -> int:
    if tuning.method == "full":
        return 0
    return size * tuning.rank * sum(not tuning.targets or name in tuning.targets for name in linear_layers(llm))


def _selected(spec: StageSpec, size: int) -> int:
    """Bytes a position of a block: its input, what attention gave, and every second matrix product."""
    llm, tuning = spec.model.llm, spec.tuning
    products: list[int] = []
    for name, (_, width) in linear_layers(llm).items():
        adapted = tuning.method == "lora" and (not tuning.targets or name in tuning.targets)
        products += [width, tuning.rank, width] if adapted and "llm" in spec.stage.trains else [width]
    return size * (llm.width + llm.heads * head_width(llm) + sum(products[::2])) + 4 * llm.heads


def _vision(spec: StageSpec, one: Pass, size: int, checkpointing: str) -> tuple[int, int]:
    """Of towers that are trained: what they keep, and the most that one block takes when it is computed again."""
    if "vision" not in spec.stage.trains:
        return 0, 0
    total = largest = 0
    for tower in spec.model.backbone.towers.values():
        if tower.kind == "conv":
            continue
        tokens = one.images * _tower_tokens(tower, spec.model)
        whole = size * tokens * _vit_block(tower)
        blocks = tower.depth - 1 if spec.stage.vision_blocks is None else spec.stage.vision_blocks
        stored = {"none": whole, "selective": size * tokens * _vit_selected(tower)}.get(
            checkpointing, size * tokens * tower.width
        )
        total += blocks * stored
        largest = max(largest, 0 if checkpointing == "none" else whole)
    return total, largest


def _tower_tokens(tower: Tower, model: ModelSpec) -> int:
    return (model.resolution.pixels // tower.patch) ** 2 + tower.prefix_tokens


def _vit_block(tower: Tower) -> int:
    """Elements a token: in and out of two norms, queries, keys, values, what attention gave, both sides of the GELU."""
    return 8 * tower.width + 2 * round(tower.width * tower.mlp_ratio)


def _vit_selected(tower: Tower) -> int:
    """Its input, what attention gave, and of its four products the first and the third."""
    return 5 * tower.width + round(tower.width * tower.mlp_ratio)


def _frozen_towers(model: ModelSpec, one: Pass, size: int) -> int:
    """At most: a block's input, queries, keys and values, or both sides of its GELU; and what towers before it gave."""
    towers = [tower for tower in model.backbone.towers.values() if tower.kind == "vit"]
    busiest = (
        _tower_tokens(tower, model) * (2 * tower.width + 2 * round(tower.width * tower.mlp_ratio)) for tower in towers
    )
    features = backbone_patches(model.backbone, model.resolution.pixels) * sum(tower.width for tower in towers)
    return one.images * size * (max(busiest, default=0) + features)


def _projector(spec: StageSpec, one: Pass, size: int) -> int:
    model = spec.model
    vision = sum(tower.width for tower in model.backbone.towers.values())
    widths = projector_widths(model.projector, vision, model.llm.width)
    trained = "projector" in spec.stage.trains
    if not trained and "vision" not in spec.stage.trains:
        return 0
    inputs, activated = (sum(widths[:-1]) if trained else 0), sum(widths[1:-1])
    return size * one.images * backbone_patches(model.backbone, model.resolution.pixels) * (inputs + activated)


def _pixels(spec: StageSpec, one: Pass, size: int) -> int:
    """As they come, in fp32, and once more in bfloat16 where a trained tower keeps them."""
    own = 4 + (size if size < 4 and "vision" in spec.stage.trains else 0)
    return one.images * own * 3 * spec.model.resolution.pixels**2 * len(spec.model.backbone.towers)


def _head(spec: StageSpec, one: Pass, size: int) -> int:
    """The last norm, and the gradients that the loss works out on the way forward."""
    llm = spec.model.llm
    norm = llm.width * (4 + size * _learns(spec)) * one.positions
    return norm + size * llm.width * one.targets + (4 * llm.width * llm.vocabulary if _learns(spec) else 0)


def _logits(spec: StageSpec, one: Pass, size: int) -> int:
    """Of one chunk, and the head's gradient before it is in fp32."""
    llm = spec.model.llm
    at_a_time = min(one.targets, max(1, LOGITS_AT_A_TIME // llm.vocabulary))
    return LOGIT_BYTES * llm.vocabulary * at_a_time + (size * llm.width * llm.vocabulary if _learns(spec) else 0)
