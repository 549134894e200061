"""Each question with an image of its own: what stands in until prefixes are shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.answers import generate, option_scores, read_questions
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.evaluation.requests import Answer, Answered, Request, Unanswered
from prism_sweeps.models.resize import load_image


@dataclass(frozen=True)
class Unshared:
    model: LoadedModel
    engine: Engine

    def answers(self, requests: Sequence[Request]) -> Iterator[list[Answered]]:
        for start in range(0, len(requests), self.engine.eval_batch):
            yield [(each, self.answer(each)) for each in requests[start : start + self.engine.eval_batch]]

    @torch.inference_mode()
    def answer(self, request: Request) -> Answer | Unanswered:
        model = self.model
        try:
            image = None if request.image is None else load_image(request.image)
        except DataError as error:
            return Unanswered(f"example '{request.id}': {error}")
        pixels = model.transform.blank() if image is None else model.transform(image)
        tokens = model.vlm.image_tokens(
            {name: each[None].to(model.device, model.dtype) for name, each in pixels.items()}
        )
        ids = model.prompts.question(request.text)
        if model.text_positions - len(ids) < 1:
            return Unanswered(
                f"example '{request.id}': {len(ids)} tokens of text, room for {model.text_positions} positions"
            )
        size = None if image is None else image.size
        if request.options:
            options = [model.prompts.answer(option) for option in request.options]
            scores = option_scores(model.vlm, read_questions(model.vlm, tokens, [ids]), [options])[0]
            return Answer(request.options[max(range(len(scores)), key=scores.__getitem__)], tuple(scores), size)
        limit = min(request.limit, model.text_positions - len(ids))
        return Answer(
            model.prompts.decode(generate(model.vlm, tokens, [ids], model.prompts.end_ids, [limit])[0]), (), size
        )
