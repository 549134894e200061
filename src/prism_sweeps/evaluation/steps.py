"""How an answer goes on by a token: as it comes, or compiled, with shapes that do not change on the way.

Shapes: B questions, S positions in the cache, H heads, K channels of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

from prism_sweeps.evaluation.prefix import Read, hidden_states, logits, with_new
from prism_sweeps.models.vlm import VLM

PLACES = 256
"""Compiled caches have a multiple of so many positions."""

GRAPHS = 64
"""Compiled at most, for a model; torch allows 8."""


class Steps(Protocol):
    """A way to take the steps of a batch of answers."""

    def rows(self, count: int) -> int:
        """How many rows are computed where `count` are wanted."""
        ...

    def begin(self, read: Read, steps: int) -> Read:
        """`read` made ready for so many steps, with `rows` rows, the last of which may be copies."""
        ...

    def extend(self, vlm: VLM, read: Read, chosen_B: Tensor) -> Read:
        """One token further. The cache is the same one."""
        ...


class Eager:
    """As it comes: any number of rows, and a cache as long as what was read."""

    def rows(self, count: int) -> int:
        return count

    def begin(self, read: Read, steps: int) -> Read:
        return read

    def extend(self, vlm: VLM, read: Read, chosen_B: Tensor) -> Read:
        mask_BS = with_new(read.mask_BS, 1)
        return Read(read.cache, mask_BS, read.position_B + 1, next_logits(vlm, read, chosen_B, mask_BS))


class Fixed(StaticLayer):
    """transformers' cache for compiled models: all of its memory is attended, under a mask."""

    @property
    def room(self) -> int:
        return self.max_cache_len

    def chosen(self, rows_B: Tensor, room: int) -> Fixed:
        return fixed(self.keys, self.values, self.cumulative_length, rows_B, room)


def fixed(keys_BHSK: Tensor, values_BHSK: Tensor, length: int | Tensor, rows_B: Tensor, room: int) -> Fixed:
    """A layer with these rows, with room for more positions than they have."""
    layer = Fixed(room)
    layer.lazy_initialization(*(each[:1].expand(len(rows_B), -1, -1, -1) for each in (keys_BHSK, values_BHSK)))
    for each, to in ((keys_BHSK, layer.keys), (values_BHSK, layer.values)):
        torch.index_select(each, 0, rows_B, out=to[:, :, : each.shape[2]])
    layer.cumulative_length.fill_(length)
    return layer


@dataclass
class Compiled:
    """One graph for each number of rows, which is a power of four, and each multiple of PLACES positions."""

    compiled: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch._dynamo.reset()  # what earlier models of this process had compiled would count against the limit
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        self.compiled = torch.compile(next_logits, dynamic=False)

    def rows(self, count: int) -> int:
        return 4 ** (((count - 1).bit_length() + 1) // 2)

    def begin(self, read: Read, steps: int) -> Read:
        count, length = len(read.position_B), read.cache.get_seq_length()
        rows_B = torch.arange(self.rows(count), device=read.position_B.device).clamp(max=count - 1)
        room = -(-(length + steps) // PLACES) * PLACES
        cache = Cache(layers=[fixed(each.keys, each.values, length, rows_B, room) for each in read.cache.layers])
        # Real ones are what is beyond too: where nothing is written yet, causality masks it.
        mask_BS = torch.ones(len(rows_B), room, dtype=torch.bool, device=rows_B.device)
        if read.mask_BS is not None:
            mask_BS[:, :length] = read.mask_BS[rows_B]
        return Read(cache, mask_BS, read.position_B[rows_B], read.logits_BV[rows_B])

    def extend(self, vlm: VLM, read: Read, chosen_B: Tensor) -> Read:
        logits_BV = self.compiled(vlm, read, chosen_B, read.mask_BS)
        return replace(read, position_B=read.position_B + 1, logits_BV=logits_BV)


def next_logits(vlm: VLM, read: Read, chosen_B: Tensor, mask_BS: Tensor | None) -> Tensor:
    """logits_BV after one more token, which goes into the cache."""
    embeds_B1D = vlm.llm.get_input_embeddings()(chosen_B[:, None])
    return logits(vlm, hidden_states(vlm, read.cache, mask_BS, read.position_B[:, None], embeds_B1D)[:, -1])


EAGER = Eager()
