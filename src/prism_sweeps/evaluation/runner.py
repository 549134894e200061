"""One evaluation job: ask what has not been answered yet, put it down as it comes, then score all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import DataError, StoreError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.data.prepare import ensure_dataset
from prism_sweeps.evaluation.asked import Asked, asked_of, shares
from prism_sweeps.evaluation.benchmarks import Example
from prism_sweeps.evaluation.requests import Answer, Answered, Answerer, Request, Size, Unanswered
from prism_sweeps.evaluation.results import result_of
from prism_sweeps.evaluation.scorers import Row, scorer
from prism_sweeps.evaluation.together import ALONE, Peers, agreed
from prism_sweeps.models.resize import frame, load_image
from prism_sweeps.tracking.answers import AnswerFiles
from prism_sweeps.tracking.records import Interrupted, JobRecord, Report, Store

Spec = EvaluationSpec | BaselineSpec
NAMED = 3
"""Questions without an answer that an error tells the reasons of."""


def evaluate(
    spec: Spec,
    record: JobRecord,
    store: Store,
    engine: Engine,
    report: Report,
    stop: Callable[[], bool],
    world: Peers = ALONE,
) -> dict[str, Any]:
    """Score the model of `spec` on its benchmark.

    Answers are kept as they come, apart from scores (`tracking.answers`): whoever goes on from them, with batches of
    another size or on another number of processes, asks only the rest, and who only scores them otherwise asks nothing
    and loads no model. Several processes each ask a share; the first one scores. Where one is to stop all do.

    Returns score, standard_error (percent), n, metrics and groups (see `results.result_of`), in processes other than
    the first nothing. Raises Interrupted when `stop()` asked for it; DataError at the end where questions could not be
    answered (the other answers are kept); ConfigError, DataError or StoreError. What one process raises all do.
    """
    asked, answers = agreed(lambda: begun(spec, record, store, engine, report), world)
    known = world.told_by_first(agreed(lambda: set(answers.read()) if world.rank == 0 else None, world))
    left = [each for each in asked if each.request.key not in known]
    mine = shares(left, world.size)[world.rank]

    def answered() -> tuple[list[str], bool]:
        if not mine:
            return [], False
        heard = stop if world.size == 1 else heard_by_all(stop, record)
        progress = Progress(len(asked) - len(left), len(asked), len(mine), report, heard)
        return put_down(answerer(spec, store, engine).answers(mine), answers, progress)

    told = world.all_say((*agreed(answered, world), answers.writer))
    kept = agreed(lambda: answers.read(writer for *_, writer in told) if world.rank == 0 else {}, world)
    if any(stopped for _, stopped, _ in told):
        raise Interrupted(f"stopped after {sum(each.request.key in kept for each in asked)} of {len(asked)} questions")
    reasons = [reason for reasons, *_ in told for reason in reasons]
    check_all_answered(reasons, len(asked), answers.folder)
    return agreed(lambda: ended(asked, kept, answers.folder, spec, record) if world.rank == 0 else {}, world)


def heard_by_all(stop: Callable[[], bool], record: JobRecord) -> Callable[[], bool]:
    """`stop` in any of the processes of a job: a file beside its record, which the next attempt clears away."""
    notice = record.path / ".stop.tmp"

    def heard() -> bool:
        if stop():
            notice.touch()
            return True
        return notice.exists()

    return heard


@dataclass(frozen=True)
class Progress:
    """How far the job was before this process began, and whom to tell."""

    done: int
    total: int
    mine: int
    """Questions that this process asks."""
    report: Report
    stop: Callable[[], bool]

    def after(self, asked: int) -> int:
        """Questions that all processes have asked, if the others are as fast as this one."""
        return self.done + asked * (self.total - self.done) // self.mine


def begun(
    spec: Spec, record: JobRecord, store: Store, engine: Engine, report: Report
) -> tuple[list[Asked], AnswerFiles]:
    """What is to be asked, and the place for answers."""
    folder = benchmark_folder(spec.benchmark, store, engine, report)
    return asked_of(folder, spec.benchmark, spec.condition), AnswerFiles.of(spec, record, store)


def ended(
    asked: Sequence[Asked], kept: Mapping[str, Mapping[str, Any]], folder: Path, spec: Spec, record: JobRecord
) -> dict[str, Any]:
    """The result, once all of the questions have an answer that is kept in `folder`."""
    if gone := sum(each.request.key not in kept for each in asked):
        raise StoreError(f"{gone} answers in {folder} are gone since the job began; run it again to ask anew")
    rows = [scored(each, kept[each.request.key], spec) for each in asked]
    record.write_predictions([without_likelihoods(row) for row in rows])
    return result_of(rows, spec.benchmark)


def benchmark_folder(benchmark: Benchmark, store: Store, engine: Engine, report: Report) -> Path:
    """The folder with the benchmark's index, prepared first where the dataset is one that can be."""
    dataset = Path(benchmark.index).parts[0]
    ensure_dataset(dataset, store.data, engine.workers, report)
    return store.data / benchmark.index


