"""Our models in lmms-eval (EvolvingLMMs-Lab, 0.7): its tasks, its prompts and scorers, our model.

    pip install 'prism-sweeps[lmms-eval]'
    lmms-eval --model prism --model_args pretrained=FOLDER,precision=fp32 --tasks mmbench_en_dev --batch_size 8

FOLDER is what `prism export` or `prism import` wrote. lmms-eval finds the name `prism` by this package's entry point
(group `lmms_eval.models`). What `prism export --format llava` wrote it also runs by its own `--model llava_hf`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.prism_model import PrismModel
from prism_sweeps.evaluation.requests import Answer, Request
from prism_sweeps.interop import prism

MOST_TOKENS = 128
"""Of an answer, where a task does not say."""
NAME = "prism"


class Prism(lmms):  # type: ignore[misc]
    """One of our models as lmms-eval wants it: one process, one image a question, greedy answers."""

    is_simple = True
    """It is told of a question and its images, and puts its own prompt around them."""

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        precision: str | None = None,
        batch_size: int | str = 1,
        **unknown: Any,
    ) -> None:
        """`pretrained` is a folder in the prism format. Raises ConfigError and StoreError."""
        super().__init__()
        # lmms-eval hands these to every model; without --device it says None.
        unused = {key: value for key, value in unknown.items() if key not in ("max_batch_size",) and value is not None}
        if unused:
            known = "pretrained, device, precision, batch_size"
            raise ConfigError(f"--model_args {', '.join(sorted(unused))}: not known; known are {known}")
        self.model = prism.load(pretrained, device or "auto", precision)
        self.batch = int(batch_size) if str(batch_size).isdecimal() else 1

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy text up to the task's `until`. Raises ConfigError for a task that wants sampling or beams."""
        asked, ends = [], []
        for context, wanted, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            check_greedy(wanted, task)
            limit = int(wanted.get("max_new_tokens") or wanted.get("max_gen_toks") or MOST_TOKENS)
            asked.append((self.image_of(doc_to_visual, task, split, doc_id), context, (), limit))
            ends.append(ends_of(wanted))
        answers = self.answers(asked)
        return [cut(answer.text, until) for answer, until in zip(answers, ends, strict=True)]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of each continuation its loss, and whether it is what the model says.

        The loss is the negative mean log-likelihood per token (nats): whatever the abstract class says, lmms-eval's
        tasks take the least of what they get here (`task.py`: "we return the actual loss"). The pair is wrapped as
        text is, since 0.7.3 makes a string of anything else, and its tasks then fail (`unwrap_generation_output`).
        """
        scored, free = [], []
        for context, target, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            text = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
            option, image = str(text).strip(), self.image_of(doc_to_visual, task, split, doc_id)
            length = len(self.model.loaded.prompts.answer(option))
            scored.append((image, context, (option,), length))
            free.append((image, context, (), max(1, length)))
        likely, said = self.answers(scored), self.answers(free)
        return [
            GenerationResult(text=(-answer.log_likelihoods[0], greedy.text == options[0]))
            for answer, greedy, (_, _, options, _) in zip(likely, said, scored, strict=True)
        ]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not known to models that were trained on one image and one question."""
        raise ConfigError("this model answers one question about one image; tasks of several rounds are not for it")

    # ---- between the two

    def image_of(self, doc_to_visual: Any, task: str, split: str, doc_id: Any) -> Image.Image:
        """The one image of a document. Raises ConfigError for a task with none, several, or a video."""
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
            told = ", ".join(type(each).__name__ for each in visuals) or "nothing"
            raise ConfigError(f"task {task}, document {doc_id}: one image is wanted, and it shows {told}")
        return visuals[0].convert("RGB")

    def answers(self, asked: Sequence[tuple[Image.Image, str, tuple[str, ...], int]]) -> list[Answer]:
        """To (image, question, options, tokens), in this order. Raises DataError for one that has no answer."""
        engine = Engine(name=NAME, eval_batch=self.batch)
        with tempfile.TemporaryDirectory(prefix="prism-lmms-eval-") as folder:
            requests = requests_of(asked, Path(folder))
            told = {}
            for part in PrismModel(self.model.loaded, engine).answers(requests):
                for request, answer in part:
                    if not isinstance(answer, Answer):
                        raise DataError(answer.reason)
                    told[request.id] = answer
        return [told[request.id] for request in requests]


def requests_of(asked: Sequence[tuple[Image.Image, str, tuple[str, ...], int]], folder: Path) -> list[Request]:
    """What is asked, with its images as lossless files; an image that several questions show is one."""
    names: dict[bytes, str] = {}
    requests = []
    for number, (image, question, options, limit) in enumerate(asked):
        pixels = repr(image.size).encode() + image.tobytes()
        if pixels not in names:
            names[pixels] = f"{len(names)}.png"
            image.save(folder / names[pixels], compress_level=1)
        name = names[pixels]
        requests.append(Request(str(number), name, folder / name, question, options, limit))
    return requests


def check_greedy(wanted: Mapping[str, Any], task: str) -> None:
    """Raises ConfigError where a task wants more than the likeliest answer."""
    samples = wanted.get("do_sample") and float(wanted.get("temperature") or 0) > 0
    if samples or int(wanted.get("num_beams") or 1) > 1:
        raise ConfigError(f"task {task} samples or searches with beams; this model answers greedily (--gen_kwargs)")


def ends_of(wanted: Mapping[str, Any]) -> list[str]:
    """Texts that end an answer."""
    until = wanted.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def cut(text: str, ends: Sequence[str]) -> str:
    """`text` up to the first of `ends`."""
    places = [text.find(end) for end in ends if end and end in text]
    return text[: min(places)] if places else text
