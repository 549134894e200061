"""A scene as a square of words, row by row: what a picture cut into patches would say if each patch said one word.

A language model that has read such maps knows how to look a thing up by its name, its neighbours and its place before
it is shown a picture; all that is left to learn of seeing is which word a patch stands for, and where it stands.

Shapes: P words of a map, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from prism_sweeps.data.nano_world.balance import Balance, Question
from prism_sweeps.data.nano_world.captions import caption, coordinates
from prism_sweeps.data.nano_world.dialogues import Turn
from prism_sweeps.data.nano_world.expressions import among_clutter, box_text, by_attributes, in_sentences, with_places
from prism_sweeps.data.nano_world.facts import some_absent, uniques
from prism_sweeps.data.nano_world.prompts import BOX
from prism_sweeps.data.nano_world.questions import (
    Family,
    background_colour,
    background_pattern,
    count,
    count_group,
    exists,
    on_tile,
    sign_exists,
    sign_word,
    tile_colour,
    what_at,
    where,
    which_size,
)
from prism_sweeps.data.nano_world.relations import (
    beside,
    both_or_either,
    kind_on_tile,
    larger,
    related,
    same_tile,
    statements,
    tile_beside,
    tile_of_group,
)
from prism_sweeps.data.nano_world.scenes import (
    CROWDED,
    ORDINARY,
    SIMPLE,
    Box,
    Scene,
    SceneStyle,
    footprint,
    generator,
    pick,
    pick_weighted,
    scene,
)
from prism_sweeps.data.nano_world.words import plural
from prism_sweeps.training.zoo.pictures import covered, squared
from prism_sweeps.training.zoo.towers import place_waves


class Lesson(NamedTuple):
    """The scenes whose maps are read, and the words along a side with how often each is drawn."""

    styles: tuple[SceneStyle, ...]
    sides: tuple[int, ...]
    weights: tuple[float, ...]


EASY = Lesson((SIMPLE, ORDINARY, ORDINARY), (4, 6), (1.0, 1.0))
"""Small maps."""
FULL = Lesson((SIMPLE, SIMPLE, ORDINARY, ORDINARY, CROWDED), (8, 12), (6.0, 1.0))
"""As many words as there are patches at 64 and at 96 pixels; long maps are rarer, as they cost more."""
POINTED = Lesson((SIMPLE, ORDINARY, ORDINARY), (8, 12), (6.0, 1.0))
"""Several things a map, as boxes need the most practice."""
NAMED = Lesson((SIMPLE, ORDINARY, ORDINARY), (8,), (1.0,))
"""The same on short maps alone, for sheer number."""
SIGNED = Lesson((replace(ORDINARY, things=(1, 4), signs=1.0),), (8, 12), (6.0, 1.0))
"""A sign on every map."""
OUTSIDE = "-"
ENTRIES, QUESTIONS = 16, 14
BOXED = 0.2
"""Share of things whose box is among the entries: boxes take many tokens."""
CAPTIONED = 0.5
"""Share of maps that a caption follows."""
ABSENT = (exists, exists, count, both_or_either, count_group)
"""Families that also ask about what is not there: they come first, before other questions name things."""
PRESENT = (
    *(on_tile, what_at, what_at, where, where, where, tile_colour, which_size, beside, sign_word, sign_word),
    *(background_colour, background_pattern, sign_exists, tile_beside, tile_of_group, kind_on_tile, related),
    *(same_tile, larger, statements, statements, statements),
)
LOOKED_UP: dict[Family, str] = {where: "place", tile_colour: "tile", on_tile: "on", which_size: "the"}
"""Families whose questions name what to look up, and how the keys of their entries begin."""
BOXES = (with_places, by_attributes, in_sentences, among_clutter)


def map_exam(number: int, balances: Sequence[Balance]) -> tuple[str, str, list[Turn]]:
    """The map of a scene, half the time its caption, and up to fourteen questions about the scene.

    A caption after a map asks for everything on it in few words.
    """
    rng = generator("pretrain maps", number)
    drawn, text = map_of(number, rng, FULL)
    said = caption(drawn, rng) if rng.random() < CAPTIONED else ""
    return text, said, _questions(drawn, rng, balances)


class Entry(NamedTuple):
    """One fact of a register, to be looked up by its last word, and the question that asks for it."""

    key: str
    question: str
    answer: str


Written = tuple[str, list[tuple[int, int]], int]
"""A text, where in it answers stand (characters, with the one after them), and how many words its map has."""


def register(number: int, lesson: Lesson, asked: float) -> Written:
    """A map and up to sixteen entries about what is on it and what is not.

    An entry ends on the word to look up, so that a single step of attention finds the answer. A share `asked` of them
    puts more between that word and the answer, up to a whole question: one step finds, another one fetches.
    """
    rng = generator("pretrain registers", number)
    drawn, text = map_of(number, rng, lesson)
    entries = _entries(drawn, rng)
    return _listed(text, [entries[index] for index in rng.permutation(len(entries))[:ENTRIES]], asked, rng)


def boxes(number: int, balances: Sequence[Balance], lesson: Lesson, way: str = "") -> Written:
    """A map and up to seven expressions with the boxes of what they refer to, each thing once.

    way: how the scene is made square, any if "". A box is a fraction of the scene, so that a place on the map tells it
    at once only where the scene fills the square (`naive`).
    """
    rng = generator("pretrain boxes", number)
    drawn, text = map_of(number, rng, lesson, way)
    found = [question for family in BOXES for question in family(drawn)]
    entries = dict[str, Entry]()
    for _ in range(7):
        question = pick(rng, balances).choose(rng, [each for each in found if each.answer not in entries])
        if question is not None:
            entries[question.answer] = Entry(question.text, BOX.format(question=question.text), question.answer)
    return _listed(text, list(entries.values()), 0.3, rng)


def named_boxes(number: int) -> Written:
    """A map of a scene that fills the square, and up to seven names with the boxes of what bears them alone."""
    rng = generator("pretrain named boxes", number)
    drawn, text = map_of(number, rng, NAMED, "naive")
    entries = [
        Entry(f"box {name}", BOX.format(question=name), box_text(coordinates(drawn, thing)))
        for name, thing in uniques(drawn).items()
    ]
    return _listed(text, [entries[index] for index in rng.permutation(len(entries))[:7]], 0.3, rng)


def _listed(text: str, entries: list[Entry], asked: float, rng: np.random.Generator) -> Written:
    mapped, spans = len(text.split()), []
    for key, question, said in entries:
        text += _put(key, question, rng) if rng.random() < asked else f"; {key}"
        spans.append((len(text), len(text) + len(said) + 1))
        text += f" {said}"
    return text, spans, mapped


def _put(key: str, question: str, rng: np.random.Generator) -> str:
    if rng.random() < 1 / 3:
        return f"; {key}{pick(rng, (':', '?', ' :', ' ='))}"
    return f"\nIn: {pick(rng, (f'{key}?', f'{key} in the image?', question, question))}\nOut:"


def _entries(drawn: Scene, rng: np.random.Generator) -> list[Entry]:
    any_one = {question.mentions[0]: question for question in exists(drawn)}
    number = {question.mentions[0]: question for question in count(drawn)}
    present = dict.fromkeys(thing.category for thing in drawn.things)
    entries = []
    for name in (*present, *some_absent(drawn, len(present) + 1)):
        if name in number and rng.random() < 0.5:
            entries.append(_entry(f"count {pick(rng, (name, plural(name)))}", number[name]))
        else:
            entries.append(_entry(f"any {name}", any_one[name]))
    for family, word in LOOKED_UP.items():
        entries += [_entry(f"{word} {question.topic.split()[1]}", question) for question in family(drawn)]
    for name, thing in uniques(drawn).items():
        entries.append(Entry(f"size {name}", f"how large is the {name}?", thing.size))
        if rng.random() < BOXED:
            box = box_text(coordinates(drawn, thing))
            entries.append(Entry(f"box {name}", BOX.format(question=name), box))
    return entries


def _entry(key: str, question: Question) -> Entry:
    return Entry(key, question.text, question.answer)


def map_of(number: int, rng: np.random.Generator, lesson: Lesson, way: str = "") -> tuple[Scene, str]:
    """Scene `number` and its map, each word after a blank; made square by `way`, or by either way if ""."""
    drawn = scene("pretrain maps", number, lesson.styles[number % len(lesson.styles)])
    side = pick_weighted(rng, lesson.sides, lesson.weights)
    return drawn, "".join(f" {word}" for word in words(drawn, side, way or pick(rng, ("naive", "letterbox")), rng))


def place_codes(side: int, width: int) -> Tensor:
    """What tells a word of a map where it stands, codes_PD: the waves that tell a tower's patches where they are.

    Words of a text have only their order. A code is half as long as a fresh embedding, or it would drown the word.
    """
    return place_waves(side, width) / (2 * width) ** 0.5


def _questions(drawn: Scene, rng: np.random.Generator, balances: Sequence[Balance]) -> list[Turn]:
    boxes = (pick(rng, BOXES), pick(rng, BOXES))
    later = [*boxes, *(PRESENT[index] for index in rng.permutation(len(PRESENT))[: QUESTIONS - len(ABSENT) - 2])]
    first = [ABSENT[index] for index in rng.permutation(len(ABSENT))]
    asked = dict[str, str]()
    for family in (*first, *(later[index] for index in rng.permutation(len(later)))):
        question = pick(rng, balances).choose(rng, [each for each in family(drawn) if each.text not in asked])
        if question is not None:
            asked[question.text] = question.answer
    return list(asked.items())


def words(drawn: Scene, side: int, strategy: str, rng: np.random.Generator) -> list[str]:
    """side × side words. Where a thing has several properties, its patches tell one each, the category most often.

    At least one of its patches tells the category.
    """
    ground = (drawn.background, drawn.background, drawn.texture)
    canvas = set(covered(squared((0.0, 0.0, drawn.width, drawn.height), drawn, strategy), side))
    found = [pick(rng, ground) if cell in canvas else OUTSIDE for cell in range(side * side)]

    def write(box: Box, said: tuple[str, ...]) -> None:
        cells = covered(squared(box, drawn, strategy), side)
        for cell in cells:
            found[cell] = pick(rng, said)
        found[pick(rng, cells)] = said[0]

    for thing in drawn.things:
        if thing.tile is not None:
            write(footprint(thing), (thing.tile,))
    for thing in drawn.things:
        beside = (thing.size,) if thing.tile is None else (thing.size, thing.tile)
        write(thing.box, (thing.category,) * 6 + beside)
    if drawn.sign is not None:
        write(drawn.sign.box, (drawn.sign.word, drawn.sign.word, "sign"))
    return found
