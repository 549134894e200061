"""What is done to a model's blocks for speed and memory: activation checkpointing, and compilation one by one."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
ATTENTION = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "torch_attn._varlen_attn",
    "flash_attn._flash_attn_varlen_forward",
)
"""Operators that attention ends in, on one device or another."""
RECOMPILED = 64
"""How often a block may be compiled anew, for other lengths, single rows, evaluation; torch allows 8."""


def recompute(blocks: Iterable[nn.Module], how: str) -> None:
    """Lets backward compute again what `blocks` would otherwise keep (arXiv 1604.06174).

    full keeps the input of a block alone; selective keeps what attention and every second matrix product gave besides,
    the dearest to compute for their size (as torchtitan does it). Names and results stay the same.
    """
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = lambda: create_selective_checkpoint_contexts(alternate())
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, **settings)  # type: ignore[method-assign]


def alternate() -> Callable[..., CheckpointPolicy]:
    """A policy for one pass through one block: keeps attention and every second matrix product."""
    attention = set(filter(None, map(operator_named, ATTENTION)))
    seen: Counter[bool] = Counter()

    def policy(context: SelectiveCheckpointContext, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator in PRODUCTS:
            seen[context.is_recompute] += 1
            kept = seen[context.is_recompute] % 2 == 1
        else:
            kept = operator in attention
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def operator_named(name: str) -> Any:
    """torch.ops.NAMESPACE.NAME, or None where this torch, or a package that is not imported, has it not."""
    space, _, short = name.partition(".")
    packet = getattr(getattr(torch.ops, space), short, None)
    return None if packet is None else packet.default


def compile_each(blocks: Iterable[nn.Module]) -> None:
    """Compiles every block by itself (torch.compile): alike blocks share what was compiled for the first.

    Their forward functions, because hooks (FSDP's) stay outside then; `Module.compile` would compile nothing at all of
    a block that is recomputed.
    """
    torch._dynamo.reset()  # what earlier jobs of this process had compiled would count against the limit
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILED)
    for block in blocks:
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
