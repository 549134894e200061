"""From an image file to the square, normalised pixels of every tower (prismatic facts §1.3).

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


def square(image: Image.Image, strategy: str, pixels: int, fill: Colour) -> Image.Image:
    """The image as `pixels` x `pixels`, bicubic with antialiasing.

    letterbox: pad to a square with `fill`, equally on both sides, then as crop (an odd difference leaves one column or
    row too few, which the crop takes away). crop: shorter edge to `pixels`, then the centre. naive: both edges to
    `pixels`, whatever the aspect.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"resize: unknown strategy '{strategy}'; {nearest(strategy, STRATEGIES)}")
    if strategy == "naive":
        return image.resize((pixels, pixels), BICUBIC)
    return _crop(_pad(image, fill) if strategy == "letterbox" else image, pixels)


def _pad(image: Image.Image, fill: Colour) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    if not left and not top:
        return image
    padded = Image.new("RGB", (width + 2 * left, height + 2 * top), fill)
    padded.paste(image, (left, top))
    return padded


def _crop(image: Image.Image, pixels: int) -> Image.Image:
    """torchvision's Resize(pixels) and CenterCrop(pixels), pixel for pixel."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) > STRIP * short:  # else the resized strip, nearly all of it cropped away, fills the memory
        return _crop(_middle(image, STRIP * short), pixels)
    new_width, new_height = int(pixels * width / short), int(pixels * height / short)
    left, top = round((new_width - pixels) / 2.0), round((new_height - pixels) / 2.0)
    resized = image.resize((new_width, new_height), BICUBIC)
    return resized.crop((left, top, left + pixels, top + pixels))


def _middle(image: Image.Image, longest: int) -> Image.Image:
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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
