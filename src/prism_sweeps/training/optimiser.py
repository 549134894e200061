"""AdamW with its parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from prism_sweeps.config.schema import Stage

NORMS = ("norm", "ln_", "layernorm")


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate and one weight decay."""

    names: tuple[str, ...]
    peak: float
    """The learning rate that its schedule is a fraction of."""
    weight_decay: float


def parameter_groups(model: nn.Module, stage: Stage) -> list[Group]:
    """The trainable parameters of `model`. Weight decay falls on matrices, never on biases, norms and other vectors.

    To be asked before any sharding: the reference asks after it, where every shard is a vector, and so decays nothing
    on several GPUs.
    """
    groups: dict[tuple[float, float], list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = stage.weight_decay if decays(name, parameter) else 0.0
            groups.setdefault((peak_of(name, stage), decay), []).append(name)
    return [Group(tuple(names), peak, decay) for (peak, decay), names in groups.items()]


def build_optimiser(groups: Sequence[Group], parameters: Mapping[str, nn.Parameter], stage: Stage) -> torch.optim.AdamW:
    """Fused AdamW over `parameters`, which may be a process's shards of those that were grouped."""
    return torch.optim.AdamW(
        [
            {
                "params": [parameters[name] for name in group.names],
                "peak": group.peak,
                "lr": group.peak,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        betas=(stage.beta1, stage.beta2),
        fused=True,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay falls on a parameter."""
    return parameter.ndim >= 2 and not name.endswith("bias") and not any(norm in name.lower() for norm in NORMS)


def peak_of(name: str, stage: Stage) -> float:
    """The highest learning rate of a parameter: vision towers and the projector may have their own."""
    own = {"vision": stage.vision_learning_rate, "projector": stage.projector_learning_rate}
    rate = own.get(name.partition(".")[0])
    return stage.learning_rate if rate is None else rate


def schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """Fraction of the peak learning rate at `step` of `steps` (from 0): linear warm-up, then half a cosine towards 0.

    This is transformers' `get_cosine_schedule_with_warmup` for `steps + 1` steps read one step later. The reference
    reads it unshifted, so its first step has a learning rate of 0 and moves nothing; here the first step takes
    1 / warm-up of the peak and the last one is still above 0.
    """
    warmup = int(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step + 1 - warmup) / (steps + 1 - warmup)))


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Puts every group at `factor` of its peak; returns the highest of them."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["peak"]
    return max(group["lr"] for group in optimiser.param_groups)
