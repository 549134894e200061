"""Cross entropy of a language model's head on the supervised positions alone, so many of them at a time.

The logits are the largest tensor of a training step (16 rows of 900 positions and 32,000 tokens: 1.8 GB in fp32, and
several copies of it). Here they exist for supervised positions only, a chunk at a time, and their gradient is worked
out in the same pass, so none is kept for backward (as in Liger's fused loss, arXiv 2410.10989, section 3.2).

Shapes: M supervised positions, D channels, V vocabulary, S data sources.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 1 << 26
"""Logits at a time: 256 MiB in fp32."""


def supervised_loss(
    hidden_MD: Tensor, head: nn.Linear, targets_M: Tensor, weight_M: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Sum of the weighted cross entropies (nats, fp32, with its gradient), and each one unweighted (M, without).

    Logits and their gradient are in fp32 whatever the model computes in; the gradient of the head is summed up over
    the chunks in fp32. `chunk` is how many logits there are at a time.
    """
    losses: tuple[Tensor, Tensor] = ChunkedLoss.apply(hidden_MD, head.weight, head.bias, targets_M, weight_M, chunk)
    return losses


class ChunkedLoss(torch.autograd.Function):
    """`supervised_loss` with its gradients computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        weight_M: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wants = ctx.needs_input_grad[:3]
        losses_M = hidden_MD.new_zeros(len(hidden_MD), dtype=torch.float32)
        of_hidden_MD = torch.zeros_like(hidden_MD) if wants[0] else None
        # The first chunk's product, then its sum with the others'; zeros where nothing is supervised.
        of_weight_VD = None if len(hidden_MD) else torch.zeros_like(weight_VD, dtype=torch.float32)
        of_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        size = max(1, chunk // len(weight_VD))
        for start in range(0, len(hidden_MD), size):
            part = slice(start, start + size)
            logits_mV = nn.functional.linear(hidden_MD[part], weight_VD, bias_V)
            log_p_mV = logits_mV.log_softmax(dim=-1, dtype=torch.float32)
            losses_M[part] = -log_p_mV.gather(1, targets_M[part, None]).squeeze(1)
            if not any(wants):
                continue
            slope_mV = slope(log_p_mV, targets_M[part], weight_M[part]).to(hidden_MD.dtype)
            if of_hidden_MD is not None:
                of_hidden_MD[part] = slope_mV @ weight_VD
            if wants[1]:
                of_weight_VD = with_product(of_weight_VD, slope_mV, hidden_MD[part])
            if of_bias_V is not None:
                of_bias_V += slope_mV.sum(0, dtype=torch.float32)
        found = (of_hidden_MD, of_weight_VD, of_bias_V)
        ctx.gradients = tuple(each if wanted else None for each, wanted in zip(found, wants, strict=True))
        ctx.types = (hidden_MD.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(losses_M)
        return torch.dot(losses_M, weight_M), losses_M

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        outer = slopes[0]
        found = [
            None if gradient is None else gradient.mul_(outer).to(kind)
            for gradient, kind in zip(ctx.gradients, ctx.types, strict=True)
        ]
        del ctx.gradients  # multiplied in place: a second backward would be wrong, now it is an error
        return (*found, None, None, None)


def slope(log_p_mV: Tensor, targets_m: Tensor, weight_m: Tensor) -> Tensor:
    """Of the weighted losses by their logits: weight (softmax - one-hot). Takes over the memory of `log_p_mV`."""
    slope_mV = log_p_mV.exp_()
    slope_mV.scatter_add_(1, targets_m[:, None], slope_mV.new_full((len(targets_m), 1), -1.0))
    return slope_mV.mul_(weight_m[:, None])


def with_product(total_VD: Tensor | None, slope_mV: Tensor, hidden_mD: Tensor) -> Tensor:
    """total + slope^T hidden, summed in fp32 over the chunks, in place."""
    if total_VD is None:
        return (slope_mV.T @ hidden_mD).float()
    if slope_mV.dtype == total_VD.dtype:
        return total_VD.addmm_(slope_mV.T, hidden_mD)
    return total_VD.add_(slope_mV.T @ hidden_mD)


def by_source(losses_M: Tensor, source_M: Tensor, sources: int) -> Tensor:
    """losses_M summed up for each data source: S."""
    return losses_M.new_zeros(sources).index_add_(0, source_M, losses_M)
