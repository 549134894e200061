"""Official scores: what one answer earns, 0..1, and what a benchmark reports besides its score.

| scorer | an answer is right when | source |
|---|---|---|
| vqav2, vizwiz, textvqa | soft accuracy over ten human answers | GT-Vision-Lab/VQA, VizWiz API, facebookresearch/mmf |
| gqa | equal to the answer, prediction lower-cased without punctuation | GQA eval.py, as called by vlm-evaluation |
| exact | equal to one of the answers, both lower-cased without punctuation | - |
| choice, pope | the option chosen is the answer (letter case aside) | VSR; POPE (Li et al. 2023) |
| letter, tallyqa, ai2d | the letter chosen is the answer | vlm-evaluation |
| iou | its box overlaps the true one by `iou_threshold` or more | RefCOCO, OCID-Ref |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.benchmarks import LETTERS, Example
from prism_sweeps.evaluation.boxes import overlap, parse_box
from prism_sweeps.evaluation.text_normalisation import (
    textvqa_answer,
    vqa_answer,
    vqa_punctuation,
    without_punctuation,
)

Row = dict[str, Any]
"""One answer: id, image (what questions cluster by), answer, gold, tags and, once it is scored, score (0..1).

Where there are options it may have `log_likelihoods` ({option: nats}). Where the answer is a box it has `size` ([width,
height] of the image in pixels) and `seen` ([x1, y1, x2, y2]: where the square that the model was shown lies, relative
to the image and normalised by its size; null where that is not known).
"""
Gold = Any
"""What the row keeps of the truth: a list of strings (vqav2, vizwiz, textvqa, exact), a box (iou), else a string."""

HUMAN_ANSWERS = 10
LETTER = re.compile(r"\s*\(?([A-Z])(?![A-Za-z0-9])")


@dataclass(frozen=True)
class Scorer:
    """`score(row, benchmark)` is one answer's worth, 0..1; `metrics(rows, benchmark)` further numbers, in percent.

    `gold` takes the truth out of an example and raises ValueError, with the reason, when it is not there.
    """

    score: Callable[[Row, Benchmark], float]
    gold: Callable[[Example], Gold]
    metrics: Callable[[Sequence[Row], Benchmark], dict[str, float]] = lambda rows, benchmark: {}
    equal_splits: bool = False
    """The score is the unweighted mean over the values of the tag `split`, not over examples."""


def scorer(name: str) -> Scorer:
    """The scorer of that name. Raises ConfigError."""
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer '{name}'; {nearest(name, SCORERS)}")
    return SCORERS[name]


def gold_of(example: Example, benchmark: Benchmark) -> Gold:
    """What the benchmark's scorer compares an answer with. Raises DataError when the example lacks it."""
    try:
        gold = scorer(benchmark.scorer).gold(example)
        if benchmark.answer == "choice" and gold not in benchmark.choices:
            raise ValueError(f"its answer '{gold}' is not among the choices {', '.join(benchmark.choices)}")
    except ValueError as error:
        raise DataError(f"{benchmark.name}, example '{example.id}' (scorer {benchmark.scorer}): {error}") from None
    return gold


# ---- what the truth is


def ten_answers(example: Example) -> list[str]:
    if len(example.answers) != HUMAN_ANSWERS:
        raise ValueError(f"{HUMAN_ANSWERS} human answers are wanted, and it has {len(example.answers)}")
    return list(example.answers)


def any_answers(example: Example) -> list[str]:
    if not example.answers:
        raise ValueError("it has no answer")
    return list(example.answers)


def one_answer(example: Example) -> str:
    if len(example.answers) != 1:
        raise ValueError(f"one answer is wanted, and it has {len(example.answers)}")
    return example.answers[0]


def letter_answer(example: Example) -> str:
    letters = LETTERS[: len(example.options or ())]
    answer = one_answer(example)
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"its answer '{answer}' should be the letter of one of its {len(letters)} options")
    return answer


