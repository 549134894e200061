"""Questions about what is there: existence, number, colour, place, tile, sign. Each family lists all it can ask."""

from collections import Counter
from collections.abc import Callable

from prism_sweeps.data.nano_world.balance import Question
from prism_sweeps.data.nano_world.captions import at_place
from prism_sweeps.data.nano_world.facts import by_tile, clear_place, some_absent, uniques
from prism_sweeps.data.nano_world.scenes import Scene
from prism_sweeps.data.nano_world.words import CATEGORIES, GROUPS, SIZES, TILES, article, plural

Family = Callable[[Scene], list[Question]]
MOST = 5  # the largest number asked for


def yes_no(truth: bool) -> str:
    """The answer word of existence and relation questions."""
    return "Yes" if truth else "No"


def exists(scene: Scene) -> list[Question]:
    """Ask "is there a dog in the image?" about every category present and some that are not."""
    present = dict.fromkeys(thing.category for thing in scene.things)
    return [
        Question(
            "exists", f"exists {name}", f"is there {article(name)} in the image?", yes_no(name in present), (name,)
        )
        for name in (*present, *some_absent(scene, 10))
    ]


def count(scene: Scene) -> list[Question]:
    """Ask "how many dogs are there?", 0 to MOST."""
    counts = Counter(thing.category for thing in scene.things)
    return _counts(
        "count",
        [(f"how many {plural(name)} are there?", counts[name], (name,)) for name in (*counts, *some_absent(scene, 6))],
    )


def count_group(scene: Scene) -> list[Question]:
    """Ask "how many animals are there?", 0 to MOST."""
    counts = Counter(thing.group for thing in scene.things)
    return _counts("count_group", [(f"how many {plural(name)} are there?", counts[name], ()) for name in GROUPS])


def count_which(scene: Scene) -> list[Question]:
    """Ask for things picked by two properties: "how many things are on red tiles?", "how many large fruits …?"."""
    tiles = Counter(thing.tile for thing in scene.things)
    sizes = Counter(thing.size for thing in scene.things)
    groups = Counter((thing.group, thing.size) for thing in scene.things)
    standing = Counter(thing.group for thing in scene.things if thing.tile is not None)
    standing.update(thing.category for thing in scene.things if thing.tile is not None)
    asked = [(f"how many things are on {tile} tiles?", tiles[tile], ()) for tile in TILES]
    asked += [(f"how many {size} things are there?", sizes[size], ()) for size in SIZES]
    asked += [
        (f"how many {size} {plural(group)} are there?", groups[group, size], ()) for group in GROUPS for size in SIZES
    ]
    asked += [(f"how many {plural(group)} are on a tile?", standing[group], ()) for group in GROUPS]
    present = dict.fromkeys(thing.category for thing in scene.things)
    asked += [(f"how many {plural(name)} are on a tile?", standing[name], (name,)) for name in present]
    return _counts("count_which", asked)


def background_colour(scene: Scene) -> list[Question]:
    """Ask "what colour is the background?"."""
    return [Question("background", "background", "what colour is the background?", scene.background)]


def background_pattern(scene: Scene) -> list[Question]:
    """Ask "what pattern does the background have?"."""
    return [Question("pattern", "pattern", "what pattern does the background have?", scene.texture)]


def on_tile(scene: Scene) -> list[Question]:
    """Ask "what is on the red tile?", where one tile has that colour."""
    return [
        Question(
            "on_tile",
            f"on_tile {tile}",
            f"what is on the {tile} tile?",
            things[0].category,
            (things[0].category,),
        )
        for tile, things in by_tile(scene).items()
        if len(things) == 1
    ]


def tile_colour(scene: Scene) -> list[Question]:
    """Ask "what colour is the tile under the dog?", where there is one dog."""
    return [
        Question(
            "tile_colour",
            f"tile_colour {name}",
            f"what colour is the tile under the {name}?",
            thing.tile,
            (name,),
        )
        for name, thing in uniques(scene).items()
        if thing.tile is not None
    ]


def which_size(scene: Scene) -> list[Question]:
    """Ask "what is the large thing?", where one thing has that size."""
    found = []
    for size in ("small", "large"):
        things = [thing for thing in scene.things if thing.size == size]
        if len(things) == 1:
            name = things[0].category
            found.append(Question("which_size", f"which_size {size}", f"what is the {size} thing?", name, (name,)))
    return found


def where(scene: Scene) -> list[Question]:
    """Ask "where is the dog?", answered by a cell of the 3 x 3 grid."""
    return [
        Question("where", f"where {name}", f"where is the {name}?", place, (name,))
        for name, thing in uniques(scene).items()
        if (place := clear_place(scene, thing)) is not None
    ]


def what_at(scene: Scene) -> list[Question]:
    """Ask "what is at the top left?", where one thing is there and no other is nearly there."""
    places = [(clear_place(scene, thing), thing) for thing in scene.things]
    if any(place is None for place, _ in places):
        return []
    counts = Counter(place for place, _ in places)
    return [
        Question(
            "what_at",
            f"what_at {place}",
            f"what is {at_place(place)}?",
            thing.category,
            (thing.category,),
        )
        for place, thing in places
        if place is not None and counts[place] == 1
    ]


SIGN_QUESTIONS = ("what does the sign say?", "what word is on the sign?", "what is written on the sign?")


def sign_word(scene: Scene) -> list[Question]:
    """Ask "what does the sign say?"."""
    if scene.sign is None:
        return []
    return [Question("sign_word", f"sign_word {text}", text, scene.sign.word) for text in SIGN_QUESTIONS]


def sign_exists(scene: Scene) -> list[Question]:
    """Ask "is there a sign in the image?"."""
    return [Question("sign_exists", "sign_exists", "is there a sign in the image?", yes_no(scene.sign is not None))]


def unanswerable(scene: Scene) -> list[Question]:
    """Questions of the families above whose subject is not in the scene; the wording gives nothing away."""
    tiles = by_tile(scene)
    texts = [("on_tile", tile, f"what is on the {tile} tile?") for tile in TILES if tile not in tiles]
    for name in some_absent(scene, 4):
        texts.append(("tile_colour", name, f"what colour is the tile under the {name}?"))
        texts.append(("where", name, f"where is the {name}?"))
    if scene.sign is None:
        texts += [("sign_word", text, text) for text in SIGN_QUESTIONS]
    return [
        Question(family, f"{family} {subject}", text, "Unanswerable", (subject,) if subject in CATEGORIES else ())
        for family, subject, text in texts
    ]


def _counts(kind: str, asked: list[tuple[str, int, tuple[str, ...]]]) -> list[Question]:
    return [Question(kind, text, text, str(truth), names) for text, truth, names in asked if truth <= MOST]
