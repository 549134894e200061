"""A model that can be asked, requests about pictures on disk, and what plain transformers says to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_evaluation import model_spec, tiny_vlm
from torch import Tensor
from transformers import PreTrainedModel

from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.evaluation.prism_model import PrismModel
from prism_sweeps.evaluation.requests import Answer, Request, Unanswered
from prism_sweeps.models.language import byte_tokenizer
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import image_transform, load_image
from prism_sweeps.models.vlm import VLM


def loaded(vlm: VLM | None = None, prompt: str = "chat-template") -> LoadedModel:
    """`tiny_vlm` or another one with its vision tower, as an evaluation has it."""
    spec = model_spec()
    return LoadedModel(
        vlm=vlm or tiny_vlm(),
        prompts=prompt_format(replace(spec.llm, prompt=prompt), byte_tokenizer()),
        transform=image_transform(spec.backbone, spec.resolution, spec.resize),
        text_positions=spec.llm.context - 16,
    )


def with_llm(llm: PreTrainedModel) -> LoadedModel:
    """The tiny model with another language model, 32 channels wide, whose weights are made large."""
    vlm = tiny_vlm()
    with torch.no_grad():
        for parameter in llm.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return loaded(VLM(vlm.vision, vlm.projector, llm).eval())


def pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        drawn = np.random.default_rng(number).integers(0, 255, (20, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(path)
    return paths


def request(name: str, image: Path | None, text: str, *options: str, **changes: object) -> Request:
    shown = None if image is None else image.name
    return replace(Request(name, shown, image, text, options, limit=8), **changes)


def answered(
    model: LoadedModel, requests: Sequence[Request], batch: int = 4, **engine: object
) -> dict[str, Answer | Unanswered]:
    """By the id of the request; each comes once."""
    asked = PrismModel(model, Engine(device="cpu", eval_batch=batch, **engine))
    pairs = [pair for part in asked.answers(requests) for pair in part]
    assert len(pairs) == len(requests)
    return {each.id: answer for each, answer in pairs}


@torch.inference_mode()
def embedded(model: LoadedModel, image: Path | None, ids: Sequence[int]) -> Tensor:
    """What the language model is given, alone in its batch: [BOS] [patches] [text]."""
    pixels = model.transform.blank() if image is None else model.transform(load_image(image))
    tokens_PD = model.vlm.image_tokens({name: each[None] for name, each in pixels.items()})[0]
    text_TD = model.vlm.llm.get_input_embeddings()(torch.tensor(ids))
    return torch.cat([text_TD[:1], tokens_PD, text_TD[1:]])[None]


@torch.inference_mode()
def greedy_without_cache(model: LoadedModel, each: Request) -> str:
    """The answer by one pass over everything for every token."""
    ids, said = model.prompts.question(each.text), list[int]()
    while len(said) < each.limit:
        given = embedded(model, each.image, [*ids, *said])
        token = int(model.vlm.llm(inputs_embeds=given, use_cache=False).logits[0, -1].argmax())
        if token in model.prompts.end_ids:
            break
        said.append(token)
    return model.prompts.decode(said)


@torch.inference_mode()
def greedy_by_transformers(model: LoadedModel, each: Request) -> str:
    """The answer by `generate` of transformers."""
    ids = model.vlm.llm.generate(
        inputs_embeds=embedded(model, each.image, model.prompts.question(each.text)),
        max_new_tokens=each.limit,
        do_sample=False,
        eos_token_id=model.prompts.end_ids or None,
        pad_token_id=1,
    )[0]
    return model.prompts.decode([token for token in ids.tolist() if token not in model.prompts.end_ids])


@torch.inference_mode()
def likelihoods_without_cache(model: LoadedModel, each: Request) -> list[float]:
    """Of each option, by one pass over question and option."""
    ids, found = model.prompts.question(each.text), []
    for option in each.options:
        tokens = model.prompts.answer(option)
        given = embedded(model, each.image, [*ids, *tokens])
        logits_SV = model.vlm.llm(inputs_embeds=given, use_cache=False).logits[0].double().log_softmax(dim=-1)
        gained = logits_SV[-len(tokens) - 1 : -1][range(len(tokens)), tokens]
        found.append(float(gained[0] if each.likelihood == "first-token" else gained.mean()))
    return found
