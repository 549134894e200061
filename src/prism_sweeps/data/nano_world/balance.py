"""Choosing questions so that no answer is favoured: the least used answer first, whatever the scenes offer."""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

import numpy as np


class Question(NamedTuple):
    """One question with its ground truth.

    kind: name of the family ("exists"); topic: what a reader who sees no image can tell the question by ("exists dog").
    mentions: categories named in question or answer. box: x1, y1, x2, y2 as fractions, for expressions.
    cell: what is balanced if not the answer itself (for boxes: place and size).
    """

    kind: str
    topic: str
    text: str
    answer: str
    mentions: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    box: tuple[float, ...] | None = None
    cell: str | None = None

    @property
    def balanced(self) -> str:
        return self.answer if self.cell is None else self.cell


# Answers that come in twos: never one oftener than the other.
_TWINS = {"Yes": "No", "No": "Yes", "True": "False", "False": "True", "some": "none", "none": "some"}
_AT_MOST = 30  # candidates compared at a time


class Balance:
    """Counts what has been asked; `choose` takes the question whose answer is the rarest so far."""

    def __init__(self) -> None:
        self._by_kind: Counter[tuple[str, str]] = Counter()
        self._by_topic: Counter[tuple[str, str]] = Counter()
        self._topics: Counter[str] = Counter()

    def choose(
        self,
        rng: np.random.Generator,
        questions: Iterable[Question],
        heard: Set[str] = frozenset(),
        among: Sequence[str] | None = None,
    ) -> Question | None:
        """Choose a question and count it; None if there is none to choose.

        heard: categories already named in the conversation; a question that names others is preferred, since the
            dialogue would give part of the answer away.
        among: the full range of answers. Given, only answers that are at this moment the rarest of the range are
            acceptable, so that the counts over the range never differ by more than one. Yes/No and True/False always
            keep this rule.
        """
        found = [question for question in questions if among is None or question.balanced in among]
        if not found:
            return None
        first = int(rng.random() * len(found))  # ties go to the first, so start anywhere
        shown = (found[first:] + found[:first])[:_AT_MOST]
        chosen = min(shown, key=lambda question: self._rank(question, heard))
        if among is None:
            among = (_TWINS.get(chosen.balanced, chosen.balanced),)
        if self._used(chosen) > min(self._by_kind[chosen.kind, answer] for answer in among):
            return None
        self._by_kind[chosen.kind, chosen.balanced] += 1
        self._by_topic[chosen.topic, chosen.balanced] += 1
        self._topics[chosen.topic] += 1
        return chosen

    def _used(self, question: Question) -> int:
        return self._by_kind[question.kind, question.balanced]

    def _rank(self, question: Question, heard: Set[str]) -> tuple[int, int, int]:
        answer = question.balanced
        surplus = 2 * self._by_topic[question.topic, answer] - self._topics[question.topic]
        repeated = sum(category in heard for category in question.mentions) if heard else 0
        return repeated, self._by_kind[question.kind, answer], surplus