def true_box(example: Example) -> list[float]:
    if example.box is None:
        raise ValueError("it has no box")
    return list(example.box)


# ---- what one answer is worth


def soft_accuracy(answer: str, human: Sequence[str]) -> float:
    """Mean over the human answers of min(1, matches among the others / 3) (Antol et al. 2015, with all ten subsets)."""
    matches = sum(answer == other for other in human)
    earned = (min(1.0, (matches - (answer == one)) / 3) for one in human)
    return sum(earned) / len(human)


def score_vqav2(row: Row, benchmark: Benchmark) -> float:
    """Human answers are stripped of punctuation only, and always (vlm-evaluation).

    The official scorer leaves them as they are when all ten agree, so that "t-shirt" given by ten people cannot match.
    """
    return soft_accuracy(vqa_answer(row["answer"]), [vqa_punctuation(human) for human in row["gold"]])


def score_vizwiz(row: Row, benchmark: Benchmark) -> float:
    """Human answers are compared as they are (VizWiz API)."""
    return soft_accuracy(vqa_answer(row["answer"]), row["gold"])


def score_textvqa(row: Row, benchmark: Benchmark) -> float:
    """Both sides are normalised (EvalAI)."""
    return soft_accuracy(textvqa_answer(row["answer"]), [textvqa_answer(human) for human in row["gold"]])


def score_gqa(row: Row, benchmark: Benchmark) -> float:
    return float(without_punctuation(row["answer"]) == row["gold"])


def score_exact(row: Row, benchmark: Benchmark) -> float:
    return float(without_punctuation(row["answer"]) in {without_punctuation(right) for right in row["gold"]})


def score_choice(row: Row, benchmark: Benchmark) -> float:
    return float(without_punctuation(row["answer"]) == without_punctuation(row["gold"]))


def score_letter(row: Row, benchmark: Benchmark) -> float:
    """The letter an answer starts with counts: "B", "B. 1", "(B)"."""
    found = LETTER.match(row["answer"])
    return float(found is not None and found[1] == row["gold"])


def score_iou(row: Row, benchmark: Benchmark) -> float:
    box = parse_box(row["answer"])
    return float(box is not None and overlap(box, tuple(row["gold"])) >= benchmark.iou_threshold)


# ---- what is reported besides


def percent(part: float, whole: float) -> float:
    """100 part / whole, and 0 of nothing."""
    return 100.0 * part / whole if whole else 0.0


def accuracy(rows: Sequence[Row]) -> float:
    return percent(math.fsum(row["score"] for row in rows), len(rows))


def by_tag(rows: Sequence[Row], tag: str) -> dict[str, list[Row]]:
    """The rows that have `tag`, by its value as text, sorted."""
    values = sorted({str(row["tags"][tag]) for row in rows if tag in row["tags"]})
    return {value: [row for row in rows if str(row["tags"].get(tag)) == value] for value in values}


def detection(found: Sequence[bool], true: Sequence[bool]) -> dict[str, float]:
    """Precision, recall and F1, in percent; 0 where undefined (scikit-learn's `zero_division=0`)."""
    hits = sum(a and b for a, b in zip(found, true, strict=True))
    return {
        "precision": percent(hits, sum(found)),
        "recall": percent(hits, sum(true)),
        "f1": percent(2 * hits, sum(found) + sum(true)),
    }


