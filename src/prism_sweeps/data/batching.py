"""From conversations to batches, in an order that depends on the data, the seed and the batch size alone.

Shapes: B rows, I rows with an image, T padded length in tokens (BOS first, patches not counted), C H W an image.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.models.prompts import PromptFormat
from prism_sweeps.models.resize import load_image
from prism_sweeps.models.vlm import IGNORED, Batch

GROUP = 16
"""Global batches that are sorted by length together, at most; small data are cut into at least so many groups:"""
GROUPS = 8

Transform = Callable[[Image.Image], dict[str, Tensor]]
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A conversation as the tokens the model will see."""

    conversation: Conversation
    ids_T: np.ndarray
    """int32, BOS first."""
    supervised_T: np.ndarray
    """bool: the tokens that count in the loss."""
    length: int
    """Positions it takes in the language model, patches included."""


# ---- conversations -> examples


def encode_all(
    conversations: Sequence[Conversation],
    prompts: PromptFormat,
    patches: int,
    context: int,
    max_text: int | None = None,
) -> list[Example]:
    """Tokenises `conversations`; those longer than `context` (patches included) or `max_text` lose their end.

    Raises DataError, with their number, when conversations have no supervised token left after that: they would be
    paid for and teach nothing.
    """
    examples = [encode(conversation, prompts, patches, context, max_text) for conversation in conversations]
    mute = [example.conversation.name for example in examples if not example.supervised_T.any()]
    if mute:
        limit = "" if max_text is None else f" and max_text of {max_text}"
        raise DataError(
            f"{len(mute)} of {len(examples)} conversations have no answer left within the model's {context} positions "
            f"({patches} of them patches){limit}, the first: {', '.join(mute[:3])}; take them out of the data, or use "
            "a lower resolution or a language model with a longer context"
        )
    return examples


def encode(
    conversation: Conversation, prompts: PromptFormat, patches: int, context: int, max_text: int | None = None
) -> Example:
    encoded = prompts.encode(conversation.turns)
    extra = 0 if conversation.image is None else patches
    room = context - extra if max_text is None else min(context - extra, max_text)
    ids_T = np.asarray(encoded.ids[:room], dtype=np.int32)
    supervised_T = np.asarray(encoded.supervised[:room], dtype=bool)
    return Example(conversation, ids_T, supervised_T, len(ids_T) + extra)


# ---- order


def steps_in(examples: int, global_batch: int, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of `epochs` passes over `examples`, the last one filled up, cut at `max_steps`; at least 1."""
    # Rounding first: 1.1 epochs of 1000 are 1100 examples, not 1100.0000000000002.
    steps = max(1, math.ceil(round(examples * epochs) / global_batch))
    return steps if max_steps is None else min(steps, max_steps)


def batch_stream(lengths: Sequence[int], global_batch: int, seed: int) -> Iterator[list[int]]:
    """Endless global batches of indices into `lengths`: each epoch a fresh permutation, every batch full.

    What an epoch leaves over begins the next one's first batch, so no example is dropped, or repeated before all were
    seen. The rest of an epoch is sorted by length within groups of up to 16 batches (little padding, as with HF's
    `group_by_length`), and its batches are then shuffled, so that length says nothing about time.
    """
    carried: list[int] = []
    epoch = 0
    while True:
        # Python's generator, because its sequence for a seed is the same in every version; numpy's need not be.
        generator = random.Random(f"{seed}/{epoch}")
        order = list(range(len(lengths)))
        generator.shuffle(order)
        if carried:
            missing = global_batch - len(carried)
            carried, order = carried + order[:missing], order[missing:]
            if len(carried) == global_batch:
                yield carried
                carried = []
        full = len(order) // global_batch * global_batch
        batches = grouped_by_length(order[:full], lengths, global_batch)
        generator.shuffle(batches)
        yield from batches
        carried += order[full:]
        epoch += 1


def grouped_by_length(order: list[int], lengths: Sequence[int], global_batch: int) -> list[list[int]]:
    """`order` cut into batches of `global_batch` of about equal length, the longest example of a group first."""
    # Few groups would make every epoch's batches the same ones: those of one sorted list.
    size = global_batch * max(1, min(GROUP, len(order) // (global_batch * GROUPS)))
    groups = [sorted(order[at : at + size], key=lambda i: -lengths[i]) for at in range(0, len(order), size)]
    return [group[at : at + global_batch] for group in groups for at in range(0, len(group), global_batch)]


# ---- examples -> batches


def micro_batches(examples: Sequence[Example], size: int, transform: Transform) -> list[Batch]:
    """One step's `examples` as batches of at most `size` (0: all in one), longest first, each padded by itself.

    Raises DataError naming the conversation whose image cannot be read.
    """
    ordered = sorted(examples, key=lambda example: -example.length)
    size = size or len(ordered)
    return [collate(ordered[at : at + size], transform) for at in range(0, len(ordered), size)]


def collate(examples: Sequence[Example], transform: Transform) -> Batch:
    """Right-padded tokens and the images of the rows that have one. Raises DataError for an unreadable image."""
    longest = max(len(example.ids_T) for example in examples)
    ids_BT = torch.zeros(len(examples), longest, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    mask_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids_T = torch.from_numpy(example.ids_T).long()
        ids_BT[row, : len(ids_T)] = ids_T
        mask_BT[row, : len(ids_T)] = True
        labels_BT[row, : len(ids_T)] = ids_T.where(torch.from_numpy(example.supervised_T), IGNORED)
    images = [pixels_of(example.conversation, transform) for example in examples if example.conversation.image]
    return Batch(
        pixels={tower: torch.stack([image[tower] for image in images]) for tower in (images[0] if images else {})},
        has_image_B=torch.tensor([example.conversation.image is not None for example in examples]),
        ids_BT=ids_BT,
        mask_BT=mask_BT,
        labels_BT=labels_BT,
        names=[example.conversation.name for example in examples],
    )


def pixels_of(conversation: Conversation, transform: Transform) -> dict[str, Tensor]:
    """The conversation's image for each tower, C,H,W."""
    assert conversation.image is not None
    try:
        return transform(load_image(conversation.image))
    except DataError as error:
        raise DataError(f"conversation {conversation.name}: {error}") from error


def prefetched(items: Iterable[Item], make: Callable[[Item], Made], ahead: int = 2) -> Iterator[Made]:
    """`make(item)` for each item, in order, computed by one thread up to `ahead` items early.

    What `make` raises is raised when its item is due, not before: work done until then is kept.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
