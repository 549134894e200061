"""A scene as a square of words, row by row: what a picture cut into patches would say if each patch said one word.

A language model that has read such maps knows how to look a thing up by its name, its neighbours and its place before
it is shown a picture; all that is left to learn of seeing is which word a patch stands for, and where it stands.

Shapes: P words of a map, D width.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prism_sweeps.data.nano_world.balance import Balance
from prism_sweeps.data.nano_world.captions import caption, place
from prism_sweeps.data.nano_world.dialogues import Turn
from prism_sweeps.data.nano_world.expressions import among_clutter, by_attributes, in_sentences, with_places
from prism_sweeps.data.nano_world.facts import some_absent
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
    yes_no,
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
    Thing,
    footprint,
    generator,
    pick,
    pick_weighted,
    scene,
)
from prism_sweeps.training.zoo.pictures import covered, squared


class Lesson(NamedTuple):
    """The scenes whose maps are read, and the words along a side with how often each is drawn."""

    styles: tuple[SceneStyle, ...]
    sides: tuple[int, ...]
    weights: tuple[float, ...]


EASY = Lesson((SIMPLE, ORDINARY, ORDINARY), (4, 6), (1.0, 1.0))
"""Small maps."""
FULL = Lesson((SIMPLE, SIMPLE, ORDINARY, ORDINARY, CROWDED), (8, 12), (6.0, 1.0))
"""As many words as there are patches at 64 and at 96 pixels; long maps are rarer, as they cost more."""
OUTSIDE = "-"
ENTRIES, QUESTIONS = 16, 14
CAPTIONED = 0.5
"""Share of maps that a caption follows."""
ABSENT = (exists, exists, count, both_or_either, count_group)
"""Families that also ask about what is not there: they come first, before other questions name things."""
PRESENT = (
    *(on_tile, what_at, what_at, where, where, where, tile_colour, which_size, beside, sign_word, sign_word),
    *(background_colour, background_pattern, sign_exists, tile_beside, tile_of_group, kind_on_tile, related),
    *(same_tile, larger, statements, statements, statements),
)
BOXES = (with_places, by_attributes, in_sentences, among_clutter)


def map_exam(number: int, balances: Sequence[Balance]) -> tuple[str, str, list[Turn]]:
    """The map of a scene, half the time its caption, and up to fourteen questions about the scene.

    A caption after a map asks for everything on it in few words.
    """
    rng = generator("pretrain maps", number)
    drawn, text = map_of(number, rng, FULL)
    said = caption(drawn, rng) if rng.random() < CAPTIONED else ""
    return text, said, _questions(drawn, rng, balances)


def register(number: int, lesson: Lesson) -> tuple[str, list[tuple[int, int]], int]:
    """A map and up to sixteen entries about what is on it and what is not: a keyword, a word, what holds.

    Each entry ends on the word to look up, so that a single step of attention finds it. Questions in sentences take
    two, and neither is learned while the other is missing.
    """
    rng = generator("pretrain registers", number)
    drawn, text = map_of(number, rng, lesson)
    mapped, spans = len(text.split()), []
    entries = _entries(drawn, rng)
    for index in rng.permutation(len(entries))[:ENTRIES]:
        asked, said = entries[index]
        text += f"; {asked}"
        spans.append((len(text), len(text) + len(said) + 2))
        text += f" {said}"
    return text, spans, mapped


def _entries(drawn: Scene, rng: np.random.Generator) -> list[Turn]:
    by_category = defaultdict[str, list[Thing]](list)
    for thing in drawn.things:
        by_category[thing.category].append(thing)
    tiles = Counter(thing.tile for thing in drawn.things)
    absent = some_absent(drawn, len(by_category) + 1)
    entries = []
    for name in (*by_category, *absent):
        things = by_category.get(name, [])
        entries.append(pick(rng, ((f"count {name}", str(len(things))), (f"any {name}", yes_no(bool(things))))))
        if len(things) != 1:
            continue
        entries += [(f"place {name}", place(drawn, things[0])), (f"size {name}", things[0].size)]
        if things[0].tile is not None:
            entries.append((f"tile {name}", things[0].tile))
            entries += [(f"on {things[0].tile}", name)] if tiles[things[0].tile] == 1 else []
    return entries


def map_of(number: int, rng: np.random.Generator, lesson: Lesson) -> tuple[Scene, str]:
    """Scene `number` and its map, each word after a blank."""
    drawn = scene("pretrain maps", number, lesson.styles[number % len(lesson.styles)])
    side = pick_weighted(rng, lesson.sides, lesson.weights)
    return drawn, "".join(f" {word}" for word in words(drawn, side, pick(rng, ("naive", "letterbox")), rng))


def place_codes(side: int, width: int) -> Tensor:
    """What tells a word of a map where it stands, codes_PD: sines and cosines of its row and column.

    Patches of a picture carry their place in their position embeddings; words of a text have only their order. The
    waves (as in the fixed codes of MAE, He et al. 2022) run over fractions of the side, so a place has nearly the same
    code in a map of another size. A code is half as long as a fresh embedding, or it would drown the word.
    """
    middles = (torch.arange(side) + 0.5) / side
    waves = 2 * torch.pi * torch.logspace(-2, 2, width // 4, base=2.0)
    angles = middles[:, None] * waves
    along = torch.cat([angles.sin(), angles.cos()], 1) / (2 * width) ** 0.5
    rows, columns = along.repeat_interleave(side, 0), along.repeat(side, 1)
    return torch.cat([rows, columns], 1)


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
