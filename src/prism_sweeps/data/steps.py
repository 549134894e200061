"""The data of an optimiser step: the passes of this process, and what all processes know of the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prism_sweeps.data import layout as layouts
from prism_sweeps.data.batching import Example, Layout, collate
from prism_sweeps.models.batch import Batch


@dataclass(frozen=True)
class StepData:
    """One global batch."""

    passes: list[Batch]
    """Of this process, one after another."""
    names: tuple[str, ...]
    """Of all conversations in it."""
    images: int
    supervised: tuple[int, ...]
    """Tokens that count in the loss, by data source."""
    sums: dict[bool, tuple[int, int, int, int]]
    """Of the examples with (True) and without image: how many, and their sums of positions, squared positions and
    supervised tokens, which is what their cost in operations hangs on."""
    tokens: int
    """Positions that hold something."""
    padded: int
    """Positions that are computed, on all processes."""

    def pin_memory(self) -> StepData:
        """With its passes in memory that a GPU can copy from by itself (called by torch's DataLoader)."""
        return replace(self, passes=[batch.pin_memory() for batch in self.passes])


@dataclass(frozen=True)
class StepMaker:
    """Makes the data of any step. What a global batch holds is `batches`; the rest is where and how it is computed."""

    examples: Sequence[Example]
    words: Sequence[int]
    """Of each example, as the reference counts its length."""
    batches: Sequence[Sequence[int]]
    """Examples of each step."""
    layout: Layout
    loss: str
    averaged: int | None
    """Examples whose mean is a summand of the loss, where it is a mean of means."""
    micro_batch: int
    row_tokens: int
    rank: int
    ranks: int

    def __call__(self, step: int) -> StepData:
        """The data of a step, from 0. Raises DataError for an image that cannot be read."""
        chosen = [self.examples[index] for index in self.batches[step]]
        supervised = [int(example.supervised_T.sum()) for example in chosen]
        words = [self.words[index] for index in self.batches[step]]
        weights = layouts.shares(range(len(chosen)), supervised, words, self.loss, self.averaged)
        cut = self.cut([example.length for example in chosen])
        mine = cut[self.rank]
        return StepData(
            passes=[collate([chosen[at] for at in part], [weights[at] for at in part], self.layout) for part in mine],
            names=tuple(example.conversation.name for example in chosen),
            images=sum(example.conversation.image is not None for example in chosen),
            supervised=tuple(
                sum(n for n, example in zip(supervised, chosen, strict=True) if example.conversation.source == source)
                for source in self.layout.sources
            ),
            sums={image: sums(chosen, image) for image in (True, False)},
            tokens=sum(example.length for example in chosen),
            padded=sum(self.width([chosen[at].length for at in part]) for of_rank in cut for part in of_rank),
        )

    def cut(self, lengths: Sequence[int]) -> list[list[list[int]]]:
        """Places in the global batch, by process and pass."""
        places = range(len(lengths))
        if self.layout.packed:
            return layouts.packed(places, lengths, self.ranks, self.row_tokens)
        return layouts.padded(places, lengths, self.ranks, self.micro_batch)

    def width(self, lengths: Sequence[int]) -> int:
        """Positions of a pass, padding included."""
        return max(self.layout.positions, sum(lengths)) if self.layout.packed else max(lengths) * len(lengths)


def sums(examples: Sequence[Example], image: bool) -> tuple[int, int, int, int]:
    """Of those of `examples` that have an image, or have none: see `StepData.sums`."""
    found = [example for example in examples if (example.conversation.image is not None) is image]
    lengths = [example.length for example in found]
    targets = sum(int(example.supervised_T.sum()) for example in found)
    return len(found), sum(lengths), sum(length**2 for length in lengths), targets
