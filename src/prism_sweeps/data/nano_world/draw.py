"""Pixels of a scene. Deterministic: the same scene gives the same image.

Shapes: H height, W width, C = 3 colour channels.
"""

import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from prism_sweeps.data.nano_world.font import bitmap
from prism_sweeps.data.nano_world.scenes import Scene, Sign, Thing, footprint, sign_size
from prism_sweeps.data.nano_world.sprites import scaled_sprite
from prism_sweeps.data.nano_world.words import BACKGROUNDS, TILES

_SHEET = 192  # textures are cut from sheets of this size at a random phase
_CONTRAST = 15
_INK = (30, 30, 36)
_PLATE = (250, 246, 232)


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image of scene.width x scene.height pixels."""
    rng = random.Random(scene.seed)  # an order of magnitude quicker to seed than numpy's
    image = _background(scene, rng)
    canvas = ImageDraw.Draw(image)
    _draw_clutter(canvas, scene, rng)
    for thing in scene.things:
        _draw_thing(image, canvas, thing)
    if scene.sign is not None:
        x, y = scene.sign.box[:2]
        image.paste(_plate(scene.sign.word, scene.sign.height), (int(x), int(y)))
        canvas.rectangle(_corners(scene.sign), outline=(120, 110, 100))
    return image


def degrade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A poor photo of the same thing: blurred, too dark, noisy, or two of these."""
    faults = rng.permutation(3)[: 1 + int(rng.random() * 2)]
    if 0 in faults:
        image = image.filter(ImageFilter.GaussianBlur(1.2 + 1.3 * rng.random()))
    if 1 in faults:
        dim = 0.3 + 0.3 * rng.random()
        image = image.point([round(level * dim) for level in range(256)] * 3)
    if 2 in faults:
        noise_HWC = rng.normal(0, 28, (image.height, image.width, 3)).astype(np.int16)
        image = Image.fromarray(np.clip(np.asarray(image) + noise_HWC, 0, 255).astype(np.uint8))
    return image


def _background(scene: Scene, rng: random.Random) -> Image.Image:
    sheet = _sheet(scene.background, scene.texture)
    x = int(rng.random() * (_SHEET - scene.width))
    y = int(rng.random() * (_SHEET - scene.height))
    return sheet.crop((x, y, x + scene.width, y + scene.height))


@cache
def _sheet(background: str, texture: str) -> Image.Image:
    y_HW, x_HW = np.mgrid[0:_SHEET, 0:_SHEET]
    match texture:
        case "plain":
            pattern_HW = np.zeros((_SHEET, _SHEET))
        case "striped":
            pattern_HW = np.where((x_HW + y_HW) % 16 < 8, -1.0, 1.0)
        case "dotted":
            pattern_HW = np.where(((x_HW % 12) - 6) ** 2 + ((y_HW % 12) - 6) ** 2 < 10, -1.6, 0.4)
        case "chequered":
            pattern_HW = np.where((x_HW // 16 + y_HW // 16) % 2 == 0, -1.0, 1.0)
        case "gradient":
            pattern_HW = 4.0 * (y_HW / _SHEET - 0.5)
        case _:  # speckled
            pattern_HW = np.random.Generator(np.random.PCG64(0)).normal(0, 0.9, (_SHEET, _SHEET))
    pixels_HWC = np.array(BACKGROUNDS[background]) + _CONTRAST * pattern_HW[..., None]
    return Image.fromarray(np.clip(pixels_HWC, 0, 255).astype(np.uint8))


def _draw_clutter(canvas: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    for _ in range(4 * scene.clutter):
        x, y = rng.random() * scene.width, rng.random() * scene.height
        canvas.line((x, y, x + rng.uniform(-20, 20), y + rng.uniform(-20, 20)), fill=_neutral(rng), width=1)
    for _ in range(9 * scene.clutter):
        x, y = rng.random() * scene.width, rng.random() * scene.height
        canvas.rectangle((x, y, x + rng.uniform(0, 2), y + rng.uniform(0, 2)), fill=_neutral(rng))


def _neutral(rng: random.Random) -> tuple[int, int, int]:
    level = int(rng.uniform(90, 200))
    return level, level, level


def _draw_thing(image: Image.Image, canvas: ImageDraw.ImageDraw, thing: Thing) -> None:
    if thing.tile is not None:
        x1, y1, x2, y2 = footprint(thing)
        colour = TILES[thing.tile]
        edge = tuple(level * 2 // 3 for level in colour)
        canvas.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=4, fill=colour, outline=edge)
    x1, y1, x2, y2 = thing.box
    picture = scaled_sprite(thing.category, int(max(x2 - x1, y2 - y1)))
    image.paste(picture, (int(x1), int(y1)), picture)


def _corners(sign: Sign) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = sign.box
    return x1, y1, x2 - 1, y2 - 1


@cache
def _plate(word: str, height: int) -> Image.Image:
    width, full_height = sign_size(word, height)
    dots = Image.fromarray(bitmap(word).astype(np.uint8) * 255)
    sharp = dots.resize((dots.width * 8, dots.height * 8), Image.Resampling.NEAREST)
    letters = sharp.resize((width - 6, full_height - 6), Image.Resampling.BOX)
    plate = Image.new("RGB", (width, full_height), _PLATE)
    plate.paste(_INK, (3, 3), letters)
    return plate
