"""How answers come out of the model: greedy text, or the likelihood of given options.

Shapes: B questions, D channels of the language model, S positions in the cache, T tokens of an option after
its first, K options, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prism_sweeps.evaluation.prefix import (
    Read,
    Tokens,
    hidden_states,
    logits,
    with_new,
)
from prism_sweeps.evaluation.steps import EAGER, Steps
from prism_sweeps.models.vlm import VLM


@torch.inference_mode()
def greedy(vlm: VLM, read: Read, end_ids: Tokens, limits: Sequence[int], steps: Steps = EAGER) -> list[list[int]]:
    """The likeliest token time after time: those up to one of `end_ids`, at most `limits[b]` of them."""
    answers: list[list[int]] = [[] for _ in limits]
    going = {row for row, limit in enumerate(limits) if limit > 0}
    read = steps.begin(read, max(limits))
    rows = list(range(len(read.position_B)))
    """Which question each row of `read` answers; none where it is beyond them."""
    while going:
        chosen_B = read.logits_BV.argmax(dim=-1)
        for row, token in zip(rows, chosen_B.tolist(), strict=True):
            if row not in going:
                continue
            if token not in end_ids:
                answers[row].append(token)
            if token in end_ids or len(answers[row]) == limits[row]:
                going.discard(row)
        wanted = steps.rows(len(going)) if going else 0
        # To move rows costs about what it saves once half of them have nothing left to say.
        if wanted and 2 * wanted <= len(rows):
            kept = sorted(range(len(rows)), key=lambda place: rows[place] not in going)[:wanted]
            kept_B = torch.tensor(kept, device=chosen_B.device)
            read, chosen_B, rows = read.only(kept_B), chosen_B[kept_B], [rows[place] for place in kept]
        if going:
            read = steps.extend(vlm, read, chosen_B)
    return answers


@torch.inference_mode()
def first_scores(read: Read, options: Sequence[Sequence[Tokens]]) -> list[list[float]]:
    """Log-likelihood (nats) of the first token of each row's options, among all of the vocabulary."""
    first_BV = read.logits_BV.log_softmax(dim=-1)
    return [first_BV[row, [option[0] for option in of_row]].double().tolist() for row, of_row in enumerate(options)]


@torch.inference_mode()
def option_scores(vlm: VLM, read: Read, options: Sequence[Sequence[Tokens]]) -> list[list[float]]:
    """Mean log-likelihood per token (nats) of each row's options; every option has a token at least.

    Options of one token, the usual case, are read off what is there.
    """
    scores_BK = first_scores(read, options)
    for place in range(max(map(len, options))):
        column = [of_row[place] if place < len(of_row) else of_row[0] for of_row in options]
        if max(map(len, column)) == 1:
            continue
        rest_B = log_likelihood_of_rest(vlm, read, column)
        for row, option in enumerate(column):
            if place < len(options[row]):
                scores_BK[row][place] = (scores_BK[row][place] + rest_B[row]) / len(option)
    return scores_BK


def log_likelihood_of_rest(vlm: VLM, read: Read, column: Sequence[Tokens]) -> list[float]:
    """Summed log-likelihood (nats) of each row's tokens after its first. The cache is left as it was."""
    ids_BT, real_BT = padded(column, read.position_B.device)
    read_BT, asked_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    # Padding is on the right here, where no real token looks, so it may count as real.
    mask_BS = with_new(read.mask_BS, read_BT.shape[1])
    position_BT = read.position_B[:, None] + torch.arange(read_BT.shape[1], device=ids_BT.device)
    hidden_BTD = hidden_states(vlm, read.cache, mask_BS, position_BT, vlm.llm.get_input_embeddings()(read_BT))
    read.cache.crop(-read_BT.shape[1])
    gained_BT = logits(vlm, hidden_BTD).log_softmax(dim=-1).gather(2, asked_BT[:, :, None])[:, :, 0].double()
    return (gained_BT * real_BT[:, 1:]).sum(dim=1).tolist()


def padded(rows: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    """ids_BT padded on the right, and mask_BT of the real ones."""
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    lengths_B1 = torch.tensor([[len(row)] for row in rows], device=device)
    return ids_BT, torch.arange(ids_BT.shape[1], device=device) < lengths_B1
