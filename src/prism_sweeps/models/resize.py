"""From an image file to the square, normalised pixels of every tower (prismatic-vlms, base_vision.py).

Shapes: C colour channels, H height, W width.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.schema import STRATEGIES, Backbone, Resize, Resolution

Colour = tuple[int, int, int]
BICUBIC = Image.Resampling.BICUBIC
GREY: Colour = (128, 128, 128)
STRIP = 32
"""Aspect from which an image is cut to its middle before it is resized."""
LONGEST = 16384
"""Side from which an image is shrunk before it is padded to a square, which would be a gigabyte."""
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def load_image(path: Path) -> Image.Image:
    """The image as RGB, upright by its EXIF orientation.

    Alpha is dropped, not blended (`Image.convert("RGB")`, as the reference does); 16-bit grey is scaled to 8 bit.
    Raises DataError naming the file.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) // 257).astype(np.uint8))
            return upright.convert("RGB")
    except UNREADABLE as error:
        raise DataError(f"image '{path}' cannot be read: {error}") from error


@dataclass(frozen=True)
class Scale:
    """The whole picture made `width` x `height`."""

    width: int
    height: int


@dataclass(frozen=True)
class Window:
    """A part of the picture, whose corner is at `left`, `top`; what lies outside of the picture is filled."""

    left: int
    top: int
    width: int
    height: int


Size = tuple[int, int]
"""Width and height, in pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in pixels: the first pixel of a row reaches from 0 to 1."""
Steps = list[Scale | Window]


def naive(size: Size, pixels: int) -> Steps:
    """Both edges to `pixels`, whatever the aspect."""
    return [Scale(pixels, pixels)]


def crop(size: Size, pixels: int) -> Steps:
    """The shorter edge to `pixels`, then the centre: torchvision's Resize(pixels) and CenterCrop(pixels)."""
    (width, height), short = size, min(size)
    if max(size) > STRIP * short + 1:  # else the resized strip, nearly all of it cropped away, fills the memory
        middle = _middle(size, STRIP * short)
        return [middle, *crop((middle.width, middle.height), pixels)]
    new_width, new_height = int(pixels * width / short), int(pixels * height / short)
    left, top = round((new_width - pixels) / 2.0), round((new_height - pixels) / 2.0)
    return [Scale(new_width, new_height), Window(left, top, pixels, pixels)]


def letterbox(size: Size, pixels: int) -> Steps:
    """Padded to a square, equally on both sides, then as crop.

    An odd difference leaves one column or row too few, which the crop takes away, as published.
    """
    (width, height), side = size, max(size)
    if side > LONGEST:
        shorter = max(1, round(min(size) * LONGEST / side))
        shrunk = (LONGEST, shorter) if width == side else (shorter, LONGEST)
        return [Scale(*shrunk), *letterbox(shrunk, pixels)]
    left, top = (side - width) // 2, (side - height) // 2
    padded = (width + 2 * left, height + 2 * top)
    return [Window(-left, -top, *padded), *crop(padded, pixels)]


