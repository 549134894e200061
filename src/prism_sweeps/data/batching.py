"""From conversations to examples, and from examples to the batch of one forward pass.

Shapes: T tokens of an example (BOS first, patches not counted), P patches, N tokens of a batch, Q patches of a batch,
M its targets, I its images, S positions of a row, D documents in one, C H W an image, V channels of its features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.models.batch import Batch, Documents
from prism_sweeps.models.prompts import PromptFormat
from prism_sweeps.models.resize import load_image

Transform = Callable[[Image.Image], dict[str, Tensor]]


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
    supervised_T[0] = False  # nothing stands before BOS that could predict it
    return Example(conversation, ids_T, supervised_T, len(ids_T) + extra)


# ---- examples -> batches


@dataclass(frozen=True)
class Layout:
    """How the examples of one forward pass become a batch."""

    transform: Transform
    patches: int
    """Of an image."""
    sources: tuple[str, ...]
    """The stage's data sources; their places here are their numbers."""
    packed: bool = False
    """End to end in one row, instead of one a row."""
    positions: int = 0
    """Of a packed row, padding included; 0: as many as its examples have."""
    features: Mapping[Path, Tensor] | None = None
    """features_PV of an image, where they stand in for its pixels."""


def collate(examples: Sequence[Example], weights: Sequence[float], layout: Layout) -> Batch:
    """Text, images and targets of `examples`, each of whose supervised tokens has its weight in the loss.

    Raises DataError for an image that cannot be read.
    """
    lengths = [example.length for example in examples]
    width = max(layout.positions, sum(lengths)) if layout.packed else max(lengths)
    starts = (
        list(accumulate(lengths[:-1], initial=0)) if layout.packed else [row * width for row in range(len(lengths))]
    )
    places = [place(example, start, layout.patches) for example, start in zip(examples, starts, strict=True)]
    text_at = [where_T for where_T, _ in places]
    wanted = [example.supervised_T for example in examples]
    kinds = [layout.sources.index(example.conversation.source) for example in examples]
    counts = np.array([int(wanted_T.sum()) for wanted_T in wanted])
    pixels, features = images_of(examples, layout)
    return Batch(
        rows=1 if layout.packed else len(examples),
        positions=width,
        ids_N=whole_numbers([example.ids_T for example in examples]),
        text_at_N=whole_numbers(text_at),
        patch_at_Q=whole_numbers([where_P for _, where_P in places]),
        # what is predicted stands one position further on
        target_at_M=whole_numbers([at[on] - 1 for at, on in zip(text_at, wanted, strict=True)]),
        targets_M=whole_numbers([example.ids_T[on] for example, on in zip(examples, wanted, strict=True)]),
        weight_M=torch.from_numpy(np.repeat(np.asarray(weights, dtype=np.float32), counts)),
        source_M=torch.from_numpy(np.repeat(np.asarray(kinds, dtype=np.int64), counts)),
        sources=len(layout.sources),
        names=tuple(example.conversation.name for example in examples),
        pixels=pixels,
        features_IPV=features,
        documents=documents_of(lengths, width) if layout.packed else None,
    )


def place(example: Example, start: int, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the text and the patches of an example stand that begins at position `start`."""
    extra = 0 if example.conversation.image is None else patches
    text_T = np.arange(start, start + len(example.ids_T))
    text_T[1:] += extra
    return text_T, np.arange(start + 1, start + 1 + extra)


def whole_numbers(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def documents_of(lengths: Sequence[int], width: int) -> Documents:
    """Examples of these lengths end to end, and what is left of `width` as the last document."""
    every = [*lengths, width - sum(lengths)] if width > sum(lengths) else list(lengths)
    return Documents(
        lengths=tuple(every),
        starts_D=torch.tensor([0, *accumulate(every)], dtype=torch.int32),
        positions_S=torch.cat([torch.arange(length) for length in every]),
        index_S=torch.repeat_interleave(torch.arange(len(every), dtype=torch.int32), torch.tensor(every)),
    )


def images_of(examples: Sequence[Example], layout: Layout) -> tuple[dict[str, Tensor], Tensor | None]:
    """The images of `examples`, as pixels_ICHW by tower or as features_IPV."""
    shown = [example.conversation for example in examples if example.conversation.image is not None]
    if not shown:
        return {}, None
    if layout.features is not None:
        return {}, torch.stack([layout.features[image] for image in (talk.image for talk in shown) if image])
    images = [pixels_of(conversation, layout.transform) for conversation in shown]
    return {tower: torch.stack([image[tower] for image in images]) for tower in images[0]}, None


def pixels_of(conversation: Conversation, transform: Transform) -> dict[str, Tensor]:
    """The conversation's image for each tower, C,H,W."""
    assert conversation.image is not None
    try:
        return transform(load_image(conversation.image))
    except DataError as error:
        raise DataError(f"conversation {conversation.name}: {error}") from error
