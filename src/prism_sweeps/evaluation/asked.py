"""From a benchmark's examples to what a model is asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.suite import ANSWERS, Benchmark
from prism_sweeps.evaluation.benchmarks import Example, index_of, lettered, render_prompt
from prism_sweeps.evaluation.conditions import shown_images
from prism_sweeps.evaluation.requests import Request, by_image
from prism_sweeps.evaluation.samples import sample_of
from prism_sweeps.evaluation.scorers import Gold, gold_of


@dataclass(frozen=True)
class Asked:
    """One example with what is asked about it and what would be right."""

    example: Example
    request: Request
    gold: Gold


def asked_of(folder: Path, benchmark: Benchmark, condition: str) -> list[Asked]:
    """What is asked about the examples of the index in `folder`, in its order.

    Raises ConfigError and DataError for an index, a benchmark or an example that cannot be asked or scored.
    """
    examples = sample_of(index_of(folder, benchmark), benchmark)
    shown = shown_images(examples, condition)
    check_answers(benchmark)
    return [Asked(example, request_of(example, shown, benchmark), gold_of(example, benchmark)) for example in examples]


def request_of(example: Example, shown: dict[str, tuple[str, Path] | None], benchmark: Benchmark) -> Request:
    image = shown[example.key]
    return Request(
        id=example.id,
        shown=image and image[0],
        image=image and image[1],
        text=render_prompt(benchmark.prompt, example),
        options=options_of(example, benchmark),
        limit=benchmark.max_new_tokens,
        likelihood=benchmark.likelihood,
    )


def options_of(example: Example, benchmark: Benchmark) -> tuple[str, ...]:
    """What may be answered; none where the answer is free text."""
    if benchmark.answer == "letter":
        return tuple(letter for letter, _ in lettered(example))
    return tuple(benchmark.choices) if benchmark.answer == "choice" else ()


def check_answers(benchmark: Benchmark) -> None:
    """Raises ConfigError for a way to answer that does not exist, or that has nothing to choose from."""
    if benchmark.answer not in ANSWERS:
        raise ConfigError(
            f"{benchmark.name}: unknown answer '{benchmark.answer}'; {nearest(benchmark.answer, ANSWERS)}"
        )
    if benchmark.answer == "choice" and not (benchmark.choices and all(choice.strip() for choice in benchmark.choices)):
        raise ConfigError(f"{benchmark.name}: answer 'choice' needs `choices`, none of them empty")


def shares(asked: Sequence[Asked], count: int) -> list[list[Request]]:
    """The requests in `count` parts of about the same size; questions about one image stay together."""
    groups = by_image(each.request for each in asked)
    parts: list[list[Request]] = [[] for _ in range(count)]
    for group in groups if len(groups) >= count else [[each.request] for each in asked]:
        min(parts, key=len).extend(group)
    return parts
