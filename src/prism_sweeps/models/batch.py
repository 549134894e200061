"""One forward and backward pass of training: examples laid out in rows, everything a GPU needs to index by itself.

Nothing here has to be looked at on the way: where tokens, patches and targets stand is worked out beside the images, by
the processes that load them, so a step never waits for the device.

Shapes: B rows, S positions of a row, N text tokens of all examples, I images, P patches of one, Q = I P, M targets,
D documents, C H W an image, V channels of its features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Examples that lie end to end in one row. Padding at its end is a document too, of no supervised token."""

    lengths: tuple[int, ...]
    """Positions of each; they sum up to S."""
    starts_D: Tensor
    """int32: where each begins, and S at the end (D + 1 numbers), as variable-length kernels take it."""
    positions_S: Tensor
    """int64: within its document, from 0."""
    index_S: Tensor
    """int32: which document."""


@dataclass(frozen=True)
class Batch:
    """Some examples in rows of [BOS] [patches] [text]: one a row, padded on the right, or packed end to end in one."""

    rows: int
    positions: int
    ids_N: Tensor
    """int64: the text of all examples, one after another, BOS first."""
    text_at_N: Tensor
    """int64: where it stands among the B x S positions, row after row."""
    patch_at_Q: Tensor
    """int64: where the patches of the images stand."""
    target_at_M: Tensor
    """int64: the positions whose next token is supervised."""
    targets_M: Tensor
    """int64: these tokens."""
    weight_M: Tensor
    """fp32: the share of each in the loss of the global batch."""
    source_M: Tensor
    """int64: which data source each is from, by its number."""
    sources: int
    """Data sources of the stage."""
    names: tuple[str, ...]
    """Of the examples."""
    pixels: dict[str, Tensor]
    """Tower -> pixels_ICHW; {} where there is no image or features stand in."""
    features_IPV: Tensor | None = None
    """What frozen towers see, where that was kept."""
    documents: Documents | None = None
    """Of a packed row."""

    def to(self, device: torch.device | str) -> Batch:
        """On a device; from pinned memory without waiting for it."""
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory that a GPU can copy from by itself (called by torch's DataLoader)."""
        return _each(self, Tensor.pin_memory)

    @property
    def images(self) -> int:
        if self.features_IPV is not None:
            return len(self.features_IPV)
        return len(next(iter(self.pixels.values()), ()))


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    documents = batch.documents
    if documents is not None:
        documents = replace(
            documents,
            starts_D=change(documents.starts_D),
            positions_S=change(documents.positions_S),
            index_S=change(documents.index_S),
        )
    moved = {
        field.name: change(value) for field in fields(batch) if isinstance(value := getattr(batch, field.name), Tensor)
    }
    pixels = {name: change(tensor) for name, tensor in batch.pixels.items()}
    return replace(batch, pixels=pixels, documents=documents, **moved)
