"""One evaluation job: ask, score, write down; and one question asked by hand.

Shapes: I images, P patches, D channels of the language model, C colour channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import EvaluationSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.data.prepare import ensure_dataset
from prism_sweeps.evaluation.answers import choose, generate
from prism_sweeps.evaluation.benchmarks import read_index
from prism_sweeps.evaluation.conditions import shown_images
from prism_sweeps.evaluation.loading import LoadedModel, load_model
from prism_sweeps.evaluation.questions import Question, questions_of, room_left, windows
from prism_sweeps.evaluation.results import result_of
from prism_sweeps.evaluation.scorers import Row, accuracy, scorer
from prism_sweeps.models.resize import load_image
from prism_sweeps.tracking.records import Interrupted, JobRecord, Report, Store

Images = dict[Path | None, Tensor]
"""Image -> its tokens_PD; None is the grey image."""


def evaluate(
    spec: EvaluationSpec,
    record: JobRecord,
    store: Store,
    engine: Engine,
    report: Report,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Score the weights of `spec.parent` on `spec.benchmark`.

    Every batch is appended to the record's predictions once it is scored; answers already there are kept, and an
    attempt that goes on from them asks the rest in the same batches, so its result is that of an uninterrupted one.

    Returns score, standard_error (percent), n, metrics and groups (see `results.result_of`). Raises Interrupted when
    `stop()` asked for it, and DataError, ConfigError or StoreError.
    """
    examples = read_index(benchmark_folder(spec.benchmark, store, engine, report), spec.benchmark.examples)
    model = load_model(spec.model, store.job(spec.parent).weights, spec.precision, engine)
    shown = shown_images(examples, spec.condition)
    questions = questions_of(examples, shown, spec.benchmark, model.prompts, model.text_positions)
    done = earlier_rows(record, questions)
    for batch, images in unanswered(model, questions, done, max(1, engine.eval_batch)):
        rows = [row for row in answer_batch(model, batch, images, spec.benchmark) if row["id"] not in done]
        record.append_predictions(rows)
        done |= {row["id"]: row for row in rows}
        report(len(done), len(questions), f"score {accuracy(list(done.values())):.1f}")
        if len(done) < len(questions) and stop():
            raise Interrupted(f"stopped after {len(done)} of {len(questions)} questions")
    return result_of(list(done.values()), spec.benchmark)


def benchmark_folder(benchmark: Benchmark, store: Store, engine: Engine, report: Report) -> Path:
    """The folder with the benchmark's index, prepared first where the dataset is one that can be."""
    dataset = Path(benchmark.index).parts[0]
    ensure_dataset(dataset, store.data, engine.workers, report)
    return store.data / benchmark.index


def earlier_rows(record: JobRecord, questions: Sequence[Question]) -> dict[str, Row]:
    """Predictions of an earlier attempt by id. Raises DataError when they are not about these questions."""
    done = {row["id"]: row for row in record.read_predictions()}
    golds = {question.example.id: question.gold for question in questions}
    for name, row in done.items():
        if name not in golds or golds[name] != row["gold"]:
            raise DataError(
                f"{record.predictions} has an answer to example '{name}', which the benchmark's index does not have "
                "(any more) with that solution; give the changed benchmark another `version`, or remove that file"
            )
    return done


def unanswered(
    model: LoadedModel, questions: Sequence[Question], done: Container[str], size: int
) -> Iterator[tuple[list[Question], Images]]:
    """Batches with a question that is not `done` when their turn comes, with their images encoded.

    A batch that is done in part comes whole, and images are encoded in the same company, done or not: so all numbers
    are those of a run without a break, to the last bit.
    """
    for group in windows(questions, size):
        images: Images = {}
        for batch in group:
            if all(question.example.id in done for question in batch):
                continue
            images = images or encode_images(model, group, size)
            yield batch, images


def answer_batch(model: LoadedModel, batch: Sequence[Question], images: Images, benchmark: Benchmark) -> list[Row]:
    """The scored answers to one batch."""
    score = scorer(benchmark.scorer).score
    return [
        {
            "id": question.example.id,
            "image": question.example.key,
            "answer": answer,
            "score": score({"answer": answer, "gold": question.gold}, benchmark),
            "gold": question.gold,
            "tags": question.example.tags,
        }
        for question, answer in zip(batch, answers_to(model, batch, images), strict=True)
    ]


def answers_to(model: LoadedModel, batch: Sequence[Question], images: Images) -> list[str]:
    """The likeliest option where a question has options, else greedy text."""
    tokens_BPD = torch.stack([images[question.image] for question in batch])
    ids = [question.ids for question in batch]
    if batch[0].options:
        chosen = choose(model.vlm, tokens_BPD, ids, [list(question.options.values()) for question in batch])
        return [list(question.options)[place] for question, place in zip(batch, chosen, strict=True)]
    limits = [question.limit for question in batch]
    answers = generate(model.vlm, tokens_BPD, ids, model.prompts.end_ids, limits)
    return [model.prompts.decode(answer) for answer in answers]


def encode_images(model: LoadedModel, group: Sequence[Sequence[Question]], size: int) -> Images:
    """Tokens of every image that the group shows, each encoded once, `size` at a time."""
    asked_of = {question.image: question for batch in group for question in batch}
    paths = list(asked_of)
    images: Images = {}
    for start in range(0, len(paths), size):
        part = paths[start : start + size]
        tokens_IPD = image_tokens(model, [pixels_of(model, asked_of[path]) for path in part])
        images |= zip(part, tokens_IPD, strict=True)
    return images


def pixels_of(model: LoadedModel, question: Question) -> dict[str, Tensor]:
    """Tower -> pixels_CHW of what is shown. Raises DataError naming example and file."""
    if question.image is None:
        return model.transform.blank()
    try:
        return model.transform(load_image(question.image))
    except DataError as error:
        raise DataError(f"example '{question.example.id}': {error}") from None


@torch.inference_mode()
def image_tokens(model: LoadedModel, pixels: Sequence[dict[str, Tensor]]) -> Tensor:
    """tokens_IPD in the language model's width."""
    stacked = {tower: torch.stack([of_one[tower] for of_one in pixels]) for tower in pixels[0]}
    return model.vlm.image_tokens({tower: of_all.to(model.device, model.dtype) for tower, of_all in stacked.items()})


def ask(model: LoadedModel, image: Path, question: str, max_new_tokens: int = 128) -> str:
    """The model's answer to one question about one image.

    Raises DataError for an image that cannot be read or a question too long for the language model.
    """
    ids = model.prompts.question(question)
    limit = min(max_new_tokens, room_left(ids, model.text_positions, 1, "the question"))
    tokens_1PD = image_tokens(model, [model.transform(load_image(image))])
    return model.prompts.decode(generate(model.vlm, tokens_1PD, [ids], model.prompts.end_ids, [limit])[0])
