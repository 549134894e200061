"""A trained model answers requests: each image is read once, and what is asked about it in batches.

Shapes: I images, P patches, D channels of the language model, C colour channels, H height, W width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.answers import first_scores, greedy, option_scores
from prism_sweeps.evaluation.images import Opened, Picture, opened_ahead
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.evaluation.prefix import SPARE, Read, bears_padding, read_prefix, read_suffixes
from prism_sweeps.evaluation.questions import (
    Group,
    Question,
    common_prefix,
    option_tokens,
    question_of,
    rounds,
    units,
)
from prism_sweeps.evaluation.requests import Answer, Answered, Request, Unanswered
from prism_sweeps.evaluation.steps import EAGER

LOG = logging.getLogger(__name__)


class PrismModel:
    """An `Answerer`. Answers do not depend on what else is asked, but for the last bits of likelihoods."""

    def __init__(self, model: LoadedModel, engine: Engine) -> None:
        self.model = model
        self.engine = engine
        self.steps = model.compiled if engine.compile else EAGER
        self.waited = 0.0
        """Seconds of the last `answers` in which the model had no images to look at yet."""

    @property
    def batch(self) -> int:
        """Questions at a time."""
        return max(1, self.engine.eval_batch)

    def answers(self, requests: Sequence[Request]) -> Iterator[list[Answered]]:
        """See `Answerer.answers`."""
        options = option_tokens(requests, self.model.prompts)
        work = units(requests, self.batch)
        paths = [[group[0].image for group in unit] for unit in work]
        opened = opened_ahead(paths, self.model.transform, self.engine.data_workers, self.model.device)
        began, self.waited = time.perf_counter(), 0.0
        for unit, pictures in zip(work, self.awaited(opened), strict=True):
            yield from self.answered(unit, pictures, options)
        spent = time.perf_counter() - began
        LOG.info("%d questions in %.1f s, %.1f of them waiting for images", len(requests), spent, self.waited)

    def awaited(self, opened: Iterator[list[Opened]]) -> Iterator[list[Opened]]:
        """The same; the time it takes is counted."""
        while True:
            began = time.perf_counter()
            pictures = next(opened, None)
            self.waited += time.perf_counter() - began
            if pictures is None:
                return
            yield pictures

    def answered(
        self, unit: Sequence[Group], pictures: Sequence[Opened], options: Mapping[str, list[int]]
    ) -> Iterator[list[Answered]]:
        """What is said to all questions about these images, batch by batch; first those that have no answer."""
        questions, unanswered = self.questions(unit, pictures, options)
        if unanswered:
            yield unanswered
        if not questions:
            return
        batches = rounds(questions, self.batch, bears_padding(self.model.vlm.llm))
        begin = common_prefix(questions)
        places = {
            image: place for place, image in enumerate(dict.fromkeys(q.image for batch in batches for q in batch))
        }
        seen = [pictures[image] for image in places]
        # A single batch may go on in the very memory that its images were read into.
        prefixes = read_prefix(
            self.model.vlm, image_tokens(self.model, seen), begin, self.room(batches[0]) if len(batches) == 1 else 0
        )
        for batch in batches:
            images = [places[question.image] for question in batch]
            rest = [question.ids[len(begin) :] for question in batch]
            read = read_suffixes(self.model.vlm, prefixes, images, rest, self.room(batch))
            yield [
                (question.request, Answer(text, likelihoods, pictures[question.image].size))
                for question, (text, likelihoods) in zip(batch, self.said(batch, read), strict=True)
            ]

    def questions(
        self, unit: Sequence[Group], pictures: Sequence[Opened], options: Mapping[str, list[int]]
    ) -> tuple[list[Question], list[Answered]]:
        """What can be asked, and what cannot."""
        asked: list[Question] = []
        unanswered: list[Answered] = []
        for image, (group, picture) in enumerate(zip(unit, pictures, strict=True)):
            for request in group:
                if isinstance(picture, DataError):
                    unanswered.append((request, Unanswered(f"example '{request.id}': {picture}")))
                    continue
                found = question_of(request, image, options, self.model.prompts, self.model.text_positions)
                if isinstance(found, Question):
                    asked.append(found)
                else:
                    unanswered.append((request, found))
        return asked, unanswered

    def said(self, batch: Sequence[Question], read: Read) -> list[tuple[str, tuple[float, ...]]]:
        """Text and log-likelihoods of each answer of a batch, whose questions all have options, or none has."""
        if batch[0].options:
            return chosen(self.model, batch, read)
        limits = [question.limit for question in batch]
        ids = greedy(self.model.vlm, read, self.model.prompts.end_ids, limits, self.steps)
        return [(self.model.prompts.decode(each), ()) for each in ids]

    def room(self, batch: Sequence[Question]) -> int:
        """Positions that question and answer take; of a long answer only its beginning."""
        answers = [max(map(len, question.options), default=min(question.limit, SPARE)) for question in batch]
        return self.model.vlm.vision.patches + max(len(question.ids) for question in batch) + max(answers)


def chosen(model: LoadedModel, batch: Sequence[Question], read: Read) -> list[tuple[str, tuple[float, ...]]]:
    """The likeliest option of each question, the first of equals, and the log-likelihoods of all."""
    options = [question.options for question in batch]
    first, whole = first_scores(read, options), None
    if any(question.request.likelihood == "full-string" for question in batch):
        whole = option_scores(model.vlm, read, options)
    found = []
    for row, question in enumerate(batch):
        scores = first[row] if whole is None or question.request.likelihood == "first-token" else whole[row]
        likeliest = max(range(len(scores)), key=scores.__getitem__)
        found.append((question.request.options[likeliest], tuple(scores)))
    return found


@torch.inference_mode()
def image_tokens(model: LoadedModel, pictures: Sequence[Picture]) -> Tensor:
    """tokens_IPD in the language model's width."""
    stacked = {tower: torch.stack([each.pixels[tower] for each in pictures]) for tower in pictures[0].pixels}
    return model.vlm.image_tokens({tower: of_all.to(model.device, model.dtype) for tower, of_all in stacked.items()})
