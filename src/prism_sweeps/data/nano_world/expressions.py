"""Referring expressions, each true of exactly one thing, with that thing's box as the answer."""

from collections import Counter
from collections.abc import Iterable, Sequence

from prism_sweeps.data.nano_world.balance import Question
from prism_sweeps.data.nano_world.captions import at_place, coordinates, place
from prism_sweeps.data.nano_world.facts import CLEAR, RELATIONS, clear_place, distance, only_one, uniques
from prism_sweeps.data.nano_world.scenes import Scene, Thing

# Words for the extreme one of several alike: "left dog", "dog on the right".
_EXTREMES = {
    "to the left of": ("left {}", "{} on the left"),
    "to the right of": ("right {}", "{} on the right"),
    "above": ("top {}", "{} at the top"),
    "below": ("bottom {}", "{} at the bottom"),
}


def box_text(box: Iterable[float]) -> str:
    """A box as it is written in answers: "[0.12, 0.34, 0.56, 0.78]"."""
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"


def with_places(scene: Scene) -> list[Question]:
    """Short expressions, location words among them (RefCOCO): "dog", "left dog", "dog at the top left"."""
    found = [(name, thing) for name, thing in uniques(scene).items()]
    for relation, templates in _EXTREMES.items():
        for category, thing in _extremes(scene, relation):
            found += [(template.format(category), thing) for template in templates]
    for where, thing in _alone_at_place(scene, [thing.category for thing in scene.things]):
        # "left dog" means the leftmost one; as the name of a cell it would be a second reading.
        if where == "centre" or " " in where:
            found += [(f"{thing.category} {at_place(where)}", thing), (f"{where} {thing.category}", thing)]
    return _asked(scene, "refcoco", found)


def by_attributes(scene: Scene) -> list[Question]:
    """Short expressions without location words (RefCOCO+): "dog", "large dog", "animal on the red tile"."""
    found = [(name, thing) for name, thing in uniques(scene).items()]
    found += [(f"{thing.size} {thing.category}", thing) for thing in _alone_in(scene, "category", "size")]
    for thing in _alone_in(scene, "category", "tile"):
        if thing.tile is not None:
            found.append((f"{thing.category} on the {thing.tile} tile", thing))
            found.append((f"{thing.category} on {thing.tile}", thing))
    for thing in _alone_in(scene, "group", "tile"):
        if thing.tile is not None:
            found.append((f"{thing.group} on the {thing.tile} tile", thing))
    return _asked(scene, "refcoco+", found)


def in_sentences(scene: Scene) -> list[Question]:
    """Longer expressions (RefCOCOg): "the large dog on the red tile", "the dog that is to the left of the cat"."""
    found = [
        (f"the {thing.size} {thing.category} on the {thing.tile} tile", thing)
        for thing in _alone_in(scene, "category", "size", "tile")
        if thing.tile is not None
    ]
    for where, thing in _alone_at_place(scene, [f"{thing.size} {thing.category}" for thing in scene.things]):
        found.append((f"the {thing.size} {thing.category} {at_place(where)} of the image", thing))
    return _asked(scene, "refcocog", found + _by_neighbours(scene))


def among_clutter(scene: Scene) -> list[Question]:
    """Expressions for crowded scenes (OCID-Ref): by tile, by size, by a neighbour."""
    found = [(f"the {thing.size} {thing.category}", thing) for thing in _alone_in(scene, "category", "size")]
    for thing in _alone_in(scene, "category", "tile"):
        standing = "on no tile" if thing.tile is None else f"on the {thing.tile} tile"
        found.append((f"the {thing.category} {standing}", thing))
    return _asked(scene, "ocidref", found + _by_neighbours(scene))


def _asked(scene: Scene, kind: str, found: Iterable[tuple[str, Thing]]) -> list[Question]:
    boxes = {id(thing): tuple(coordinates(scene, thing)) for thing in scene.things}
    questions = []
    for text, thing in found:
        box, cell = boxes[id(thing)], f"{place(scene, thing)} {thing.size}"
        questions.append(Question(kind, kind, text, box_text(box), (thing.category,), box=box, cell=cell))
    return questions


def _alone_in(scene: Scene, *attributes: str) -> list[Thing]:
    """The things no other thing agrees with in all these attributes."""
    keys = [tuple(getattr(thing, name) for name in attributes) for thing in scene.things]
    counts = Counter(keys)
    return [thing for thing, key in zip(scene.things, keys, strict=True) if counts[key] == 1]


def _alone_at_place(scene: Scene, names: Sequence[str]) -> list[tuple[str, Thing]]:
    """The things whose name and place nobody shares; one of doubtful place rules its namesakes out."""
    places = [clear_place(scene, thing) for thing in scene.things]
    counts = Counter(zip(names, places, strict=True))
    return [
        (where, thing)
        for name, where, thing in zip(names, places, scene.things, strict=True)
        if where is not None and counts[name, where] == 1 and counts[name, None] == 0
    ]


def _extremes(scene: Scene, relation: str) -> list[tuple[str, Thing]]:
    found = []
    for category in dict.fromkeys(thing.category for thing in scene.things):
        alike = [thing for thing in scene.things if thing.category == category]
        if len(alike) > 1:
            first, second = sorted(alike, key=lambda thing: -distance(relation, thing, alike[0]))[:2]
            if distance(relation, first, second) > CLEAR:
                found.append((category, first))
    return found


def _by_neighbours(scene: Scene) -> list[tuple[str, Thing]]:
    """Expressions by a single thing of another category, where one of the described category is on that side."""
    found = []
    for name, anchor in uniques(scene).items():
        for relation in RELATIONS:
            other = only_one(relation, scene, anchor)
            if other is not None and other.category != name:
                found.append((f"the {other.category} that is {relation} the {name}", other))
    return found
