"""Scores of free text: soft accuracy over ten people's answers, and equality with the answer.

What is empty, long or odd is treated as the published scorers treat it: an answer counts with all of its text, and one
that is empty earns something only where a human answer is empty too once both are normalised ("the", for TextVQA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.contractions import VIZWIZ_CONTRACTIONS, VIZWIZ_OFFICIAL_CONTRACTIONS
from prism_sweeps.evaluation.scoring.rows import Metrics, Row, accuracy, detection, percent
from prism_sweeps.evaluation.text_normalisation import (
    gqa_answer,
    textvqa_answer,
    vqa_answer,
    vqa_punctuation,
    without_punctuation,
)

THIRD = 3
"""People who must have said it for an answer to be right."""


def soft_accuracy(answer: str, human: Sequence[str]) -> float:
    """Mean over the human answers of min(1, matches among the others / 3) (Antol et al. 2015, with all ten subsets)."""
    matches = sum(answer == other for other in human)
    agreeing, others = min(matches - 1, THIRD), min(matches, THIRD)
    return (matches * agreeing + (len(human) - matches) * others) / (THIRD * len(human))


def normalised(human: Sequence[str], normal: Callable[[str], str]) -> list[str]:
    """Each human answer under `normal`, which is asked once for those that are equal: most are."""
    known = {text: normal(text) for text in set(human)}
    return [known[text] for text in human]


def score_vqav2(row: Row, benchmark: Benchmark) -> float:
    """Human answers are stripped of punctuation only, and always."""
    return soft_accuracy(vqa_answer(row["answer"]), normalised(row["gold"], vqa_punctuation))


def score_vqav2_official(row: Row, benchmark: Benchmark) -> float:
    """Human answers are as they are when all agree, so that "t-shirt" given by ten people can never be matched."""
    human = row["gold"] if len(set(row["gold"])) == 1 else normalised(row["gold"], vqa_punctuation)
    return soft_accuracy(vqa_answer(row["answer"]), human)


def score_vizwiz(row: Row, benchmark: Benchmark) -> float:
    """Human answers are compared as they are."""
    return soft_accuracy(vqa_answer(row["answer"], VIZWIZ_CONTRACTIONS), row["gold"])


def score_vizwiz_official(row: Row, benchmark: Benchmark) -> float:
    """The same with the contractions of the VizWiz API."""
    return soft_accuracy(vqa_answer(row["answer"], VIZWIZ_OFFICIAL_CONTRACTIONS), row["gold"])


def score_textvqa(row: Row, benchmark: Benchmark) -> float:
    """Both sides are normalised."""
    return soft_accuracy(textvqa_answer(row["answer"]), normalised(row["gold"], textvqa_answer))


def score_gqa(row: Row, benchmark: Benchmark) -> float:
    """The answer without punctuation, in lower case, is the truth as it is."""
    return float(gqa_answer(row["answer"]) == row["gold"])


def score_gqa_official(row: Row, benchmark: Benchmark) -> float:
    """The answer is the truth, letter for letter."""
    return float(row["answer"] == row["gold"])


def score_exact(row: Row, benchmark: Benchmark) -> float:
    """Equal to one of the answers, both in lower case without punctuation (unless they are nothing else)."""
    return float(without_punctuation(row["answer"]) in {without_punctuation(right) for right in row["gold"]})


def vizwiz_metrics(rows: Sequence[Row], benchmark: Benchmark) -> Metrics:
    """Accuracy on answerable and unanswerable questions, and detection of the latter.

    An example is unanswerable by its tag `answerable`, or else when most people said so. The average precision is that
    of a yes-or-no prediction, as scikit-learn computes it.
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
    """Whether the question can be answered from its image."""
    tag = row["tags"].get("answerable")
    if tag is None:
        human: list[str] = row["gold"]
        return human.count("unanswerable") <= len(human) / 2
    return str(tag).lower() in ("1", "true", "yes", "answerable")


def gqa_metrics(rows: Sequence[Row], benchmark: Benchmark) -> Metrics:
    """The same with punctuation stripped from both sides: the official comparison never grants "t-shirt"."""
    right = [without_punctuation(row["answer"]) == without_punctuation(row["gold"]) for row in rows]
    return {"accuracy_both_stripped": percent(sum(right), len(rows))}