def answerer(spec: Spec, store: Store, engine: Engine) -> Answerer:
    """The model that is asked. Raises StoreError and ConfigError for one that cannot be loaded."""
    if isinstance(spec, BaselineSpec):
        from prism_sweeps.evaluation.baselines import answerer_of

        return answerer_of(spec, engine)
    from prism_sweeps.evaluation.loading import load_model
    from prism_sweeps.evaluation.prism_model import PrismModel

    return PrismModel(load_model(spec.model, store.job(spec.parent).weights, spec.precision, engine), engine)


def put_down(batches: Iterable[list[Answered]], answers: AnswerFiles, progress: Progress) -> tuple[list[str], bool]:
    """Keeps every batch of answers once it is there.

    Returns why some questions have none, and whether it was told to stop before all were asked.
    """
    asked, reasons = 0, list[str]()
    for batch in batches:
        answers.append([row_of(each, answer) for each, answer in batch if isinstance(answer, Answer)])
        reasons += [answer.reason for _, answer in batch if isinstance(answer, Unanswered)]
        asked += len(batch)
        note = f"{len(reasons)} without an answer" if reasons else ""
        progress.report(progress.after(asked), progress.total, note)
        if asked < progress.mine and progress.stop():
            return reasons, True
    return reasons, False


def row_of(request: Request, answer: Answer) -> dict[str, Any]:
    """What is kept of one answer."""
    row = {"request": request.key, "id": request.id, "answer": answer.text}
    if answer.log_likelihoods:
        row["log_likelihoods"] = list(answer.log_likelihoods)
    return row | {"size": answer.size and list(answer.size)}


def check_all_answered(reasons: Sequence[str], total: int, folder: Path) -> None:
    """Raises DataError where there are reasons."""
    if reasons:
        more = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        raise DataError(
            f"{len(reasons)} of {total} questions cannot be answered: {'; '.join(sorted(reasons)[:NAMED])}{more}. The "
            f"other answers are kept in {folder}: once that is mended, only these are asked"
        )


def scored(asked: Asked, kept: Mapping[str, Any], spec: Spec) -> Row:
    """The row of one example, with what the scorer needs and what it says."""
    row: Row = {
        "id": asked.example.id,
        "image": asked.example.key,
        "answer": kept["answer"],
        "score": 0.0,
        "gold": asked.gold,
        "tags": asked.example.tags,
    }
    if asked.request.options:
        row["log_likelihoods"] = dict(zip(asked.request.options, kept["log_likelihoods"], strict=True))
    if spec.benchmark.answer == "box":
        size = kept["size"] or size_behind(asked.example, spec.benchmark)
        row |= {"size": size, "seen": size and seen_square(spec, tuple(size))}
    row["score"] = scorer(spec.benchmark.scorer).score(row, spec.benchmark)
    return row


def size_behind(example: Example, benchmark: Benchmark) -> list[int] | None:
    """The size of the image that a grey one was shown for, where boxes cannot be read without one."""
    if (benchmark.box_units, benchmark.box_frame) == ("normalised", "image"):
        return None
    return list(load_image(example.image).size)


def seen_square(spec: Spec, size: Size) -> list[float] | None:
    """Where the square that the model is shown lies: x1, y1, x2, y2, normalised by the image's size; unknown: None."""
    if isinstance(spec, BaselineSpec):
        return None
    placed = frame(size, spec.model.resize.strategy, spec.model.resolution.pixels)
    edges = (0, 0, placed.pixels, placed.pixels)
    return [(edge - placed.shift[i % 2]) / placed.scale[i % 2] / size[i % 2] for i, edge in enumerate(edges)]


def without_likelihoods(row: Row) -> Row:
    """What is written beside the score; likelihoods, whose last bits depend on the batch, stay with the answers."""
    return {key: value for key, value in row.items() if key != "log_likelihoods"}
