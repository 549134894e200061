"""What the language model has read: of an image once, then of every question about it.

Questions about one image begin alike: BOS, the patches, and the first words of their text. Keys and values of that
prefix are computed once an image and copied to each of its questions, of which then only the rest has to be read.

Shapes: I images, P patches, B questions, D channels of the language model, T new positions, S positions in the cache,
H heads, K channels of a head, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from prism_sweeps.models.vlm import VLM

Tokens = Sequence[int]
SPARE = 64
"""Positions a cache grows by where an answer is longer than was thought."""
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
"""What configs call the positions that attention looks back over, where these are not all."""


class Layer(DynamicLayer):
    """Keys and values of one layer, in memory that has room for more: what is new is written, the rest stays in place.

    transformers' own layer of this kind copies all of it for every token. `keys_BHSK` and `values_BHSK` of the base
    class (`keys`, `values`) are views of what is written.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.stored: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes keys_BHTK and values_BHTK behind what is there; returns all of it."""
        begin, count = self.get_seq_length(), key_states.shape[2]
        if begin + count > self.room or not self.stored:
            self.store(key_states, value_states, begin, max(self.room, begin + count + SPARE * bool(begin)))
        for stored, new in zip(self.stored, (key_states, value_states), strict=True):
            stored[:, :, begin : begin + count] = new
        self.show(begin + count)
        return self.keys, self.values

    def store(self, keys: Tensor, values: Tensor, written: int, room: int) -> None:
        """Takes memory for `room` positions of rows like these, and brings what is written there."""
        old, self.room = self.stored, room
        self.stored = [new.new_empty(*new.shape[:2], room, new.shape[3]) for new in (keys, values)]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        for stored, before in zip(self.stored, old, strict=False):
            stored[:, :, :written] = before[:, :, :written]

    def show(self, length: int) -> None:
        self.keys, self.values = (stored[:, :, :length] for stored in self.stored)

    def chosen(self, rows_B: Tensor, room: int) -> Layer:
        """A layer of its own with these rows of this one; a row may come several times, or not at all."""
        layer = Layer(room)
        layer.store(*(each[:1].expand(len(rows_B), -1, -1, -1) for each in self.stored), 0, room)
        layer.show(self.get_seq_length())
        for each, to in ((self.keys, layer.keys), (self.values, layer.values)):
            torch.index_select(each, 0, rows_B, out=to)
        return layer

    def continued(self) -> Layer:
        """A layer that goes on in the memory of this one, of which what is written so far stays as it is."""
        layer = Layer(self.room)
        layer.stored, layer.dtype, layer.device, layer.is_initialized = self.stored, self.dtype, self.device, True
        layer.show(self.get_seq_length())
        return layer


@dataclass(frozen=True)
class Read:
    """Questions that the language model has read up to where their answers start."""

    cache: Cache
    mask_BS: Tensor | None
    """Which positions are real; None where all are."""
    position_B: Tensor
    """Of what comes next, padding not counted."""
    logits_BV: Tensor
    """For what comes next."""

    def only(self, rows_B: Tensor) -> Read:
        """These rows alone."""
        return Read(
            Cache(layers=[layer.chosen(rows_B, layer.room) for layer in self.cache.layers]),
            None if self.mask_BS is None else self.mask_BS[rows_B],
            self.position_B[rows_B],
            self.logits_BV[rows_B],
        )


@torch.inference_mode()
def read_prefix(vlm: VLM, tokens_IPD: Tensor, ids: Tokens, room: int) -> Cache:
    """Keys and values of [BOS] [patches] [text] of each image, with room for so many positions. `ids` starts with BOS.

    The rest of a question has one token at least: what it is answered with is read off the last one.
    """
    text_TD = vlm.llm.get_input_embeddings()(torch.tensor(ids, device=tokens_IPD.device))
    text_ITD = text_TD.expand(len(tokens_IPD), -1, -1)
    embeds_ISD = torch.cat([text_ITD[:, :1], tokens_IPD.to(text_TD.dtype), text_ITD[:, 1:]], dim=1)
    cache = empty_cache(vlm.llm, max(room, embeds_ISD.shape[1]))
    hidden_states(vlm, cache, None, torch.arange(embeds_ISD.shape[1], device=text_TD.device)[None], embeds_ISD)
    return cache


@torch.inference_mode()
def read_suffixes(vlm: VLM, prefixes: Cache, images: Sequence[int], suffixes: Sequence[Tokens], room: int) -> Read:
    """Reads the rest of each question behind the prefix of its image, whose row in `prefixes` stays as it is.

    The cache has room for so many positions. Suffixes of different lengths are padded on the left, in between prefix
    and suffix. Raises ValueError for a language model that padding would mislead (`bears_padding`).
    """
    longest = max(map(len, suffixes))
    padding = [longest - len(suffix) for suffix in suffixes]
    if any(padding) and not bears_padding(vlm.llm):
        raise ValueError("this language model has to be asked questions of one length at a time")
    before, device = prefixes.get_seq_length(), vlm.llm.device
    ids_BT = torch.tensor([[0] * pad + list(ids) for pad, ids in zip(padding, suffixes, strict=True)], device=device)
    padding_B1 = torch.tensor(padding, device=device)[:, None]
    place_BT = torch.arange(longest, device=device) - padding_B1
    mask_BS = None
    if any(padding):
        mask_BS = torch.ones(len(images), before + longest, dtype=torch.bool, device=device)
        mask_BS[:, before:] = place_BT >= 0
    cache = of_questions(prefixes, images, max(room, before + longest))
    embeds_BTD = vlm.llm.get_input_embeddings()(ids_BT)
    hidden_BTD = hidden_states(vlm, cache, mask_BS, before + place_BT.clamp(min=0), embeds_BTD)
    return Read(cache, mask_BS, before + longest - padding_B1[:, 0], logits(vlm, hidden_BTD[:, -1]))


def hidden_states(vlm: VLM, cache: Cache, mask_BS: Tensor | None, position_BT: Tensor, embeds_BTD: Tensor) -> Tensor:
    """The language model over T new positions, which go into `cache`; hidden_BTD."""
    model = vlm.llm.base_model
    told = {"position_ids": position_BT.expand(len(embeds_BTD), -1)} if takes(type(model), "position_ids") else {}
    # transformers 5.24 renamed `past_key_values`, which 5.40 will not know
    told["cache" if takes(type(model), "cache") else "past_key_values"] = cache
    mask = None if mask_BS is None else mask_BS.long()
    return model(inputs_embeds=embeds_BTD, attention_mask=mask, use_cache=True, **told).last_hidden_state


def logits(vlm: VLM, hidden: Tensor) -> Tensor:
    """The language model's head, in fp32."""
    return vlm.llm.get_output_embeddings()(hidden).float()