def _middle(size: Size, longest: int) -> Window:
    """The centre stays where it is, so what is left over is even."""
    width, height = (edge if edge <= longest else longest + (edge - longest) % 2 for edge in size)
    return Window((size[0] - width) // 2, (size[1] - height) // 2, width, height)


def steps(size: Size, strategy: str, pixels: int) -> Steps:
    """What makes a picture of this size a square of `pixels`. Raises ConfigError for an unknown strategy."""
    known = {"letterbox": letterbox, "naive": naive, "crop": crop}
    if strategy not in known:
        raise ConfigError(f"resize: unknown strategy '{strategy}'; {nearest(strategy, STRATEGIES)}")
    return known[strategy](size, pixels)


def square(image: Image.Image, strategy: str, pixels: int, fill: Colour) -> Image.Image:
    """The image as `pixels` x `pixels`, bicubic with antialiasing; padding has the colour `fill`."""
    for step in steps(image.size, strategy, pixels):
        image = image.resize((step.width, step.height), BICUBIC) if isinstance(step, Scale) else _cut(image, step, fill)
    return image


def _cut(image: Image.Image, window: Window, fill: Colour) -> Image.Image:
    left, top, size = window.left, window.top, (window.width, window.height)
    if left >= 0 and top >= 0:
        return image if size == image.size else image.crop((left, top, left + size[0], top + size[1]))
    padded = Image.new("RGB", size, fill)
    padded.paste(image, (-left, -top))
    return padded


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in its square: `square = image * scale + shift` along x and along y, in pixels."""

    size: Size
    pixels: int
    scale: tuple[float, float]
    shift: tuple[float, float]

    def to_square(self, box: Box) -> Box:
        """A box in the picture as one in the square, without what the square does not show."""
        x1, y1, x2, y2 = (edge * self.scale[i % 2] + self.shift[i % 2] for i, edge in enumerate(box))
        return _clipped((x1, y1, x2, y2), (self.pixels, self.pixels))

    def from_square(self, box: Box) -> Box:
        """A box in the square as one in the picture, without what is padding."""
        x1, y1, x2, y2 = ((edge - self.shift[i % 2]) / self.scale[i % 2] for i, edge in enumerate(box))
        return _clipped((x1, y1, x2, y2), self.size)


def frame(size: Size, strategy: str, pixels: int) -> Frame:
    """Of the square that `square` makes of a picture of this size. Raises ConfigError for an unknown strategy."""
    now, scale, shift = size, (1.0, 1.0), (0.0, 0.0)
    for step in steps(size, strategy, pixels):
        new = (step.width, step.height)
        if isinstance(step, Scale):
            factor = (new[0] / now[0], new[1] / now[1])
            scale = (scale[0] * factor[0], scale[1] * factor[1])
            shift = (shift[0] * factor[0], shift[1] * factor[1])
        else:
            shift = (shift[0] - step.left, shift[1] - step.top)
        now = new
    return Frame(size, pixels, scale, shift)


def _clipped(box: Box, size: Size) -> Box:
    x1, y1, x2, y2 = (min(max(edge, 0.0), float(size[i % 2])) for i, edge in enumerate(box))
    return (x1, y1, x2, y2)


@dataclass(frozen=True)
class ImageTransform:
    """Image -> pixels_CHW for every tower, float32, normalised by that tower's mean and deviation."""

    strategy: str
    pixels: int
    statistics: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    """Tower -> (mean, standard deviation) per channel, of pixels in 0..1."""

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        squares: dict[Colour, Tensor] = {}
        pixels: dict[str, Tensor] = {}
        for tower, (mean, deviation) in self.statistics.items():
            # only letterboxing shows the fill; otherwise all towers share one resize
            fill = tuple(int(255 * channel) for channel in mean) if self.strategy == "letterbox" else GREY
            if fill not in squares:
                squares[fill] = _unit(square(image, self.strategy, self.pixels, fill))
            pixels[tower] = (squares[fill] - _channel(mean)) / _channel(deviation)
        return pixels

    def blank(self) -> dict[str, Tensor]:
        """The pixels of a mid-grey image."""
        return self(Image.new("RGB", (self.pixels, self.pixels), GREY))


def image_transform(backbone: Backbone, resolution: Resolution, resize: Resize) -> ImageTransform:
    """The transform of a cell; picklable, holds no model."""
    if resize.strategy not in STRATEGIES:
        raise ConfigError(f"resize: unknown strategy '{resize.strategy}'; {nearest(resize.strategy, STRATEGIES)}")
    statistics = {name: (tuple(tower.mean), tuple(tower.std)) for name, tower in backbone.towers.items()}
    return ImageTransform(resize.strategy, resolution.pixels, statistics)


def _unit(image: Image.Image) -> Tensor:
    pixels_HWC = torch.from_numpy(np.array(image))
    return pixels_HWC.permute(2, 0, 1).contiguous().float().div_(255)


def _channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
