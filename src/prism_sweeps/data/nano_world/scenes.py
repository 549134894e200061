"""Scenes as pure data: what stands where, drawn at random from an integer seed. No pixels here.

Boxes are (x1, y1, x2, y2) in canvas pixels, origin at the top left.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from prism_sweeps.data.nano_world.sprites import scaled_size
from prism_sweeps.data.nano_world.words import (
    BACKGROUNDS,
    CATEGORIES,
    COMMON_CATEGORIES,
    GROUP_OF,
    GROUPS,
    SIGN_WORDS,
    SIZES,
    TEXTURES,
    TILES,
)

Box = tuple[float, float, float, float]
Item = TypeVar("Item")

CANVASES: tuple[tuple[int, int], ...] = (
    *((128, 128), (128, 96), (96, 128), (128, 85), (85, 128), (128, 64), (64, 128)),
    *((128, 72), (72, 128), (128, 113), (109, 128), (120, 120), (126, 101), (77, 127)),
)
LONG_SIDES = {"small": (18, 22), "medium": (29, 35), "large": (42, 50)}
MAX_OVERLAP = 0.04  # intersection over the smaller footprint
_TRIES = 30
_WEIGHTS = {name: 2.0 if name in COMMON_CATEGORIES else 1.0 for name in CATEGORIES}


@dataclass(frozen=True)
class Thing:
    """One object: its tight box is that of the visible sprite, without the tile behind it."""

    category: str
    size: str
    tile: str | None
    box: Box

    @property
    def group(self) -> str:
        return GROUP_OF[self.category]

    @property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Sign:
    """A word on a pale plate; `box` is the plate, `height` the glyph height in pixels."""

    word: str
    height: int
    box: Box


@dataclass(frozen=True)
class Scene:
    """Everything there is to see. `seed` fixes what carries no meaning: texture phase, specks, strokes."""

    key: str
    seed: int
    width: int
    height: int
    background: str
    texture: str
    things: tuple[Thing, ...]
    sign: Sign | None
    clutter: int


@dataclass(frozen=True)
class Wish:
    """An object asked for before it has a place."""

    category: str
    size: str
    tile: str | None


@dataclass(frozen=True)
class SceneStyle:
    """A distribution over scenes.

    things: inclusive range of the number of objects wished for (one that finds no place is left out).
    sizes: weights of small, medium, large; in crowded scenes the larger ones become rarer by themselves.
    tiles: probability that an object stands on a coloured tile.
    repeats: probability that an object copies the category of an earlier one.
    theme: probability that an object belongs to the scene's theme group; gives categories their co-occurrence.
    signs: probability of a sign.
    clutter: weights of clutter levels 0, 1, 2.
    """

    things: tuple[int, int] = (1, 6)
    sizes: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tiles: float = 0.5
    repeats: float = 0.3
    theme: float = 0.5
    signs: float = 0.3
    clutter: tuple[float, float, float] = (0.5, 0.3, 0.2)


SIMPLE = SceneStyle(things=(1, 2), sizes=(0.0, 1.0, 3.0), repeats=0.1, signs=0.15, clutter=(0.8, 0.15, 0.05))
ORDINARY = SceneStyle()
CROWDED = SceneStyle(things=(5, 9), sizes=(3.0, 1.0, 0.3), repeats=0.5, clutter=(0.2, 0.4, 0.4))
PHOTO = SceneStyle(things=(1, 3), sizes=(0.3, 1.0, 2.0), tiles=0.7, repeats=0.1, signs=0.6)


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One item, uniformly."""
    return items[int(rng.random() * len(items))]


def pick_weighted(rng: np.random.Generator, items: Sequence[Item], weights: Sequence[float]) -> Item:
    """One item, with probability proportional to its weight."""
    threshold = rng.random() * math.fsum(weights)
    for item, weight in zip(items, weights, strict=True):
        threshold -= weight
        if threshold < 0:
            return item
    return items[max(index for index, weight in enumerate(weights) if weight > 0)]


@cache
def _split_entropy(split: str) -> int:
    return int.from_bytes(hashlib.sha256(split.encode()).digest()[:16], "little")


