"""Batches for tests: rows of tokens, some with an image, laid out as training lays them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prism_sweeps.data.batching import Example, Layout, collate
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.models.batch import Batch

HERE = Path("image")


@dataclass
class Rows:
    """What a test says of a batch. `images` are those of the rows that have one, by tower."""

    ids: list[list[int]]
    supervised: list[list[bool]]
    has_image: list[bool]
    images: dict[str, Tensor]
    patches: int
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources = self.sources or ["one"] * len(self.ids)

    @property
    def count(self) -> int:
        return sum(map(sum, self.supervised))

    def only(self, rows: list[int]) -> Rows:
        place = [sum(self.has_image[:row]) for row in rows if self.has_image[row]]
        return Rows(
            [self.ids[row] for row in rows],
            [self.supervised[row] for row in rows],
            [self.has_image[row] for row in rows],
            {name: images[place] for name, images in self.images.items()},
            self.patches,
            [self.sources[row] for row in rows],
        )

    def batch(self, packed: bool = False, positions: int = 0, weight: float = 1.0) -> Batch:
        """With the same weight for every supervised token."""
        numbered = iter(range(sum(self.has_image)))
        images = [next(numbered) if has else None for has in self.has_image]
        examples = [
            Example(
                Conversation(str(row), self.sources[row], None if images[row] is None else HERE, []),
                np.asarray(self.ids[row], dtype=np.int32),
                np.asarray(self.supervised[row], dtype=bool),
                len(self.ids[row]) + (self.patches if self.has_image[row] else 0),
            )
            for row in range(len(self.ids))
        ]
        sources = tuple(dict.fromkeys(self.sources))
        layout = Layout(lambda image: {}, self.patches, sources, packed, positions, {HERE: torch.zeros(1)})
        laid_out = collate(examples, [weight] * len(examples), layout)
        return Batch(**{**vars(laid_out), "pixels": self.images if any(self.has_image) else {}, "features_IPV": None})


def random_rows(
    has_image: list[bool], lengths: list[int], vocabulary: int, images: dict[str, Tensor], patches: int, seed: int = 0
) -> Rows:
    """Rows of so many random tokens, BOS first; the second is supervised, and half of the others."""
    generator = torch.Generator().manual_seed(seed)
    ids = [[0, *torch.randint(2, vocabulary, (n - 1,), generator=generator).tolist()] for n in lengths]
    wanted = [[False, True, *(torch.rand(n - 2, generator=generator) < 0.5).tolist()] for n in lengths]
    return Rows(ids, wanted, has_image, images, patches)
