"""The training sources of the nano world, in LLaVA's chat format.

instruct: question dialogues. align: captions. lvis4v: dense descriptions (as LVIS-Instruct-4V). lrv: questions about
things that are and are not there, answered in sentences (as LRV-Instruct). language: text only (as ShareGPT).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from prism_sweeps.data.nano_world import questions
from prism_sweeps.data.nano_world.balance import Balance, Question
from prism_sweeps.data.nano_world.captions import at_place, caption, coordinates, describe, place
from prism_sweeps.data.nano_world.diagrams import Diagram, diagram, draw_diagram
from prism_sweeps.data.nano_world.dialogues import (
    Turn,
    conversation,
    diagram_dialogue,
    dialogue,
    photo_dialogue,
)
from prism_sweeps.data.nano_world.draw import degrade, draw
from prism_sweeps.data.nano_world.expressions import box_text
from prism_sweeps.data.nano_world.facts import some_absent, uniques
from prism_sweeps.data.nano_world.scenes import (
    CROWDED,
    ORDINARY,
    PHOTO,
    SIMPLE,
    Scene,
    compose,
    generator,
    pick,
    pick_weighted,
    wishes,
)
from prism_sweeps.data.nano_world.text_only import text_only
from prism_sweeps.data.nano_world.words import BACKGROUNDS, TILES, article, plural

Record = dict[str, Any]
SPLIT = "train"
SOURCES = ("align", "instruct", "language", "lvis4v", "lrv")
_LOOKS = ("simple", "ordinary", "crowded", "photo", "diagram")
_STYLES = {"simple": SIMPLE, "ordinary": ORDINARY, "crowded": CROWDED, "photo": PHOTO}
CAPTION_REQUESTS = ("Describe the image.", "What is in the image?", "Write a caption for the image.")
_DETAIL_REQUESTS = ("Describe the image in detail.", "Write a detailed description of the image.")


@dataclass(frozen=True)
class Picture:
    """What training image `number` shows: a scene, perhaps badly photographed, or a diagram."""

    number: int
    look: str
    subject: Scene | Diagram

    @property
    def path(self) -> str:
        return f"images/{self.number // 1000:03d}/{self.number:06d}.png"


def picture(number: int) -> Picture:
    """Training picture `number`; does not depend on how many there are."""
    rng, key = generator(SPLIT, number), f"{SPLIT}/{number}"
    look = pick_weighted(rng, _LOOKS, (0.25, 0.48, 0.14, 0.07, 0.06))
    if look == "diagram":
        return Picture(number, look, diagram(rng, key))
    return Picture(number, look, compose(rng, _STYLES[look], wishes(rng, _STYLES[look]), key))


def render(picture: Picture) -> Image.Image:
    """The RGB image of a training picture."""
    if isinstance(picture.subject, Diagram):
        return draw_diagram(picture.subject)
    image = draw(picture.subject)
    return degrade(image, generator(f"{SPLIT} faults", picture.number)) if picture.look == "photo" else image


class Writer:
    """Writes the records of consecutive pictures, keeping the answers of each source balanced."""

    def __init__(self) -> None:
        self._balances = {source: Balance() for source in SOURCES}

    def records(self, picture: Picture) -> dict[str, Record]:
        """The records this picture gives, by source: all give instruct and align, some give the others."""
        number, subject, rng = picture.number, picture.subject, generator(f"{SPLIT} words", picture.number)
        turns = {"align": _captioned(subject, rng), "instruct": self._instructed(picture, rng)}
        if number % 3 == 0 and isinstance(subject, Scene):
            turns["lvis4v"] = _detailed(subject, rng)
        if number % 2 == 0 and isinstance(subject, Scene):
            turns["lrv"] = _truthful(subject, rng, self._balances["lrv"])
        records = {source: _record(source, picture, said) for source, said in turns.items() if said}
        if number % 8 == 0:
            said = text_only(rng, number, self._balances["language"])
            records["language"] = {
                "id": f"language/{number:06d}",
                "conversations": conversation(said, with_image=False),
            }
        return records

    def _instructed(self, picture: Picture, rng: np.random.Generator) -> list[Turn]:
        balance = self._balances["instruct"]
        if isinstance(picture.subject, Diagram):
            return diagram_dialogue(picture.subject, rng, balance)
        if picture.look == "photo":
            return photo_dialogue(picture.subject, rng, balance)
        return dialogue(picture.subject, rng, balance)


def _record(source: str, picture: Picture, turns: list[Turn]) -> Record:
    said = conversation(turns, with_image=True)
    return {"id": f"{source}/{picture.number:06d}", "image": picture.path, "conversations": said}


def _captioned(subject: Scene | Diagram, rng: np.random.Generator) -> list[Turn]:
    if isinstance(subject, Diagram):
        return [
            (pick(rng, CAPTION_REQUESTS), f"a diagram from {', then '.join(f'the {name}' for name in subject.steps)}")
        ]
    return [(pick(rng, CAPTION_REQUESTS), caption(subject, rng))]


def _detailed(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    turns = [(pick(rng, _DETAIL_REQUESTS), describe(scene, rng))]
    single = list(uniques(scene).items())
    for name, thing in [single[index] for index in rng.permutation(len(single))[:2]]:
        answer = f"the {name} is {at_place(place(scene, thing))}, its box is {box_text(coordinates(scene, thing))}."
        turns.append((f"where is the {name}?", answer))
    return turns


def _truthful(scene: Scene, rng: np.random.Generator, balance: Balance) -> list[Turn]:
    """Four turns; each family asks as often about what is there as about what is not."""
    turns = []
    for family in (_told_existence, _told_tile, _told_number, _told_background):
        question = balance.choose(rng, family(scene))
        if question is not None:
            turns.append((question.text, question.answer))
    return turns


def _told_existence(scene: Scene) -> list[Question]:
    return [
        question._replace(
            answer=f"Yes, there is {article(question.mentions[0])} in the image."
            if question.answer == "Yes"
            else f"No, there is no {question.mentions[0]} in the image.",
            cell=question.answer,
        )
        for question in questions.exists(scene)
    ]


def _told_tile(scene: Scene) -> list[Question]:
    found = []
    for name, thing in uniques(scene).items():
        for tile in TILES:
            asked = f"is the {name} on {article(f'{tile} tile')}?"
            standing = f"on {article(f'{thing.tile} tile')}" if thing.tile else "not on a tile"
            truth = questions.yes_no(tile == thing.tile)
            found.append(_told("told_tile", tile, asked, f"{truth}, the {name} is {standing}.", truth))
    for name, tile in zip(some_absent(scene, len(TILES)), TILES, strict=True):
        asked = f"is the {name} on {article(f'{tile} tile')}?"
        found.append(_told("told_tile", tile, asked, f"No, there is no {name} in the image.", "No"))
    return found


def _told_number(scene: Scene) -> list[Question]:
    found = []
    for question in questions.count(scene):
        name, number = question.mentions[0], question.answer
        noun = name if number == "1" else plural(name)
        verb = "is" if number == "1" else "are"
        told = f"there are no {noun} in the image." if number == "0" else f"there {verb} {number} {noun}."
        found.append(question._replace(answer=told, cell="none" if number == "0" else "some"))
    return found


def _told_background(scene: Scene) -> list[Question]:
    found = []
    for colour in BACKGROUNDS:
        truth = questions.yes_no(colour == scene.background)
        told = f"{truth}, the background is {scene.background}."
        found.append(_told("told_background", colour, f"is the background {colour}?", told, truth))
    return found


def _told(kind: str, subject: str, asked: str, told: str, truth: str) -> Question:
    return Question(kind, f"{kind} {subject}", asked, told, cell=truth)
