"""Questions and statements about how things relate: two hops, logic, comparison (GQA's and VSR's part)."""

import random
from itertools import combinations, permutations

from prism_sweeps.data.nano_world.balance import Question
from prism_sweeps.data.nano_world.captions import at_place
from prism_sweeps.data.nano_world.facts import CLEAR, RELATIONS, by_tile, clear_place, distance, only_one, uniques
from prism_sweeps.data.nano_world.questions import yes_no
from prism_sweeps.data.nano_world.scenes import Scene, Thing
from prism_sweeps.data.nano_world.words import CATEGORIES, GROUP_OF, GROUPS, PLACES, SIZES, TILES, article


def beside(scene: Scene) -> list[Question]:
    """Ask "what is to the left of the dog?", where exactly one thing is."""
    return [
        Question(
            "beside",
            f"beside {relation}",
            f"what is {relation} the {name}?",
            other.category,
            (name, other.category),
        )
        for name, anchor in uniques(scene).items()
        for relation in RELATIONS
        if (other := only_one(relation, scene, anchor)) is not None
    ]


def tile_beside(scene: Scene) -> list[Question]:
    """Ask "what colour is the tile to the left of the dog?", where the one thing there stands on a tile."""
    return [
        Question(
            "tile_beside",
            f"tile_beside {relation}",
            f"what colour is the tile {relation} the {name}?",
            other.tile,
            (name,),
        )
        for name, anchor in uniques(scene).items()
        for relation in RELATIONS
        if (other := only_one(relation, scene, anchor)) is not None and other.tile is not None
    ]


def tile_of_group(scene: Scene) -> list[Question]:
    """Ask "what colour is the tile under the animal?", where there is one animal and it has one."""
    found = []
    for group in GROUPS:
        members = [thing for thing in scene.things if thing.group == group]
        if len(members) == 1 and members[0].tile is not None:
            text = f"what colour is the tile under the {group}?"
            found.append(Question("tile_of_group", f"tile_of_group {group}", text, members[0].tile))
    return found


def kind_on_tile(scene: Scene) -> list[Question]:
    """Ask "is the thing on the red tile an animal or a tool?"; right and wrong are named first equally often."""
    found = []
    for tile, things in by_tile(scene).items():
        if len(things) != 1:
            continue
        right = things[0].group
        for wrong in GROUPS:
            if wrong != right:
                for first, second in ((right, wrong), (wrong, right)):
                    text = f"is the thing on the {tile} tile {article(first)} or {article(second)}?"
                    topic = f"kind_on_tile {first} {second}"
                    found.append(Question("kind_on_tile", topic, text, right))
    return found


def both_or_either(scene: Scene) -> list[Question]:
    """Ask "is there a dog and a cat in the image?" and "… a dog or a cat …" about things present and absent."""
    present = list(dict.fromkeys(thing.category for thing in scene.things))
    groups = {GROUP_OF[name] for name in present}
    # Absent partners come from the groups that are there, so that a pair does not look unlikely.
    absent = [name for name in CATEGORIES if name not in present and GROUP_OF[name] in groups]
    chance = random.Random(scene.seed)
    pairs = [tuple(chance.sample(pool, 2)) for pool in (present, absent) if len(pool) > 1 for _ in range(3)]
    pairs += [
        (a, b) if chance.random() < 0.5 else (b, a) for a in present for b in chance.sample(absent, min(2, len(absent)))
    ]
    found = []
    for a, b in pairs:
        alike = "alike" if GROUP_OF[a] == GROUP_OF[b] else "unlike"
        for word, combined in (("and", all), ("or", any)):
            text = f"is there {article(a)} {word} {article(b)} in the image?"
            truth = combined(name in present for name in (a, b))
            found.append(Question(f"logic {word}", f"logic {word} {alike}", text, yes_no(truth), (a, b)))
    return found


def related(scene: Scene) -> list[Question]:
    """Ask "is the dog to the left of the cat?" about two single things clearly on either side."""
    return [
        Question("related", f"related {relation}", f"is the {a} {relation} the {b}?", yes_no(truth), (a, b))
        for relation, truth, (a, b) in _relations(uniques(scene))
    ]


def same_tile(scene: Scene) -> list[Question]:
    """Ask "are the dog and the cat on tiles of the same colour?"."""
    return [
        Question(
            "same_tile",
            "same_tile",
            f"are the {a} and the {b} on tiles of the same colour?",
            yes_no(thing_a.tile == thing_b.tile),
            (a, b),
        )
        for (a, thing_a), (b, thing_b) in combinations(uniques(scene).items(), 2)
        if thing_a.tile is not None and thing_b.tile is not None
    ]


def larger(scene: Scene) -> list[Question]:
    """Ask "which is larger, the dog or the cat?" about two single things of different size class."""
    return [
        Question(
            "larger",
            "larger",
            f"which is larger, the {a} or the {b}?",
            a if SIZES.index(thing_a.size) > SIZES.index(thing_b.size) else b,
            (a, b),
            cell="first" if SIZES.index(thing_a.size) > SIZES.index(thing_b.size) else "second",
        )
        for (a, thing_a), (b, thing_b) in permutations(uniques(scene).items(), 2)
        if thing_a.size != thing_b.size
    ]


def statements(scene: Scene) -> list[Question]:
    """Say true and false things: "the dog is above the cat.", "the dog is larger than the cat.", "… on a red tile."."""
    single = uniques(scene)
    said = [
        (relation, f"the {a} is {relation} the {b}.", truth, (a, b)) for relation, truth, (a, b) in _relations(single)
    ]
    for (a, thing_a), (b, thing_b) in permutations(single.items(), 2):
        steps = SIZES.index(thing_a.size) - SIZES.index(thing_b.size)
        if steps:
            said.append(("larger than", f"the {a} is larger than the {b}.", steps > 0, (a, b)))
            said.append(("smaller than", f"the {a} is smaller than the {b}.", steps < 0, (a, b)))
    for name, thing in single.items():
        if thing.tile is not None:
            said += [
                ("on a tile", f"the {name} is on {article(f'{c} tile')}.", c == thing.tile, (name,)) for c in TILES
            ]
        place = clear_place(scene, thing)
        if place is not None:
            said += [("placed", f"the {name} is {at_place(p)}.", p == place, (name,)) for p in PLACES]
    return [
        Question(f"says {relation}", f"says {relation}", text, str(truth), names)
        for relation, text, truth, names in said
    ]


def _relations(single: dict[str, Thing]) -> list[tuple[str, bool, tuple[str, str]]]:
    """Relation, whether it holds, and between whom, for all pairs clearly apart along the relation's axis."""
    found = []
    for relation in RELATIONS:
        for (a, thing_a), (b, thing_b) in permutations(single.items(), 2):
            apart = distance(relation, thing_a, thing_b)
            if abs(apart) > CLEAR:
                found.append((relation, apart > 0, (a, b)))
    return found