def with_new(mask_BS: Tensor | None, count: int) -> Tensor | None:
    """`mask_BS` with so many real positions after it."""
    return None if mask_BS is None else torch.cat([mask_BS, mask_BS.new_ones(len(mask_BS), count)], dim=1)


def bears_padding(llm: PreTrainedModel) -> bool:
    """Whether a question reads the same with padding between it and its prefix.

    It does where positions can be told. A window that is shorter than the context is counted in places, of which
    padding takes some.
    """
    config = llm.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    context = getattr(config, "max_position_embeddings", math.inf)
    everywhere_full = set(getattr(config, "layer_types", None) or ()) == {"full_attention"}
    windowed = any(window and window < context for window in windows) and not everywhere_full
    return takes(type(llm.base_model), "position_ids") and not windowed


def empty_cache(llm: PreTrainedModel, room: int) -> Cache:
    # Told of a sliding window a cache would forget what is outside it, and could not go back to the prefix; the masks
    # keep the window without it.
    return Cache(layers=[Layer(room) for _ in range(llm.config.get_text_config().num_hidden_layers)])


def of_questions(prefixes: Cache, images: Sequence[int], room: int) -> Cache:
    """The prefix of each question's image. One question on each image goes on where the prefix is, if there is room."""
    one_each = list(images) == list(range(len(prefixes.layers[0].keys)))
    if one_each and all(layer.room >= room for layer in prefixes.layers):
        return Cache(layers=[layer.continued() for layer in prefixes.layers])
    rows_B = torch.tensor(images, device=prefixes.layers[0].keys.device)
    return Cache(layers=[layer.chosen(rows_B, room) for layer in prefixes.layers])


@torch.compiler.assume_constant_result
def takes(model: type[nn.Module], name: str) -> bool:
    """Whether `model.forward` can be told it."""
    return name in inspect.signature(model.forward).parameters
