"""Diagrams: framed pictures joined by arrows to a chain or a cycle, and questions about the order (AI2D's part)."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from prism_sweeps.data.nano_world.balance import Question
from prism_sweeps.data.nano_world.scenes import Box, pick
from prism_sweeps.data.nano_world.sprites import scaled_sprite
from prism_sweeps.data.nano_world.words import CATEGORIES

_FRAME = 28  # side of a frame in pixels
_PICTURE = 22  # long side of the picture in it
_PAPER = ((250, 250, 248), (250, 244, 226), (226, 238, 250), (228, 246, 228))
_INK = (60, 60, 70)
OPTIONS = 4


@dataclass(frozen=True)
class Diagram:
    """Steps in their order; each leads to the next, in a cycle the last one to the first."""

    key: str
    width: int
    height: int
    paper: tuple[int, int, int]
    steps: tuple[str, ...]
    centres: tuple[tuple[float, float], ...]
    cycle: bool

    @property
    def arrows(self) -> list[tuple[int, int]]:
        number = len(self.steps)
        return [(step, (step + 1) % number) for step in range(number if self.cycle else number - 1)]


def diagram(rng: np.random.Generator, key: str) -> Diagram:
    """A diagram drawn at random: four or five steps in a ring or two rows, starting anywhere, in either direction."""
    steps = tuple(CATEGORIES[index] for index in rng.permutation(len(CATEGORIES))[: 4 + int(rng.random() * 2)])
    cycle = rng.random() < 0.5
    width, height = pick(rng, ((128, 112), (128, 128), (120, 120)))
    centres = _ring(rng, len(steps), width, height) if cycle else _rows(rng, len(steps), width, height)
    return Diagram(key, width, height, pick(rng, _PAPER), steps, tuple(centres), cycle)


def draw_diagram(diagram: Diagram) -> Image.Image:
    """The diagram as an RGB image."""
    image = Image.new("RGB", (diagram.width, diagram.height), diagram.paper)
    canvas = ImageDraw.Draw(image)
    for start, end in diagram.arrows:
        _draw_arrow(canvas, diagram.centres[start], diagram.centres[end])
    for category, (x, y) in zip(diagram.steps, diagram.centres, strict=True):
        frame: Box = (x - _FRAME / 2, y - _FRAME / 2, x + _FRAME / 2, y + _FRAME / 2)
        canvas.rounded_rectangle(frame, radius=4, fill=(255, 255, 255), outline=_INK)
        picture = scaled_sprite(category, _PICTURE)
        image.paste(picture, (round(x - picture.width / 2), round(y - picture.height / 2)), picture)
    return image


def order_questions(diagram: Diagram) -> list[Question]:
    """Ask "what comes after the dog?", "what comes before the dog?", "what is the first step?"; options included."""
    steps, chance = diagram.steps, random.Random(diagram.key)
    found = []
    for before, after in diagram.arrows:
        found.append(_order(diagram, chance, "after", f"what comes after the {steps[before]}?", before, after))
        found.append(_order(diagram, chance, "before", f"what comes before the {steps[after]}?", after, before))
    if not diagram.cycle:
        found.append(_order(diagram, chance, "first", "what is the first step?", None, 0))
        found.append(_order(diagram, chance, "last", "what is the last step?", None, len(steps) - 1))
    return found


def _order(diagram: Diagram, chance: random.Random, kind: str, text: str, asked: int | None, answer: int) -> Question:
    # Wrong options are other steps of the same diagram as far as there are any.
    wrong = [step for index, step in enumerate(diagram.steps) if index not in (asked, answer)]
    chance.shuffle(wrong)
    wrong += chance.sample([name for name in CATEGORIES if name not in diagram.steps], OPTIONS)
    right = diagram.steps[answer]
    options = chance.sample([right, *wrong[: OPTIONS - 1]], OPTIONS)
    letter = "ABCD"[options.index(right)]
    return Question(f"order {kind}", f"order {kind}", text, letter, options=tuple(options), cell=letter)


def _ring(rng: np.random.Generator, number: int, width: int, height: int) -> list[tuple[float, float]]:
    start, turn = rng.random() * 2 * math.pi, pick(rng, (-1, 1))
    radius_x, radius_y = width / 2 - _FRAME / 2 - 3, height / 2 - _FRAME / 2 - 3
    angles = [start + turn * 2 * math.pi * step / number for step in range(number)]
    return [(width / 2 + radius_x * math.cos(angle), height / 2 + radius_y * math.sin(angle)) for angle in angles]


def _rows(rng: np.random.Generator, number: int, width: int, height: int) -> list[tuple[float, float]]:
    columns = [width * at for at in (0.16, 0.5, 0.84)]
    upper, lower = height * 0.27, height * 0.73
    snake = [(x, upper) for x in columns] + [(x, lower) for x in reversed(columns)]
    if rng.random() < 0.5:
        snake = [(x, height - y) for x, y in snake]
    if rng.random() < 0.5:
        snake = [(width - x, y) for x, y in snake]
    start = int(rng.random() * (len(snake) - number + 1))
    return snake[start : start + number]


def _draw_arrow(canvas: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A line with a head, both outside the frames around its ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    ux, uy = dx / length, dy / length
    # Distance from a square frame's centre to its border in this direction.
    reach = (_FRAME / 2 + 1) / max(abs(ux), abs(uy))
    tip = (end[0] - ux * reach, end[1] - uy * reach)
    neck = (tip[0] - ux * 7, tip[1] - uy * 7)
    canvas.line((*start, *neck), fill=_INK, width=2)
    canvas.polygon((tip, (neck[0] - uy * 5, neck[1] + ux * 5), (neck[0] + uy * 5, neck[1] - ux * 5)), fill=_INK)
