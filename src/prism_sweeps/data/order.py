"""Which examples make up each global batch, and in which order: that depends on data, seed and batch size alone.

Processes, micro-batches and workers come later (`layout`), so none of them can change what is learned from what.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import ceil

import torch

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import BATCHINGS
from prism_sweeps.data.conversations import Conversation

GROUP = 16
"""Global batches that are sorted by length, or evened out, together, at most."""
GROUPS = 8
"""Groups that small data are sorted in at least."""
IMAGE_WORDS = 576
"""What an image counts in the reference's search for the longest example, whatever the resolution."""

Batches = list[list[int]]


@dataclass(frozen=True)
class Corpus:
    """What has to be known of a stage's examples to put them in order: three numbers of each."""

    lengths: Sequence[int]
    """Positions in the language model, patches included."""
    with_image: Sequence[bool]
    words: Sequence[int]
    """As `word_count` has them."""

    def __len__(self) -> int:
        return len(self.lengths)


def word_count(conversation: Conversation) -> int:
    """Words between white space in all turns, `<image>` being one: the length the reference sorts by."""
    return sum(len(text.split()) for _, text in conversation.turns)


def steps_in(strategy: str, corpus: Corpus, global_batch: int, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of `epochs` passes over the corpus, the last one filled up, cut at `max_steps`; at least 1.

    Raises ConfigError for an unknown strategy and for a corpus without examples.
    """
    _check(strategy, corpus)
    if strategy == "split-modality":
        pictured = sum(corpus.with_image)
        batches = ceil(pictured / global_batch) + ceil((len(corpus) - pictured) / global_batch)
        # Rounding first: 1.1 epochs of 100 are 110, not 110.00000000000001.
        steps = max(1, ceil(round(batches * epochs, 6)))
    else:
        steps = max(1, ceil(round(len(corpus) * epochs) / global_batch))
    return steps if max_steps is None else min(steps, max_steps)


def batch_stream(strategy: str, corpus: Corpus, global_batch: int, seed: int) -> Iterator[list[int]]:
    """Endless global batches of indices into the corpus, each of exactly `global_batch`.

    grouped: of about equal length. packed: of about equal sums of lengths. Both go through all examples before one
    comes again, so what an epoch leaves over begins the next one's first batch. split-modality: all with an image or
    all without one; an epoch ends with a whole batch, which begins again where examples are missing.

    Raises ConfigError for an unknown strategy and for a corpus without examples.
    """
    _check(strategy, corpus)
    if strategy == "split-modality":
        return _split_modality(corpus, global_batch, seed)
    arrange = grouped_by_length if strategy == "grouped" else evened_out
    return _carried_over(len(corpus), global_batch, seed, lambda order: arrange(order, corpus.lengths, global_batch))


def _check(strategy: str, corpus: Corpus) -> None:
    if strategy not in BATCHINGS:
        raise ConfigError(f"batching is '{strategy}'; {nearest(strategy, BATCHINGS)}")
    if not len(corpus):
        raise ConfigError("there is no example to make batches of; take a mix with more data, or hold fewer out")


# ---- grouped, packed


def _carried_over(
    count: int, global_batch: int, seed: int, arrange: Callable[[list[int]], Batches]
) -> Iterator[list[int]]:
    """Each epoch a fresh permutation, its full batches as `arrange` cuts them, in random order.

    They are shuffled over the whole epoch, so that length says nothing about time.
    """
    carried: list[int] = []
    epoch = 0
    while True:
        # Python's generator, because its sequence for a seed is the same in every version; numpy's need not be.
        generator = random.Random(f"{seed}/{epoch}")
        order = list(range(count))
        generator.shuffle(order)
        if carried:
            missing = global_batch - len(carried)
            carried, order = carried + order[:missing], order[missing:]
            if len(carried) == global_batch:
                yield carried
                carried = []
        full = len(order) // global_batch * global_batch
        batches = arrange(order[:full])
        generator.shuffle(batches)
        yield from batches
        carried += order[full:]
        epoch += 1


def grouped_by_length(order: Sequence[int], lengths: Sequence[int], global_batch: int) -> Batches:
    """`order` cut into batches of about equal length, the longest example of a group first.

    Sorted within groups of up to 16 batches: little padding, as with `group_by_length` of Hugging Face's trainer.
    """
    # Few groups would make every epoch's batches the same ones: those of one sorted list.
    size = global_batch * max(1, min(GROUP, len(order) // (global_batch * GROUPS)))
    groups = [sorted(order[at : at + size], key=lambda i: -lengths[i]) for at in range(0, len(order), size)]
    return [group[at : at + global_batch] for group in groups for at in range(0, len(group), global_batch)]


def evened_out(order: Sequence[int], lengths: Sequence[int], global_batch: int) -> Batches:
    """`order` cut into batches of nearly equal sums of lengths, evened out within groups of up to 16 batches.

    They start as they come and exchange what they must. Dealing the longest first to the emptiest would leave larger
    differences, and would make every epoch's batches the same ones where all of the data are one group.
    """
    batches = [list(order[at : at + global_batch]) for at in range(0, len(order), global_batch)]
    for at in range(0, len(batches), GROUP):
        _even_out(batches[at : at + GROUP], lengths)
    return batches


def _even_out(batches: Batches, lengths: Sequence[int]) -> None:
    """Exchanges examples, in place, until none would bring the largest or the smallest sum closer to another."""
    sums = [sum(lengths[i] for i in batch) for batch in batches]
    while found := _helpful_exchange(batches, sums, lengths):
        low, high, p, q = found
        excess = lengths[batches[high][q]] - lengths[batches[low][p]]
        batches[low][p], batches[high][q] = batches[high][q], batches[low][p]
        sums[low] += excess
        sums[high] -= excess


def _helpful_exchange(
    batches: Batches, sums: Sequence[int], lengths: Sequence[int]
) -> tuple[int, int, int, int] | None:
    """Two batches and a place in each: the smallest sum with the largest, or else either with another one."""
    by_sum = sorted(range(len(sums)), key=sums.__getitem__)
    pairs = [(low, by_sum[-1]) for low in by_sum[:-1]] + [(by_sum[0], high) for high in by_sum[-2:0:-1]]
    for low, high in pairs:
        places = _exchange(batches[low], batches[high], lengths, sums[high] - sums[low])
        if places is not None:
            return low, high, *places
    return None


def _exchange(low: list[int], high: list[int], lengths: Sequence[int], gap: int) -> tuple[int, int] | None:
    """The places in `low` and `high` whose exchange leaves least of the `gap` between their sums; None: none helps."""
    if gap < 2:  # an exchange changes it by an even number
        return None
    places = sorted(range(len(low)), key=lambda p: lengths[low[p]])
    sizes = [lengths[low[p]] for p in places]
    smallest, found = gap, None
    for q, index in enumerate(high):
        after = bisect_left(sizes, lengths[index] - gap / 2)
        for at in range(max(after - 1, 0), min(after + 1, len(sizes))):
            left = abs(gap - 2 * (lengths[index] - sizes[at]))
            if left < smallest:
                smallest, found = left, (places[at], q)
    return found


# ---- split-modality


def _split_modality(corpus: Corpus, global_batch: int, seed: int) -> Iterator[list[int]]:
    epoch = 0
    while True:
        yield from split_modality_epoch(corpus, global_batch, seed + epoch)
        epoch += 1


def split_modality_epoch(corpus: Corpus, global_batch: int, seed: int) -> Batches:
    """One epoch's global batches as the reference has them, index for index (arXiv 2402.07865; prismatic-vlms,
    `SplitModalitySampler`, after LLaVA's `group_by_modality_length`); `seed` is the cell's plus the epoch.

    Examples with and without image are permuted apart and cut into batches, the last of either filled from its first.
    Each is sorted by words, descending; their order is random, but the one with the longest example comes first, so
    that memory runs out at once or never. A kind of fewer than half a batch, at which the published code stops, is
    repeated until it fills one.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = [[i for i, image in enumerate(corpus.with_image) if bool(image) is kind] for kind in (True, False)]
    drawn = [[kind[at] for at in _permutation(len(kind), generator)] for kind in kinds]
    filled = [batch for order in drawn for batch in _filled(order, global_batch)]
    by_words = [sorted(batch, key=lambda i: corpus.words[i], reverse=True) for batch in filled]
    batches = [by_words[at] for at in _permutation(len(by_words), generator)]
    longest = [max(corpus.words[i] + IMAGE_WORDS * bool(corpus.with_image[i]) for i in batch) for batch in batches]
    first = longest.index(max(longest))
    batches[0], batches[first] = batches[first], batches[0]
    return batches


def _permutation(count: int, generator: torch.Generator) -> list[int]:
    return list(torch.randperm(count, generator=generator).tolist())


def _filled(order: list[int], size: int) -> Batches:
    """`order` cut into batches of `size`, the last one filled with what the first one begins with."""
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    if batches:
        missing = size - len(batches[-1])
        batches[-1] = batches[-1] + list(islice(cycle(batches[0]), missing))
    return batches
