"""How answers come out of the model: greedy text, or the likeliest of given options.

Shapes: B questions, P patches, D channels of the language model, S positions of the prefix (padding, BOS, patches,
text), T new positions, K options, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from prism_sweeps.models.vlm import VLM

Tokens = Sequence[int]


@dataclass(frozen=True)
class Prefix:
    """Questions that the language model has read, padded on the left so that all answers start at one position."""

    cache: DynamicCache
    mask_BS: Tensor
    logits_BV: Tensor
    """For the first token of the answer."""


@torch.inference_mode()
def generate(
    vlm: VLM, tokens_BPD: Tensor, questions: Sequence[Tokens], end_ids: Tokens, limits: Sequence[int]
) -> list[list[int]]:
    """Greedy answers: the tokens up to one of `end_ids`, at most `limits[b]` of them.

    `tokens_BPD` are the image tokens of each question, `questions` start with BOS. A row that has ended goes through
    the model until all have; its tokens are dropped.
    """
    prefix = read_questions(vlm, tokens_BPD, questions)
    answers: list[list[int]] = [[] for _ in questions]
    open_rows = {row for row, limit in zip(range(len(questions)), limits, strict=True) if limit > 0}
    while True:
        chosen_B = prefix.logits_BV.argmax(dim=-1)
        for row, token in enumerate(chosen_B.tolist()):
            if row not in open_rows:
                continue
            if token not in end_ids:
                answers[row].append(token)
            if token in end_ids or len(answers[row]) == limits[row]:
                open_rows.discard(row)
        if not open_rows:
            return answers
        prefix = extend(vlm, prefix, chosen_B)


@torch.inference_mode()
def choose(vlm: VLM, tokens_BPD: Tensor, questions: Sequence[Tokens], options: Sequence[Sequence[Tokens]]) -> list[int]:
    """For each question the index of its likeliest option: highest mean log-likelihood per token, the first of equals.

    Options of one token, the usual case, are read off the prefix. For these the choice is that of vlm-evaluation,
    which compares the first token's probability; longer ones it cannot score.
    """
    prefix = read_questions(vlm, tokens_BPD, questions)
    scores_BK = option_scores(vlm, prefix, options)
    return [max(range(len(row)), key=row.__getitem__) for row in scores_BK]


def option_scores(vlm: VLM, prefix: Prefix, options: Sequence[Sequence[Tokens]]) -> list[list[float]]:
    """Mean log-likelihood per token (nats) of each row's options; every option has a token at least."""
    first_BV = prefix.logits_BV.log_softmax(dim=-1)
    scores_BK = [
        first_BV[row, [option[0] for option in of_row]].double().tolist() for row, of_row in enumerate(options)
    ]
    for place in range(max(len(of_row) for of_row in options)):
        column = [of_row[place] if place < len(of_row) else of_row[0] for of_row in options]
        if max(map(len, column)) == 1:
            continue
        rest_B = log_likelihood_of_rest(vlm, prefix, column)
        for row, option in enumerate(column):
            if place < len(options[row]):
                scores_BK[row][place] = (scores_BK[row][place] + rest_B[row]) / len(option)
    return scores_BK


def log_likelihood_of_rest(vlm: VLM, prefix: Prefix, column: Sequence[Tokens]) -> list[float]:
    """Summed log-likelihood (nats) of each row's tokens after its first. The prefix's cache is left as it was."""
    ids_BT, real_BT = padded([list(option) for option in column], prefix.mask_BS.device)
    read_BT, asked_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    # Padding is on the right here, where no real token looks, so it may count as real.
    mask_BS = with_new(prefix.mask_BS, read_BT.shape[1])
    hidden_BTD = hidden_states(vlm, prefix.cache, mask_BS, vlm.llm.get_input_embeddings()(read_BT))
    prefix.cache.crop(-read_BT.shape[1])
    gained_BT = logits(vlm, hidden_BTD).log_softmax(dim=-1).gather(2, asked_BT[:, :, None])[:, :, 0].double()
    return (gained_BT * real_BT[:, 1:]).sum(dim=1).tolist()


def read_questions(vlm: VLM, tokens_BPD: Tensor, questions: Sequence[Tokens]) -> Prefix:
    """Run the language model over [BOS] [patches] [text] of every question."""
    ids_BT, mask_BT = padded(questions, tokens_BPD.device)
    embeds_BSD, mask_BS = vlm.embed(ids_BT, mask_BT, mask_BT[:, 0], tokens_BPD)
    embeds_BSD, mask_BS = padded_on_the_left(embeds_BSD, mask_BS)
    # Told of a sliding window the cache would forget what is outside it, and could not go back to the prefix; the masks
    # keep the window without it.
    cache = DynamicCache()
    hidden_BSD = hidden_states(vlm, cache, mask_BS, embeds_BSD)
    return Prefix(cache, mask_BS, logits(vlm, hidden_BSD[:, -1]))


def extend(vlm: VLM, prefix: Prefix, chosen_B: Tensor) -> Prefix:
    """The prefix one token longer."""
    embeds_B1D = vlm.llm.get_input_embeddings()(chosen_B[:, None])
    mask_BS = with_new(prefix.mask_BS, 1)
    hidden_B1D = hidden_states(vlm, prefix.cache, mask_BS, embeds_B1D)
    return replace(prefix, mask_BS=mask_BS, logits_BV=logits(vlm, hidden_B1D[:, -1]))


def hidden_states(vlm: VLM, cache: DynamicCache, mask_BS: Tensor, embeds_BTD: Tensor) -> Tensor:
    """The language model over T new positions, which `mask_BS` has after those in `cache`, and which go into it."""
    positions_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
    return vlm.llm.base_model(
        inputs_embeds=embeds_BTD,
        attention_mask=mask_BS.long(),
        position_ids=positions_BS[:, -embeds_BTD.shape[1] :],
        use_cache=True,
        **{cache_argument(type(vlm.llm.base_model)): cache},
    ).last_hidden_state


@functools.cache
def cache_argument(model: type[nn.Module]) -> str:
    """What `model.forward` calls its cache: transformers 5.24 renamed `past_key_values`, which 5.40 will not know."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def logits(vlm: VLM, hidden: Tensor) -> Tensor:
    """The language model's head, in fp32."""
    return vlm.llm.get_output_embeddings()(hidden).float()


def padded(rows: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    """ids_BT padded on the right, and mask_BT of the real ones."""
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    lengths_B1 = torch.tensor([[len(row)] for row in rows], device=device)
    return ids_BT, torch.arange(ids_BT.shape[1], device=device) < lengths_B1


def padded_on_the_left(embeds_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Each row turned by as many places as it has padding on the right."""
    size = mask_BS.shape[1]
    padding_B1 = size - mask_BS.sum(dim=1, keepdim=True)
    source_BS = (torch.arange(size, device=mask_BS.device) - padding_B1) % size
    turned_BSD = embeds_BSD.gather(1, source_BS[:, :, None].expand_as(embeds_BSD))
    return turned_BSD, mask_BS.gather(1, source_BS)


def with_new(mask_BS: Tensor, count: int) -> Tensor:
    """`mask_BS` with so many real positions after it."""
    return torch.cat([mask_BS, mask_BS.new_ones(len(mask_BS), count)], dim=1)
