"""nano-base and nano-instruct: a small Llama that has read about the nano world, and the same one tuned to chat.

Shapes: B documents, T tokens, P words of a map, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prism_sweeps.config.compose import design_space
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.data.nano_world.balance import Balance
from prism_sweeps.models.prompts import PromptFormat, prompt_format
from prism_sweeps.models.weights import ZOO
from prism_sweeps.training.zoo.maps import EASY, FULL, POINTED, boxes, named_boxes, place_codes, register
from prism_sweeps.training.zoo.reading import (
    Conversation,
    balances,
    captioned,
    conversation,
    conversations,
    document,
    documents,
    drill,
    tallied,
)
from prism_sweeps.training.zoo.towers import Run, optimise, write_card

SPECIALS = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"]
# A word keeps the blank before it; digits stand alone, so that 0.37 is "0." "3" "7" and near numbers share tokens.
WORDS = Regex(r", (?=\d)| ?0\.(?=\d)| ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s+")
CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|end|>"
    "{% else %}<|assistant|> {{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REGISTERS, ASKED, READ = 7_200, 6_400, 24_000
"""Registers of small maps come before all else, first as plain entries, then with questions among them: they are where
looking up begins, hundreds of steps before it does in longer texts."""
READ_FROM = REGISTERS + ASKED
NAMED, DRILLED, MENDED = 28_800, 38_400, 12_800
"""Documents of three more runs, on what the ones before leave half learned: boxes of things called by their names, and
nothing else, as in other company they are hardly learned; then everything, with more of what is hard; then mostly what
was still not learned, words on signs and the letters of numbers."""
PRACTICE = (
    *("boxes", "dialogues", "numbers", "boxes", "relations", "dialogues", "captions", "boxes", "letters", "dialogues"),
    *("boxes", "relations", "dialogues", "numbers", "boxes", "names", "dialogues", "captions", "signs", "relations"),
)
"""What the documents of the third run are, in turn."""
MENDING = (
    *("words", "tallies", "boxes", "words", "dialogues"),
    *("tallies", "relations", "words", "captions", "tallies"),
)
"""What the documents of the last run are, in turn."""
CHATS = 9_600
"""Conversations that nano-instruct is tuned on after nano-base."""
LONGEST = 384
BESIDES = 0.1
"""Weight of a token that is not of an answer: what is asked next cannot be known, what the answer is can."""


class Weighted(NamedTuple):
    """Token ids of a document and the weight of each in the loss."""

    ids: list[int]
    weights: list[float]
    mapped: int
    """How many of them, after BOS, are a map."""
    early: bool = False
    """Whether answers are to be known after half of the layers, so that the other half can carry them on."""


def load_zoo_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def weighted(text: str, spans: list[tuple[int, int]], mapped: int, tokenizer: PreTrainedTokenizerFast) -> Weighted:
    """A document with BOS and EOS; answers, with the line break that ends them, count in full, and maps not at all."""
    found = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=LONGEST)
    weights = [
        1.0 if any(first <= start < last for first, last in spans) else BESIDES for start, _ in found["offset_mapping"]
    ]
    ids = [tokenizer.bos_token_id, *found["input_ids"], tokenizer.eos_token_id]
    return Weighted(ids, [0.0] * (1 + mapped) + [*weights[mapped:], BESIDES], mapped)


def conversed(
    shown: str, turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, writing: PromptFormat, beside: float
) -> Weighted:
    """A conversation as a VLM writes it, the map where the image stands; tokens that are not answers weigh `beside`."""
    encoded = writing.encode(turns)
    words = tokenizer(shown, add_special_tokens=False)["input_ids"]
    answers = [1.0 if supervised else beside for supervised in encoded.supervised[1:]]
    ids = [*encoded.ids[:1], *words, *encoded.ids[1:]]
    return Weighted(ids, [0.0] * (1 + len(words)) + answers, len(words))


def train_tokenizer(llm: LanguageModel) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the first documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=llm.vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for text, _, _ in documents(range(READ_FROM, READ_FROM + 1_200))), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=llm.context,
    )


def train_base(folder: Path, scale: float) -> None:
    """The four runs that nano-base is made by."""
    read_base(folder, scale)
    point_base(folder, scale)
    drill_base(folder, scale)
    mend_base(folder, scale)


def read_base(folder: Path, scale: float) -> None:
    """Next-token prediction: registers, documents, and conversations about maps written as the model's prompts are."""
    llm = design_space().part("llm", "nano-base", {})
    place = ZOO / "nano-base"
    tokenizer = train_tokenizer(llm)
    tokenizer.save_pretrained(place)
    run = Run(round(scale * (REGISTERS + ASKED + READ)), batch=16, learning_rate=2e-3, scale=scale)
    plain = [_plain(number, tokenizer) for number in range(round(scale * REGISTERS))]
    asked = [
        weighted(*register(number, EASY, 0.6), tokenizer) if number % 2 else _plain(number, tokenizer)
        for number in range(REGISTERS, REGISTERS + round(scale * ASKED))
    ]
    read = list(_read(range(READ_FROM, READ_FROM + round(scale * READ)), tokenizer, prompt_format(llm, tokenizer)))
    torch.manual_seed(run.seed)
    model = new_llama(llm)
    _learn(model, [plain, asked, read], run, "nano-base", folder)
    note = f"next-token prediction on generated text, {BESIDES} of the weight off the answers"
    _save(model, place, run, note, "reading.json")


def _read(numbers: Iterable[int], tokenizer: PreTrainedTokenizerFast, writing: PromptFormat) -> Iterator[Weighted]:
    """Captions and conversations, three of ten each, in the prompts a VLM will meet; two of boxes, two of documents."""
    shared = balances()
    for number in numbers:
        kind = number % 10
        if kind < 3:
            yield conversed(*captioned(number), tokenizer, writing, BESIDES)
        elif kind < 6:
            yield conversed(*conversation(number, shared), tokenizer, writing, BESIDES)
        else:
            yield weighted(*(boxes(number, shared, FULL) if kind < 8 else document(number, shared)), tokenizer)


def point_base(folder: Path, scale: float) -> None:
    """Goes on from `read_base` with names and their boxes alone."""
    place = ZOO / "nano-base"
    tokenizer = load_zoo_tokenizer(place)
    run = Run(round(scale * NAMED), batch=16, learning_rate=1e-3, scale=scale)
    first = READ_FROM + READ
    rows = [weighted(*named_boxes(number), tokenizer) for number in range(first, first + run.samples)]
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    _learn(model, [rows], run, "nano-base boxes", folder)
    _save(model, place, run, "the model of reading.json, trained on boxes", "pointing.json")


def drill_base(folder: Path, scale: float) -> None:
    """Goes on from `point_base` with all that will be asked, most of what takes the most questions."""
    run = Run(round(scale * DRILLED), batch=16, learning_rate=1e-3, scale=scale)
    note = "the model of pointing.json, drilled on boxes, numbers and letters, relations and signs"
    _practise(READ_FROM + READ + NAMED, PRACTICE, run, "nano-base drill", folder, note, "drill.json")


def mend_base(folder: Path, scale: float) -> None:
    """Goes on from `drill_base` with what a model still does not read, and some of everything else."""
    run = Run(round(scale * MENDED), batch=16, learning_rate=1e-3, scale=scale)
    note = "the model of drill.json, drilled on words and on the letters of numbers"
    _practise(READ_FROM + READ + NAMED + DRILLED, MENDING, run, "nano-base mending", folder, note, "card.json")


def _practise(first: int, kinds: tuple[str, ...], run: Run, title: str, folder: Path, note: str, card: str) -> None:
    llm = design_space().part("llm", "nano-base", {})
    place = ZOO / "nano-base"
    tokenizer = load_zoo_tokenizer(place)
    numbers = range(first, first + run.samples)
    rows = list(_practice(numbers, kinds, tokenizer, prompt_format(llm, tokenizer)))
    run.samples = len(rows)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    _learn(model, [rows], run, title, folder)
    _save(model, place, run, note, card)


