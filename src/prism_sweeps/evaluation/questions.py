"""Examples as the model gets them, in the order it gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.suite import ANSWERS, Benchmark
from prism_sweeps.evaluation.benchmarks import LETTERS, Example, lettered, render_prompt
from prism_sweeps.evaluation.scorers import Gold, gold_of
from prism_sweeps.models.prompts import PromptFormat

WINDOW = 4
"""Batches whose images are encoded together, each once."""


@dataclass(frozen=True)
class Question:
    """One example, ready to be asked."""

    example: Example
    gold: Gold
    image: Path | None
    """What is shown; None is the grey image."""
    ids: list[int]
    """BOS and the text up to where the answer starts; the patches go after BOS."""
    options: dict[str, list[int]]
    """What may be answered, with its tokens; empty when the answer is free text."""
    limit: int
    """Tokens a free answer may have."""


def questions_of(
    examples: Sequence[Example], shown: dict[str, Path | None], benchmark: Benchmark, prompts: PromptFormat, room: int
) -> list[Question]:
    """The examples, shown what `shown` says, for a language model with `room` positions for text.

    Raises ConfigError and DataError for a benchmark or an example that cannot be asked or scored.
    """
    options_of = options_by(benchmark, prompts)
    questions = []
    for example in examples:
        ids = prompts.question(render_prompt(benchmark.prompt, example))
        options = options_of(example)
        needed = max(map(len, options.values()), default=1)
        questions.append(
            Question(
                example=example,
                gold=gold_of(example, benchmark),
                image=shown[example.key],
                ids=ids,
                options=options,
                limit=min(benchmark.max_new_tokens, room_left(ids, room, needed, f"example '{example.id}'")),
            )
        )
    return questions


def room_left(ids: Sequence[int], room: int, needed: int, what: str) -> int:
    """Positions left for an answer. Raises DataError when there are fewer than `needed`."""
    if room - len(ids) < needed:
        raise DataError(
            f"{what}: {len(ids)} tokens of text and {needed} of an answer are more than the {room} positions that the "
            "language model has besides the image"
        )
    return room - len(ids)


def options_by(benchmark: Benchmark, prompts: PromptFormat) -> Callable[[Example], dict[str, list[int]]]:
    """What may be answered, as a function of the example. Raises ConfigError."""
    if benchmark.answer not in ANSWERS:
        raise ConfigError(
            f"{benchmark.name}: unknown answer '{benchmark.answer}'; {nearest(benchmark.answer, ANSWERS)}"
        )
    if benchmark.answer == "letter":
        tokens = {letter: prompts.answer(letter) for letter in LETTERS}
        return lambda example: {letter: tokens[letter] for letter, _ in lettered(example)}
    if benchmark.answer != "choice":
        return lambda example: {}
    choices = {choice: prompts.answer(choice) for choice in benchmark.choices}
    if not choices or not all(choice.strip() and tokens for choice, tokens in choices.items()):
        raise ConfigError(f"{benchmark.name}: answer 'choice' needs `choices`, none of them empty")
    return lambda example: choices


def windows(questions: Sequence[Question], batch: int) -> list[list[list[Question]]]:
    """Batches in groups: questions about one image stay together, and within a group batches are of like length.

    What is in a batch depends on the questions and its size alone, so a run that is resumed sees the same batches.
    """
    places = {question.image: place for place, question in reversed(list(enumerate(questions)))}
    by_image = sorted(questions, key=lambda question: places[question.image])
    groups = [by_image[start : start + WINDOW * batch] for start in range(0, len(by_image), WINDOW * batch)]
    ordered = [sorted(group, key=lambda question: len(question.ids)) for group in groups]
    return [[group[start : start + batch] for start in range(0, len(group), batch)] for group in ordered]
