"""What is true of an example, for each kind of scorer. All raise ValueError, with the reason, when it is not there."""

from __future__ import annotations

from prism_sweeps.evaluation.benchmarks import LETTERS, Example

HUMAN_ANSWERS = 10


def ten_answers(example: Example) -> list[str]:
    """The answers of ten people."""
    if len(example.answers) != HUMAN_ANSWERS:
        raise ValueError(f"{HUMAN_ANSWERS} human answers are wanted, and it has {len(example.answers)}")
    return list(example.answers)


def any_answers(example: Example) -> list[str]:
    """One answer or more, each of which is right."""
    if not example.answers:
        raise ValueError("it has no answer")
    return list(example.answers)


def one_answer(example: Example) -> str:
    """The one that is right."""
    if len(example.answers) != 1:
        raise ValueError(f"one answer is wanted, and it has {len(example.answers)}")
    return example.answers[0]


def yes_or_no(example: Example) -> str:
    """The answer, which is one of the two."""
    answer = one_answer(example)
    if answer.lower() not in ("yes", "no"):
        raise ValueError(f"its answer '{answer}' should be yes or no")
    return answer


def letter_answer(example: Example) -> str:
    """The letter of the option that is right."""
    letters = LETTERS[: len(example.options or ())]
    answer = one_answer(example)
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"its answer '{answer}' should be the letter of one of its {len(letters)} options")
    return answer


def true_box(example: Example) -> list[float]:
    """Normalised x1, y1, x2, y2."""
    if example.box is None:
        raise ValueError("it has no box")
    return list(example.box)


def answers_or_box(example: Example) -> list[str] | list[float]:
    """Its answers; where it has none, its box."""
    if not example.answers and example.box is None:
        raise ValueError("it has neither an answer nor a box")
    return list(example.answers) or true_box(example)