def pope_metrics(rows: Sequence[Row], benchmark: Benchmark) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and ratio of "yes", over all and per split (Li et al. 2023, positive = yes)."""
    metrics = pope_split(rows)
    for split, members in by_tag(rows, "split").items():
        metrics |= {f"{split}_{name}": value for name, value in pope_split(members).items()}
    return metrics


def pope_split(rows: Sequence[Row]) -> dict[str, float]:
    said_yes = [without_punctuation(row["answer"]) == "yes" for row in rows]
    is_yes = [without_punctuation(row["gold"]) == "yes" for row in rows]
    return {"accuracy": accuracy(rows), **detection(said_yes, is_yes), "yes_ratio": percent(sum(said_yes), len(rows))}


def vizwiz_metrics(rows: Sequence[Row], benchmark: Benchmark) -> dict[str, float]:
    """Accuracy on answerable and unanswerable questions, and detection of the latter.

    An example is unanswerable by its tag `answerable`, or else when most people said so. The average precision is that
    of a yes-or-no prediction, as scikit-learn computes it (VizWiz API).
    """
    true = [not is_answerable(row) for row in rows]
    found = [vqa_answer(row["answer"]) == "unanswerable" for row in rows]
    told = detection(found, true)
    recall, prevalence = told["recall"] / 100, percent(sum(true), len(rows))
    parts = {
        "answerable_accuracy": [row for row, no in zip(rows, true, strict=True) if not no],
        "unanswerable_accuracy": [row for row, no in zip(rows, true, strict=True) if no],
    }
    return {
        **{name: accuracy(part) for name, part in parts.items() if part},
        **{f"unanswerable_{name}": value for name, value in told.items()},
        "unanswerable_average_precision": recall * told["precision"] + (1 - recall) * prevalence,
    }


def is_answerable(row: Row) -> bool:
    tag = row["tags"].get("answerable")
    if tag is None:
        return sum(human == "unanswerable" for human in row["gold"]) <= len(row["gold"]) / 2
    return str(tag).lower() in ("1", "true", "yes", "answerable")


def choice_metrics(rows: Sequence[Row], benchmark: Benchmark) -> dict[str, float]:
    """How often each option was chosen: a model that always says the same shows here."""
    answers = [row["answer"] for row in rows]
    return {f"chose_{answer}": percent(answers.count(answer), len(rows)) for answer in sorted(set(answers))}


def gqa_metrics(rows: Sequence[Row], benchmark: Benchmark) -> dict[str, float]:
    """The same with punctuation stripped from both sides: the official comparison never grants "t-shirt"."""
    right = [without_punctuation(row["answer"]) == without_punctuation(row["gold"]) for row in rows]
    return {"accuracy_both_stripped": percent(sum(right), len(rows))}


def tag_accuracy(tag: str) -> Callable[[Sequence[Row], Benchmark], dict[str, float]]:
    """Accuracy for each value of a tag."""
    return lambda rows, benchmark: {
        f"{value}_accuracy": accuracy(members) for value, members in by_tag(rows, tag).items()
    }


def iou_metrics(rows: Sequence[Row], benchmark: Benchmark) -> dict[str, float]:
    """Mean IoU (an invalid box counts 0) and the share of answers that are no valid box."""
    boxes = [parse_box(row["answer"]) for row in rows]
    overlaps = [overlap(box, tuple(row["gold"])) for box, row in zip(boxes, rows, strict=True) if box is not None]
    return {"mean_iou": percent(sum(overlaps), len(rows)), "invalid_boxes": percent(boxes.count(None), len(rows))}


SCORERS = {
    "vqav2": Scorer(score_vqav2, ten_answers),
    "vizwiz": Scorer(score_vizwiz, ten_answers, vizwiz_metrics),
    "textvqa": Scorer(score_textvqa, ten_answers),
    "gqa": Scorer(score_gqa, one_answer, gqa_metrics),
    "exact": Scorer(score_exact, any_answers),
    "choice": Scorer(score_choice, one_answer, choice_metrics),
    "pope": Scorer(score_choice, one_answer, pope_metrics, equal_splits=True),
    "letter": Scorer(score_letter, letter_answer),
    "tallyqa": Scorer(score_letter, letter_answer, tag_accuracy("kind")),
    "ai2d": Scorer(score_letter, letter_answer, tag_accuracy("split")),
    "iou": Scorer(score_iou, true_box, iou_metrics),
}
