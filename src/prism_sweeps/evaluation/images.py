"""Images opened and transformed ahead of the model that is to see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.feeding import loaded_by_processes, prefetched
from prism_sweeps.evaluation.requests import Size
from prism_sweeps.models.resize import ImageTransform, load_image


@dataclass(frozen=True)
class Picture:
    """One image as the model sees it."""

    pixels: dict[str, Tensor]
    """Of each tower, pixels_CHW."""
    size: Size | None
    """Of the image, upright, before it was resized; None of the grey one."""


Opened = Picture | DataError
"""An image, or what is wrong with it."""


def open_image(path: Path | None, transform: ImageTransform) -> Opened:
    """None is the grey image."""
    if path is None:
        return Picture(transform.blank(), None)
    try:
        image = load_image(path)
    except DataError as error:
        return error
    return Picture(transform(image), image.size)


def open_all(paths: Sequence[Path | None], transform: ImageTransform) -> list[Opened]:
    return [open_image(path, transform) for path in paths]


def opened_ahead(
    units: Sequence[Sequence[Path | None]], transform: ImageTransform, processes: int, device: torch.device
) -> Iterator[list[Opened]]:
    """The images of each unit, in order, by a thread, or by so many processes."""
    make = partial(open_all, transform=transform)
    if processes:
        return loaded_by_processes(units, make, processes, device)
    return prefetched(units, make)
