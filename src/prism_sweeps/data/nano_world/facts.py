"""What can be said about a scene without ambiguity: who is unique, who is where, how two things relate."""

import math
from collections import Counter, defaultdict

from prism_sweeps.data.nano_world.scenes import Scene, Thing
from prism_sweeps.data.nano_world.words import CATEGORIES, PLACES

# Axis and sign along which a relation between the centres of two things is measured.
RELATIONS: dict[str, tuple[int, int]] = {
    "to the left of": (0, -1),
    "to the right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
CLEAR = 10.0  # pixels by which two centres must differ for a relation to be asked about
_STRIDES = [stride for stride in range(1, len(CATEGORIES)) if math.gcd(stride, len(CATEGORIES)) == 1]
_BORDER = 0.04  # fraction of the canvas around a third's border in which a place is not asked about


def uniques(scene: Scene) -> dict[str, Thing]:
    """The things whose category occurs once, by category."""
    counts = Counter(thing.category for thing in scene.things)
    return {thing.category: thing for thing in scene.things if counts[thing.category] == 1}


def some_absent(scene: Scene, number: int) -> list[str]:
    """A few categories that are not in the scene; always the same ones for the same scene."""
    present = {thing.category for thing in scene.things}
    # A stride that shares no factor with the number of categories visits all of them.
    start, stride = scene.seed % len(CATEGORIES), _STRIDES[scene.seed // len(CATEGORIES) % len(_STRIDES)]
    visited = (CATEGORIES[(start + step * stride) % len(CATEGORIES)] for step in range(number + len(present)))
    return [name for name in visited if name not in present][:number]


def by_tile(scene: Scene) -> dict[str, list[Thing]]:
    """The things that stand on a tile, by tile colour."""
    found: dict[str, list[Thing]] = defaultdict(list)
    for thing in scene.things:
        if thing.tile is not None:
            found[thing.tile].append(thing)
    return dict(found)


def distance(relation: str, a: Thing, b: Thing) -> float:
    """How far, in pixels, `a` lies in the relation's direction from `b`; negative on the other side."""
    axis, sign = RELATIONS[relation]
    return sign * (a.centre[axis] - b.centre[axis])


def only_one(relation: str, scene: Scene, anchor: Thing) -> Thing | None:
    """The one thing clearly in this relation to the anchor; None if there is none, several, or a doubtful one."""
    ahead = [
        (distance(relation, thing, anchor), thing)
        for thing in scene.things
        if thing is not anchor and distance(relation, thing, anchor) > 0
    ]
    return ahead[0][1] if len(ahead) == 1 and ahead[0][0] > CLEAR else None


def clear_place(scene: Scene, thing: Thing) -> str | None:
    """The thing's cell of the 3 x 3 grid, or None if its centre is too near a cell's border to be sure."""
    column, row = (_third(thing.centre[0] / scene.width), _third(thing.centre[1] / scene.height))
    return None if column is None or row is None else PLACES[3 * row + column]


def _third(fraction: float) -> int | None:
    if any(abs(fraction - border) < _BORDER for border in (1 / 3, 2 / 3)):
        return None
    return int(fraction * 3)