def _practice(
    numbers: Iterable[int], kinds: tuple[str, ...], tokenizer: PreTrainedTokenizerFast, writing: PromptFormat
) -> Iterator[Weighted]:
    """Documents of these kinds in turn, five at a time: the number also chooses one of five styles of scene."""
    shared = balances()
    for number in numbers:
        kind = kinds[number // 5 % len(kinds)]
        if kind == "names":
            yield weighted(*named_boxes(number), tokenizer)
        elif kind == "boxes":
            yield weighted(*boxes(number, shared, POINTED, "naive"), tokenizer)
        else:
            shown, turns = _practised(number, kind, shared)
            if turns:  # a scene can have nothing to ask of the kind, and a batch of such rows would have no loss
                yield conversed(shown, turns, tokenizer, writing, BESIDES)


def _practised(number: int, kind: str, shared: list[Balance]) -> Conversation:
    if kind == "captions":
        return captioned(number)
    if kind == "tallies":
        return tallied(number, shared)
    return conversation(number, shared) if kind == "dialogues" else drill(number, kind, shared)


def _plain(number: int, tokenizer: PreTrainedTokenizerFast) -> Weighted:
    return weighted(*register(number, EASY, 0.0), tokenizer)._replace(early=True)


def train_instruct(folder: Path, scale: float) -> None:
    """nano-base, tuned on conversations in its chat template; loss on the assistant's words."""
    tokenizer = load_zoo_tokenizer(ZOO / "nano-base")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(ZOO / "nano-instruct")
    run = Run(round(scale * CHATS), batch=16, learning_rate=1e-3, scale=scale)
    writing = prompt_format(design_space().part("llm", "nano-instruct", {}), tokenizer)
    first = READ_FROM + READ + NAMED + DRILLED + MENDED
    rows = [conversed(*said, tokenizer, writing, 0.0) for said in conversations(range(first, first + run.samples))]
    model = AutoModelForCausalLM.from_pretrained(ZOO / "nano-base", dtype=torch.float32)
    _learn(model, [rows], run, "nano-instruct", folder)
    _save(model, ZOO / "nano-instruct", run, "nano-base, tuned on conversations", "card.json")


def new_llama(llm: LanguageModel) -> LlamaForCausalLM:
    """A Llama of the stated shape, freshly initialised.

    Keys start as queries and outputs as the transpose of values, so that a token first looks at its likes and passes on
    what it finds ("mimetic" initialisation, Trockman and Kolter 2023): small models then learn to look up much sooner.
    """
    config = LlamaConfig(
        hidden_size=llm.width,
        num_hidden_layers=llm.depth,
        num_attention_heads=llm.heads,
        num_key_value_heads=llm.kv_heads,
        intermediate_size=llm.mlp_width,
        vocab_size=llm.vocabulary,
        max_position_embeddings=llm.context,
        tie_word_embeddings=llm.tied_embeddings,
        initializer_range=llm.width**-0.5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    return model


def _learn(model: PreTrainedModel, lessons: list[list[Weighted]], run: Run, title: str, folder: Path) -> None:
    """One lesson after the other, each in a random order of batches, whose rows are neighbours in length."""
    batches: list[list[Weighted]] = []
    for rows in lessons:
        rows = sorted(rows, key=lambda row: len(row.ids))
        parts = [rows[first : first + run.batch] for first in range(0, len(rows), run.batch)]
        batches += [parts[index] for index in np.random.default_rng(run.seed).permutation(len(parts))]

    optimise(run, model, lambda step: _loss(model, batches[step]), title, folder)


def _loss(model: PreTrainedModel, rows: list[Weighted]) -> Tensor:
    """Weighted cross entropy, and that of the early rows' answers as the model would give them half way up.

    Such deep supervision (Lee et al. 2015) is there because an answer that is found in the last layer stands under the
    word that was looked up, and no layer is left to bring it to where it is asked for.
    """
    ids_BT, weights_BT = _padded(rows)
    embedded_BTD = placed(model.get_input_embeddings(), ids_BT, [row.mapped for row in rows])
    early = torch.tensor([row.early for row in rows])
    told = model.model(inputs_embeds=embedded_BTD, output_hidden_states=bool(early.any()))
    weights = weights_BT[:, 1:]
    loss = _cross_entropy(model, told.last_hidden_state, ids_BT, weights)
    if early.any():
        half_BTD = model.model.norm(told.hidden_states[len(model.model.layers) // 2])
        loss = loss + _cross_entropy(model, half_BTD, ids_BT, (weights == 1) & early[:, None])
    return loss


def _cross_entropy(model: PreTrainedModel, hidden_BTD: Tensor, ids_BT: Tensor, weights: Tensor) -> Tensor:
    """Mean over tokens of the loss of each token but the first, weighted by `weights`, one shorter than `ids_BT`."""
    wanted = weights > 0
    losses = F.cross_entropy(model.lm_head(hidden_BTD[:, :-1][wanted]), ids_BT[:, 1:][wanted], reduction="none")
    return (losses * weights[wanted]).sum() / weights[wanted].sum()


def placed(embed: nn.Embedding, ids_BT: Tensor, mapped: list[int]) -> Tensor:
    """embedded_BTD; the first `mapped` words after BOS are told where on the map they stand."""
    embedded_BTD = embed(ids_BT)
    codes_BTD = torch.zeros_like(embedded_BTD)
    for row, words in enumerate(mapped):
        if words:
            codes_BTD[row, 1 : 1 + words] = place_codes(math.isqrt(words), embed.embedding_dim)
    return embedded_BTD + codes_BTD


def _padded(rows: list[Weighted]) -> tuple[Tensor, Tensor]:
    longest = min(LONGEST, max(len(row.ids) for row in rows))
    ids_BT = torch.full((len(rows), longest), 2)
    weights_BT = torch.zeros(len(rows), longest)
    for index, row in enumerate(rows):
        length = min(longest, len(row.ids))
        ids_BT[index, :length] = torch.tensor(row.ids[:length])
        weights_BT[index, :length] = torch.tensor(row.weights[:length])
    return ids_BT, weights_BT


def _save(model: PreTrainedModel, folder: Path, run: Run, note: str, card: str) -> None:
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    write_card(folder / card, folder.name, run, note)
