"""Scenes in words: short captions in several phrasings, and dense descriptions with coordinates."""

from collections import defaultdict

import numpy as np

from prism_sweeps.data.nano_world.scenes import Scene, Thing, pick
from prism_sweeps.data.nano_world.words import NUMBERS, PLACES, article, plural

_THIRDS = (1 / 3, 2 / 3)


def place(scene: Scene, thing: Thing) -> str:
    """Where a thing is, in the words of a 3 x 3 grid over the canvas: "top left", "centre", "bottom"."""
    x, y = thing.centre
    column = sum(x / scene.width > third for third in _THIRDS)
    row = sum(y / scene.height > third for third in _THIRDS)
    return PLACES[3 * row + column]


def at_place(place: str) -> str:
    """The place as an adverbial: "at the top left", "in the centre", "on the left"."""
    preposition = {"centre": "in", "left": "on", "right": "on"}.get(place, "at")
    return f"{preposition} the {place}"


def background(scene: Scene) -> str:
    """Colour and texture: "blue striped background", "white background"."""
    texture = "" if scene.texture == "plain" else f"{scene.texture} "
    return f"{scene.background} {texture}background"


def coordinates(scene: Scene, thing: Thing) -> list[float]:
    """The box x1, y1, x2, y2 as fractions of the canvas, two decimals (the frame and rounding of RefCOCO answers)."""
    x1, y1, x2, y2 = thing.box
    fractions = (x1 / scene.width, y1 / scene.height, x2 / scene.width, y2 / scene.height)
    return [round(fraction, 2) for fraction in fractions]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence over everything in the scene, alike objects counted together, phrasing drawn at random."""
    things = _listed(_phrases(scene, rng))
    ground = background(scene)
    sentence = pick(
        rng,
        (
            f"{things}, on {article(ground)}",
            f"{things} on {article(ground)}",
            f"{article(ground)} with {things}",
            f"a picture of {things}, on {article(ground)}",
            f"there is {things}, the background is {_ground_words(scene)}",
        ),
    )
    return sentence if scene.sign is None else f"{sentence}, {_sign_phrase(scene.sign.word, rng)}"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A long description: every object with its size, place, tile and box, then background, sign and counts."""
    sentences = [f"the image has {article(background(scene))}."]
    order = rng.permutation(len(scene.things))
    sentences += [_sentence(scene, scene.things[index], rng) for index in order]
    if scene.sign is not None:
        sentences.append(
            pick(rng, (f"a sign says {scene.sign.word}.", f"there is a sign that says {scene.sign.word}."))
        )
    number = len(scene.things)
    verb = "is" if number == 1 else "are"
    sentences.append(f"in all there {verb} {_counted(number, 'thing')}.")
    return " ".join(sentences)


def _phrases(scene: Scene, rng: np.random.Generator) -> list[str]:
    alike: dict[tuple[str, str, str | None], list[Thing]] = defaultdict(list)
    for thing in scene.things:
        alike[thing.category, thing.size, thing.tile].append(thing)
    phrases = []
    for (category, size, tile), members in alike.items():
        where = f" {at_place(place(scene, members[0]))}" if len(members) == 1 and rng.random() < 0.6 else ""
        adjective = "" if size == "medium" and rng.random() < 0.5 else f"{size} "
        if len(members) == 1:
            under = "" if tile is None else f" on {article(f'{tile} tile')}"
            phrases.append(f"{article(adjective + category)}{under}{where}")
        else:
            under = "" if tile is None else f" on {tile} tiles"
            phrases.append(f"{NUMBERS[len(members)]} {adjective}{plural(category)}{under}")
    return [phrases[index] for index in rng.permutation(len(phrases))]


def _listed(phrases: list[str]) -> str:
    if not phrases:
        return "nothing"
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _ground_words(scene: Scene) -> str:
    return scene.background if scene.texture == "plain" else f"{scene.background} and {scene.texture}"


def _sign_phrase(word: str, rng: np.random.Generator) -> str:
    return pick(rng, (f"with a sign that says {word}", f"and a sign says {word}", f'with the word "{word}" on a sign'))


def _sentence(scene: Scene, thing: Thing, rng: np.random.Generator) -> str:
    what = article(f"{thing.size} {thing.category}")
    where = at_place(place(scene, thing))
    box = "[" + ", ".join(f"{value:.2f}" for value in coordinates(scene, thing)) + "]"
    standing = "" if thing.tile is None else f" on {article(f'{thing.tile} tile')}"
    return pick(
        rng,
        (
            f"{where} there is {what}{standing}, its box is {box}.",
            f"there is {what}{standing} {where}, at {box}.",
            f"{what}{standing} is {where}, at {box}.",
        ),
    )


def _counted(number: int, noun: str) -> str:
    return f"{NUMBERS[number]} {noun if number == 1 else plural(noun)}"