def generator(split: str, number: int) -> np.random.Generator:
    """The random stream of one item of a split; streams of different splits or numbers are independent."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_split_entropy(split) | number << 128)))


def scene(split: str, number: int, style: SceneStyle = ORDINARY) -> Scene:
    """Scene `number` of a split. The same arguments give the same scene, in any order and any process."""
    rng = generator(split, number)
    return compose(rng, style, wishes(rng, style), key=f"{split}/{number}")


def wishes(rng: np.random.Generator, style: SceneStyle) -> list[Wish]:
    """Objects for a scene: their number, categories (theme, repeats, common before rare), sizes and tiles."""
    low, high = style.things
    number = low + int(rng.random() * (high - low + 1))
    theme = pick(rng, tuple(GROUPS))
    # Many large objects do not fit on one canvas.
    crowding = 0.6 ** max(0, number - 3)
    sizes = [weight * crowding**rank for rank, weight in enumerate(style.sizes)]
    found: list[Wish] = []
    for _ in range(number):
        category = _category(rng, style, theme, found)
        tile = pick(rng, tuple(TILES)) if rng.random() < style.tiles else None
        found.append(Wish(category, pick_weighted(rng, SIZES, sizes), tile))
    return found


def _category(rng: np.random.Generator, style: SceneStyle, theme: str, before: Sequence[Wish]) -> str:
    if before and rng.random() < style.repeats:
        return pick(rng, before).category
    pool = GROUPS[theme] if rng.random() < style.theme else CATEGORIES
    return pick_weighted(rng, pool, [_WEIGHTS[name] for name in pool])


def compose(rng: np.random.Generator, style: SceneStyle, wished: Sequence[Wish], key: str) -> Scene:
    """Put the wished objects, perhaps a sign, on a canvas of random shape, background and clutter."""
    width, height = pick(rng, CANVASES)
    sign = _sign(rng, width, height) if rng.random() < style.signs else None
    taken = [] if sign is None else [sign.box]
    things = []
    for wish in sorted(wished, key=lambda wish: -SIZES.index(wish.size)):
        thing = _place(rng, wish, width, height, taken)
        if thing is not None:
            things.append(thing)
            taken.append(footprint(thing))
    return Scene(
        key=key,
        seed=int(rng.random() * 2**31),
        width=width,
        height=height,
        background=pick(rng, tuple(BACKGROUNDS)),
        texture=pick(rng, TEXTURES),
        things=tuple(things),
        sign=sign,
        clutter=pick_weighted(rng, (0, 1, 2), style.clutter),
    )


def tile_margin(box: Box) -> int:
    """How far a tile reaches beyond the object on it, in pixels."""
    return 2 + round(0.09 * max(box[2] - box[0], box[3] - box[1]))


def footprint(thing: Thing) -> Box:
    """The area an object covers, its tile included."""
    if thing.tile is None:
        return thing.box
    margin = tile_margin(thing.box)
    x1, y1, x2, y2 = thing.box
    return x1 - margin, y1 - margin, x2 + margin, y2 + margin


def sign_size(word: str, height: int) -> tuple[int, int]:
    """Width and height of a sign's plate: letters five sevenths as wide as high, one seventh apart."""
    unit = height / 7
    return round(unit * (6 * len(word) - 1)) + 6, height + 6


def _sign(rng: np.random.Generator, width: int, height: int) -> Sign:
    word, glyphs = pick(rng, SIGN_WORDS), 7 + int(rng.random() * 8)
    while sign_size(word, glyphs)[0] > width - 4:
        glyphs -= 1
    plate_width, plate_height = sign_size(word, glyphs)
    x = int(rng.random() * (width - plate_width))
    y = int(rng.random() * (height - plate_height))
    return Sign(word, glyphs, (x, y, x + plate_width, y + plate_height))


def _place(rng: np.random.Generator, wish: Wish, width: int, height: int, taken: Sequence[Box]) -> Thing | None:
    low, high = LONG_SIDES[wish.size]
    long_side = low + int(rng.random() * (high - low + 1))
    object_width, object_height = scaled_size(wish.category, long_side)
    margin = 0 if wish.tile is None else tile_margin((0, 0, object_width, object_height))
    free_width, free_height = width - object_width - 2 * margin, height - object_height - 2 * margin
    for _ in range(_TRIES):
        x = int(rng.random() * (free_width + 1))
        y = int(rng.random() * (free_height + 1))
        area = (x, y, x + object_width + 2 * margin, y + object_height + 2 * margin)
        if all(_overlap(area, other) <= MAX_OVERLAP for other in taken):
            x, y = x + margin, y + margin
            return Thing(wish.category, wish.size, wish.tile, (x, y, x + object_width, y + object_height))
    return None


def _overlap(a: Box, b: Box) -> float:
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller
