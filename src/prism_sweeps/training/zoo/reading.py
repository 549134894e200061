"""What the nano language models read: documents about scenes, and conversations in the prompts of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prism_sweeps.data.nano_world import questions, relations
from prism_sweeps.data.nano_world.balance import Balance
from prism_sweeps.data.nano_world.captions import caption, describe
from prism_sweeps.data.nano_world.dialogues import Form, Turn, choice, dialogue, short, tally, truth, with_ocr
from prism_sweeps.data.nano_world.questions import Family
from prism_sweeps.data.nano_world.scenes import ORDINARY, SIMPLE, generator, pick, pick_weighted, scene
from prism_sweeps.data.nano_world.text_only import text_only
from prism_sweeps.data.nano_world.training_sets import CAPTION_REQUESTS
from prism_sweeps.training.zoo.maps import FULL, SIGNED, Lesson, Written, map_exam, map_of, register

HINT = "\nAnswer the question using a single word or phrase."
LAYOUTS = (("In:", "Out:"), ("In:", "Out:"), ("Question:", "Answer:"), ("Q:", "A:"))
READABLE = (
    questions.exists,
    questions.count,
    questions.background_colour,
    questions.background_pattern,
    questions.on_tile,
    questions.tile_colour,
    questions.which_size,
    questions.sign_word,
    relations.kind_on_tile,
)
"""Kinds of question that a caption answers. Places are left out of some captions, so they are not asked for."""


def told_scene(number: int, balance: Balance) -> tuple[str, list[Turn]]:
    """A scene in words (a caption or a dense description) and a dialogue about it."""
    rng = generator("pretrain text", number)
    told = scene("pretrain text", number, ORDINARY if number % 4 == 1 else SIMPLE)
    # Boxes are long: few scenes, and only simple ones, are told with them.
    text = describe(told, rng) if number % 8 == 0 else caption(told, rng)
    return text, dialogue(told, rng, balance)


def exam(number: int, rng: np.random.Generator, balances: Sequence[Balance]) -> tuple[str, list[Turn]]:
    """A caption and up to eighteen short questions that it answers, two of each kind, in any order."""
    told = scene("pretrain text", number, ORDINARY if number % 3 == 0 else SIMPLE)
    asked = dict[str, str]()
    for family in (*READABLE, *READABLE):
        found = [question for question in family(told) if question.text not in asked]
        question = pick(rng, balances).choose(rng, found)
        if question is not None:
            asked[question.text] = question.answer
    turns = list(asked.items())
    return caption(told, rng), [turns[index] for index in rng.permutation(len(turns))]


def balances() -> list[Balance]:
    """Balances that take turns at random: with a single one Yes and No alternate, and each answer tells the next."""
    return [Balance() for _ in range(16)]


def documents(numbers: Iterable[int]) -> Iterator[Written]:
    """The documents of these numbers, answers balanced over all of them: where No is the rule, looking does not pay."""
    shared = balances()
    return (document(number, shared) for number in numbers)


def document(number: int, balances: Sequence[Balance]) -> Written:
    """Text of the kind a base model reads.

    A map or a description, then questions with their answers, in several layouts. Most are exams: looking an answer up
    in what was just read is learned late, from thousands of questions, and exams hold the most in the fewest tokens.
    """
    rng = generator("pretrain layout", number)
    kind = pick_weighted(rng, ("map", "register", "exam", "told", "text"), (5, 1, 2, 1, 1))
    spans, said, mapped = [], "", 0
    if kind == "register":
        return register(number, FULL, 0.6)
    if kind == "map":
        text, said, turns = map_exam(number, balances)
        mapped = len(text.split())
    elif kind == "exam":
        text, turns = exam(number, rng, balances)
    elif kind == "told":
        text, turns = told_scene(number, pick(rng, balances))
    else:
        text, turns = "", text_only(rng, number, pick(rng, balances))
    if said:
        spans.append((len(text) + 1, len(text) + len(said) + 2))
        text += f"\n{said}"
    ask, answer = pick(rng, LAYOUTS)
    for question, said in turns:
        if skipped(question, said, rng):
            continue
        plain = question.removesuffix(HINT) if rng.random() < 0.8 and "Unanswerable" not in question else question
        text += f"{chr(10) if text else ''}{ask} {plain}\n{answer}"
        spans.append((len(text), len(text) + len(said) + 2))
        text += f" {said}"
    return text, spans, mapped


def skipped(question: str, said: str, rng: np.random.Generator) -> bool:
    """Long lists of options take many tokens and teach little reading: most are left out."""
    return question.count("\n") > 8 and rng.random() < 0.85


class Drill(NamedTuple):
    """Questions of one kind, how many turns of them a conversation has, and the maps they are about."""

    parts: tuple[tuple[Family, Form], ...]
    turns: int
    lesson: Lesson = FULL


DRILLS: dict[str, Drill] = {
    # Two turns, as lists of sixteen options are long.
    "numbers": Drill(
        ((questions.count, tally), (questions.count_group, tally), (questions.count_which, tally)),
        turns=2,
    ),
    "relations": Drill(
        (
            *((relations.statements, truth), (relations.statements, truth), (relations.statements, truth)),
            *((relations.related, short), (relations.related, short), (relations.larger, short)),
        ),
        turns=6,
    ),
    "letters": Drill(((questions.on_tile, choice), (questions.what_at, choice), (relations.beside, choice)), turns=3),
    "signs": Drill(
        ((questions.sign_word, short), (questions.sign_word, with_ocr), (questions.on_tile, short)),
        turns=3,
        lesson=SIGNED,
    ),
    "words": Drill(((questions.sign_word, short), (questions.sign_word, with_ocr)), turns=2, lesson=SIGNED),
}
"""What takes a model far more questions to learn than a dialogue has of them."""

Conversation = tuple[str, list[tuple[str, str]]]
"""A map, or nothing, and who says what about it."""


def conversations(numbers: Iterable[int]) -> Iterator[Conversation]:
    """The conversations of these numbers, answers balanced over all of them."""
    shared = balances()
    return (conversation(number, shared) for number in numbers)


def conversation(number: int, balances: Sequence[Balance]) -> Conversation:
    """A map and the turns of a dialogue about its scene, in the prompts of the benchmarks; now and then without map."""
    rng = generator("pretrain conversations", number)
    balance = pick(rng, balances)
    if rng.random() < 0.2:
        shown, turns = "", text_only(rng, number, balance)
    else:
        drawn, shown = map_of(number, rng, FULL)
        turns = dialogue(drawn, rng, balance)
    return shown, [(role, said) for turn in turns for role, said in zip(("human", "gpt"), turn, strict=True)]


def captioned(number: int) -> Conversation:
    """A map and its caption, asked for as in the alignment set."""
    rng = generator("pretrain captions", number)
    drawn, shown = map_of(number, rng, FULL)
    return shown, [("human", pick(rng, CAPTION_REQUESTS)), ("gpt", caption(drawn, rng))]


def drill(number: int, kind: str, balances: Sequence[Balance]) -> Conversation:
    """A map and questions of one kind about it, in the prompts of the benchmarks."""
    asked = DRILLS[kind]
    rng = generator(f"pretrain {kind}", number)
    drawn, shown = map_of(number, rng, asked.lesson)
    turns = dict[str, str]()
    for index in rng.permutation(len(asked.parts))[: asked.turns]:
        family, form = asked.parts[index]
        question = pick(rng, balances).choose(rng, family(drawn))
        if question is not None:
            turns |= (form(question, rng),)
    return shown, spoken(turns)


def tallied(number: int, balances: Sequence[Balance]) -> Conversation:
    """A map and two numbers of things, each asked for by letter, half the time after the number itself.

    So that finding a number's letter can be learned apart from counting; see CONTRIBUTING.md for what came of it.
    """
    rng = generator("pretrain tallies", number)
    drawn, shown = map_of(number, rng, FULL)
    turns = dict[str, str]()
    for family in (questions.count, pick(rng, (questions.count, questions.count_group, questions.count_which))):
        question = pick(rng, balances).choose(rng, family(drawn))
        if question is not None:
            forms = (short, tally) if rng.random() < 0.5 else (tally,)
            turns |= (form(question, rng) for form in forms)
    return shown, spoken(turns)


def spoken(turns: dict[str, str]) -> list[tuple[str, str]]:
    """Questions and answers as who says what."""
    return [(role, said) for turn in turns.items() for role, said in zip(("human", "gpt"), turn, strict=True)]
