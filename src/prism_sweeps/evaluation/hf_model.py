"""Any image-text-to-text model of transformers, asked the benchmarks' questions.

Shapes: R rows (a question each, or a question with one option), S positions, V vocabulary, P positions of one image,
D channels of the language model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from prism_sweeps.evaluation.own_prompt import Options, OwnPrompt, Row, rows_of, starts_with_bos, too_long
from prism_sweeps.evaluation.requests import Answer, Answered, Request, Unanswered, by_image

WINDOW = 4
"""Batches among which questions are sorted by length; questions about one image come together first."""
UNLIMITED = 10**9
NOT_ASKED = ("labels",)
"""What processors make for training."""
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
"""All that counts of a model's own generation config: where answers begin and end."""


class RefusedError(ValueError):
    """The processor takes an image or a text not."""


class HFModel:
    """A model with its processor (`evaluation.requests.Answerer`).

    Free text is greedy, whatever the model's generation config says: no sampling, beams or penalties. Options are
    chosen by the mean log-likelihood of their tokens, or by that of the first ones. `batch` rows go through it at a
    time, padded, and say what each would alone.
    """

    def __init__(self, model: Any, processor: Any, batch: int) -> None:
        self.model, self.processor, self.batch = model.eval(), processor, max(1, batch)
        self.prompt = OwnPrompt.of(processor, model.config.model_type)
        self.positions = positions_of(model.config)
        self.text_positions = getattr(
            getattr(model.config, "qformer_config", None), "max_position_embeddings", UNLIMITED
        )
        tokenizer = processor.tokenizer
        # Of a language model alone, whose answer goes on from its text. An encoder's text may be padded behind; between
        # BLIP's image and text padding would change distances. A Q-Former's text counts from the left and stays so.
        tokenizer.padding_side = "right" if model.config.get_text_config().is_encoder_decoder else "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        make_greedy(model, tokenizer)

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request]) -> Iterator[list[Answered]]:
        for part in batches(requests, self.batch):
            rows, unanswered = rows_of(part, self.prompt)
            yield unanswered + self.answered(rows)

    def answered(self, rows: Sequence[Row]) -> list[Answered]:
        """What is said to all of them. Where the processor refuses a batch for one of them, each is asked alone."""
        try:
            said = self.said([row for row in rows if not row.request.options])
            return said + self.chosen([row for row in rows if row.request.options])
        except RefusedError as error:
            if len(rows) == 1:
                request = rows[0].request
                shown = "the grey image" if request.image is None else f"image '{request.image}'"
                reason = f"example '{request.id}' on {shown}: the model's processor takes it not: {error}"
                return [(request, Unanswered(reason))]
        return [found for row in rows for found in self.answered([row])]

    # ---- free text

    def said(self, rows: Sequence[Row]) -> list[Answered]:
        """Greedy answers, up to what a question allows or the model has room for."""
        if not rows:
            return []
        inputs = self.read(rows)
        groups: dict[int, list[Row]] = defaultdict(list)
        found: list[Answered] = []
        for row, length, room in zip(rows, lengths_of(inputs), self.rooms(inputs), strict=True):
            if room < 1:
                found.append((row.request, too_long(row.request, length, 1, self.room)))
            else:
                groups[min(row.request.limit, room)].append(row)
        for limit, group in groups.items():
            found += self.generated(group, inputs if len(group) == len(rows) else self.read(group), limit)
        return found

    def generated(self, rows: Sequence[Row], inputs: dict[str, Any], limit: int) -> list[Answered]:
        """Up to `limit` tokens for each row."""
        steps, ends = Steps(), end_ids(self.model)
        sequences = self.model.generate(**inputs, max_new_tokens=limit, stopping_criteria=[steps])
        found: list[Answered] = []
        for row, ids in zip(rows, sequences[:, -steps.count :].tolist(), strict=True):
            end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            text = self.processor.tokenizer.decode(ids[:end], skip_special_tokens=True)
            found.append((row.request, Answer(text.strip(), size=row.size)))
        return found

    # ---- options

    def chosen(self, rows: Sequence[Row]) -> list[Answered]:
        """The likeliest option of each.

        Options of one token are read off the question; each longer one is a row of its own, along which the model is
        led token by token.
        """
        options = [Options.of(row, self.prompt) for row in rows]
        paths = [(place, path) for place, each in enumerate(options) for path in paths_of(each.ids)]
        told: list[dict[tuple[int, ...], float]] = [{} for _ in rows]
        refused: dict[int, Unanswered] = {}
        for start in range(0, len(paths), self.batch):
            self.lead(paths[start : start + self.batch], rows, options, told, refused)
        found: list[Answered] = [(rows[place].request, why) for place, why in refused.items()]
        for place in [place for place in range(len(rows)) if place not in refused]:
            scores = [told[place][tuple(ids)] for ids in options[place].ids]
            found.append((rows[place].request, rows[place].likeliest(scores)))
        return found

    def lead(
        self,
        paths: Sequence[tuple[int, list[int]]],
        rows: Sequence[Row],
        options: Sequence[Options],
        told: list[dict[tuple[int, ...], float]],
        refused: dict[int, Unanswered],
    ) -> None:
        """Notes in `told` what rows make of these paths: the mean log-likelihood per token (nats) of each, and that of
        every first token; in `refused` the rows without room for their path."""
        inputs = self.read([rows[place] for place, _ in paths])
        fitting = []
        for (place, path), length, room in zip(paths, lengths_of(inputs), self.rooms(inputs), strict=True):
            if room < len(path):
                refused[place] = too_long(rows[place].request, length, len(path), self.room)
            else:
                fitting.append((place, path))
        if not fitting:
            return
        if len(fitting) < len(paths):
            inputs = self.read([rows[place] for place, _ in fitting])
        led = Led([path for _, path in fitting], [options[place].first_ids for place, _ in fitting])
        self.model.generate(**inputs, max_new_tokens=led.longest, logits_processor=[led])
        for (place, path), first, along in zip(fitting, led.first, led.along, strict=True):
            told[place] |= {(token,): value for token, value in first.items()}
            told[place][tuple(path)] = sum(along) / len(along)

    # ---- what goes in

    def rooms(self, inputs: dict[str, Any]) -> list[int]:
        """Positions that each row has left for an answer; none where its text is too long for a Q-Former."""
        rooms = [self.positions - length for length in lengths_of(inputs)]
        if "qformer_attention_mask" in inputs:
            texts = inputs["qformer_attention_mask"].sum(dim=1).tolist()
            rooms = [room if text <= self.text_positions else 0 for room, text in zip(rooms, texts, strict=True)]
        return rooms

    @property
    def room(self) -> str:
        """What there is of it, in words."""
        former = (
            "" if self.text_positions == UNLIMITED else f", or the text into the {self.text_positions} of its Q-Former"
        )
        return f"{self.positions} positions that the model has{former}"

    def read(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the processor makes of texts and images, on the model's device and in its precision.

        Raises RefusedError for what it does not take, e.g. Qwen's a picture 200 times as wide as it is high.
        """
        try:
            inputs = self.processor(
                text=[row.text for row in rows],
                images=[[row.image] for row in rows],
                add_special_tokens=not starts_with_bos(self.processor.tokenizer, rows[0].text),
                padding=True,
                return_tensors="pt",
            ).to(self.model.device, dtype=self.model.dtype)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        kept = {key: value for key, value in inputs.items() if key not in NOT_ASKED}
        return with_shared_images(self.model, kept, rows) if self.model.config.model_type == "llava" else kept


def with_shared_images(model: Any, inputs: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The same for LLaVA, whose images are encoded here, each once however many rows show it."""
    distinct = {id(row.image): place for place, row in reversed(list(enumerate(rows)))}
    features = model.get_image_features(pixel_values=inputs["pixel_values"][list(distinct.values())]).pooler_output
    of = dict(zip(distinct, features, strict=True))
    features_RPD = torch.stack([of[id(row.image)] for row in rows])
    embeds_RSD = model.get_input_embeddings()(inputs["input_ids"])
    image_RS1 = (inputs["input_ids"] == model.config.image_token_id)[:, :, None]
    return {
        "inputs_embeds": embeds_RSD.masked_scatter(image_RS1, features_RPD.to(embeds_RSD.dtype)),
        "attention_mask": inputs["attention_mask"],
    }


# ---- the loop of transformers, led and counted


class Led(LogitsProcessor):
    """Leads every row along its `path`, and notes how likely that was.

    Positions, masks and caches are each model class's own affair, which its `generate` knows; what the model would
    have said counts for nothing.
    """

    def __init__(self, paths: Sequence[Sequence[int]], first: Sequence[Sequence[int]]) -> None:
        self.paths = [list(path) for path in paths]
        self.longest = max(map(len, self.paths))
        self._asked_first = first
        self.first: list[dict[int, float]] = []
        """Row -> log-likelihood (nats) of each token it was to tell of, at the first step."""
        self.along: list[list[float]] = [[] for _ in self.paths]
        """Row -> log-likelihoods of its path's tokens."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        likely_RV = scores.float().log_softmax(dim=-1)
        step = max(map(len, self.along))
        if step == 0:
            self.first = [
                dict(zip(ids, likely_RV[row, list(ids)].tolist(), strict=True))
                for row, ids in enumerate(self._asked_first)
            ]
        forced_RV = torch.full_like(scores, -torch.inf)
        for row, path in enumerate(self.paths):
            token = path[min(step, len(path) - 1)]
            forced_RV[row, token] = 0.0
            if step < len(path):
                self.along[row].append(likely_RV[row, token].item())
        return forced_RV


class Steps(StoppingCriteria):
    """Counts the tokens that a run of `generate` has added: some classes give the question back with them, some not."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.count += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def paths_of(options: Sequence[Sequence[int]]) -> list[list[int]]:
    """The options that have several tokens, each once; where none has, the first one, which tells of all."""
    longer = {tuple(ids) for ids in options if len(ids) > 1}
    return [list(ids) for ids in sorted(longer)] or [list(options[0])]


# ---- about a model


def make_greedy(model: Any, tokenizer: Any) -> None:
    """Leaves nothing of the generation configs in it but where answers begin and end.

    Some classes hand generation on to a language model inside of them, which has a config of its own.
    """
    for module in model.modules():
        own = getattr(module, "generation_config", None)
        if own is None:
            continue
        ends = {name: getattr(own, name, None) for name in ENDS}
        ends["eos_token_id"] = tokenizer.eos_token_id if ends["eos_token_id"] is None else ends["eos_token_id"]
        ends["pad_token_id"] = tokenizer.pad_token_id if ends["pad_token_id"] is None else ends["pad_token_id"]
        module.generation_config = GenerationConfig(do_sample=False, num_beams=1, **ends)


def end_ids(model: Any) -> set[int]:
    """Tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def positions_of(config: Any) -> int:
    """Positions that the language model has for image, text and answer; no limit where its positions are relative."""
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found or UNLIMITED


def lengths_of(inputs: dict[str, Any]) -> list[int]:
    lengths: list[int] = inputs["attention_mask"].sum(dim=1).tolist()
    return lengths


def batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Questions about one image together, and of like length within a few batches."""
    ordered = list(chain.from_iterable(by_image(requests)))
    for start in range(0, len(ordered), WINDOW * size):
        window = sorted(ordered[start : start + WINDOW * size], key=lambda request: len(request.text))
        yield from (window[first : first + size] for first in range(0, len(window), size))
