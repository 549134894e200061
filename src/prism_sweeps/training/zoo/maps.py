"""A scene as a square of words, row by row: what a picture cut into patches would say if each patch said one word.

A language model that has read such maps knows how to look a thing up by its name, its neighbours and its place before
it is shown a picture; all that is left to learn of seeing is which word a patch stands for.
"""

from __future__ import annotations

import numpy as np

from prism_sweeps.data.nano_world.balance import Balance, Question
from prism_sweeps.data.nano_world.dialogues import Turn
from prism_sweeps.data.nano_world.expressions import among_clutter, by_attributes, in_sentences, with_places
from prism_sweeps.data.nano_world.questions import (
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
    footprint,
    generator,
    pick,
    pick_weighted,
    scene,
)
from prism_sweeps.training.zoo.pictures import covered, squared

SIDES, SIDE_WEIGHTS = (8, 12), (5.0, 1.0)
"""Patches along a side at 64 and at 96 pixels, and how often maps have them: long ones cost more."""
OUTSIDE = "-"
QUESTIONS = 14
ASKED = (
    *(exists, exists, count, count, on_tile, on_tile, what_at, what_at, where, where, tile_colour, which_size),
    *(beside, sign_word, background_colour, background_pattern, count_group, sign_exists, tile_beside, tile_of_group),
    *(kind_on_tile, both_or_either, related, same_tile, larger, statements),
)
BOXES = (with_places, by_attributes, in_sentences, among_clutter)


def map_exam(number: int) -> tuple[str, list[Turn]]:
    """The map of a scene, and up to fourteen questions about the scene, two of them for boxes."""
    rng = generator("pretrain maps", number)
    drawn = scene("pretrain maps", number, (SIMPLE, SIMPLE, ORDINARY, ORDINARY, CROWDED)[number % 5])
    side = pick_weighted(rng, SIDES, SIDE_WEIGHTS)
    text = "".join(f" {word}" for word in words(drawn, side, pick(rng, ("naive", "letterbox")), rng))
    return text, _questions(drawn, rng)


def _questions(drawn: Scene, rng: np.random.Generator) -> list[Turn]:
    balance, asked = Balance(), dict[str, Question]()
    families = [ASKED[index] for index in rng.permutation(len(ASKED))]
    for family in (pick(rng, BOXES), pick(rng, BOXES), *families):
        found = [question for question in family(drawn) if question.text not in asked]
        question = balance.choose(rng, found)
        if question is not None and len(asked) < QUESTIONS:
            asked[question.text] = question
    turns = [(question.text, question.answer) for question in asked.values()]
    return [turns[index] for index in rng.permutation(len(turns))]


def words(drawn: Scene, side: int, strategy: str, rng: np.random.Generator) -> list[str]:
    """side × side words. Where a thing has several properties, its patches tell one each, the category most often."""
    ground = (drawn.background, drawn.background, drawn.texture)
    canvas = set(covered(squared((0.0, 0.0, drawn.width, drawn.height), drawn, strategy), side))
    found = [pick(rng, ground) if cell in canvas else OUTSIDE for cell in range(side * side)]

    def write(box: Box, said: tuple[str, ...]) -> None:
        for cell in covered(squared(box, drawn, strategy), side):
            found[cell] = pick(rng, said)

    for thing in drawn.things:
        if thing.tile is not None:
            write(footprint(thing), (thing.tile,))
    for thing in drawn.things:
        beside = (thing.size,) if thing.tile is None else (thing.size, thing.tile)
        write(thing.box, (thing.category,) * 6 + beside)
    if drawn.sign is not None:
        write(drawn.sign.box, (drawn.sign.word, drawn.sign.word, "sign"))
    return found
