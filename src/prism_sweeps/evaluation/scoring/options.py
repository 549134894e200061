"""Scores of answers that are one of several options: words, letters, yes and no."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.benchmarks import Example
from prism_sweeps.evaluation.scoring.curves import areas, same
from prism_sweeps.evaluation.scoring.rows import (
    Metrics,
    Row,
    Scorer,
    accuracy,
    by_tag,
    detection,
    percent,
    tag_accuracy,
)
from prism_sweeps.evaluation.text_normalisation import without_punctuation

LETTER = re.compile(r"\s*\(?([A-Z])(?![A-Za-z0-9])")


def score_choice(row: Row, benchmark: Benchmark) -> float:
    """The option is the right one, case and punctuation aside."""
    return float(same(row["answer"], row["gold"]))


def score_letter(row: Row, benchmark: Benchmark) -> float:
    """The letter an answer starts with counts: "B", "B. 1", "(B)"."""
    found = LETTER.match(row["answer"])
    return float(found is not None and found[1] == row["gold"])


def choice_metrics(rows: Sequence[Row], benchmark: Benchmark) -> Metrics:
    """How often each option was chosen (a model that always says the same shows here), and what was none of them."""
    chosen = [without_punctuation(row["answer"]) for row in rows]
    options = {choice: without_punctuation(choice) for choice in benchmark.choices}
    told = {f"chose_{choice}": percent(chosen.count(plain), len(rows)) for choice, plain in options.items()}
    if options:
        told["invalid_answer_count"] = sum(answer not in options.values() for answer in chosen)
    return told | areas(rows, options_of(rows, benchmark))


def letter_metrics(rows: Sequence[Row], benchmark: Benchmark) -> Metrics:
    """How many answers do not start with a letter, and the areas of the letters' probabilities."""
    invalid = sum(LETTER.match(row["answer"]) is None for row in rows)
    return {"invalid_answer_count": invalid} | areas(rows, options_of(rows, benchmark))


def letters_by(tag: str) -> Callable[[Sequence[Row], Benchmark], Metrics]:
    """The same, with accuracy and areas for each value of a tag."""
    return lambda rows, benchmark: (
        letter_metrics(rows, benchmark) | tag_accuracy(rows, tag) | areas_by(rows, tag, benchmark)
    )


def options_of(rows: Sequence[Row], benchmark: Benchmark) -> list[str]:
    """What might be answered: the choices of the benchmark, or all letters that some row has."""
    return list(benchmark.choices) or sorted({option for row in rows for option in row.get("log_likelihoods") or ()})


def areas_by(rows: Sequence[Row], tag: str, benchmark: Benchmark) -> Metrics:
    """The areas for each value of a tag."""
    options = options_of(rows, benchmark)
    parts = {value: areas(members, options) for value, members in by_tag(rows, tag).items()}
    return {
        f"{value}_{name}": number for value, part in parts.items() for name, number in part.items() if "auc" in name
    }


# ---- POPE


def yes_or_no_in(text: str) -> str:
    """What free text says: no where its first sentence has one of three words, else yes.

    Source: `evaluate.py`, AoiDragon/POPE. So an empty answer says yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope(said: Callable[[str], str], gold: Callable[[Example], str]) -> Scorer:
    """POPE (Li et al. 2023) with its way to tell what an answer says. Yes is the first of the benchmark's choices."""

    def score(row: Row, benchmark: Benchmark) -> float:
        return float(said(row["answer"]) == without_punctuation(row["gold"]))

    def of(rows: Sequence[Row], yes: str) -> Metrics:
        says_yes = [said(row["answer"]) == yes for row in rows]
        is_yes = [without_punctuation(row["gold"]) == yes for row in rows]
        told = {"accuracy": accuracy(rows), **detection(says_yes, is_yes)}
        return told | {"yes_ratio": percent(sum(says_yes), len(rows))}

    def metrics(rows: Sequence[Row], benchmark: Benchmark) -> Metrics:
        options = [without_punctuation(choice) for choice in benchmark.choices] or ["yes", "no"]
        told = of(rows, options[0]) | {"invalid_answer_count": sum(said(row["answer"]) not in options for row in rows)}
        told |= areas(rows, options_of(rows, benchmark)) | areas_by(rows, "split", benchmark)
        for split, members in by_tag(rows, "split").items():
            told |= {f"{split}_{name}": value for name, value in of(members, options[0]).items()}
        return told

    return Scorer(score, gold, metrics, equal_splits=True)
