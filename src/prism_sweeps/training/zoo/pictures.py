"""Pictures and the phrases that go with their parts, for training towers: drawn once, kept as arrays, shared by all.

Shapes: N pictures, H height, W width, C colour channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prism_sweeps.data.nano_world.draw import draw
from prism_sweeps.data.nano_world.scenes import ORDINARY, SIMPLE, Box, Scene, SceneStyle, generator, pick, scene
from prism_sweeps.data.nano_world.words import CATEGORIES, article
from prism_sweeps.models.resize import square
from prism_sweeps.tracking.files import write_atomic

SPLIT = "pretrain"
SINGLE = SceneStyle(things=(1, 1), sizes=(0.3, 1.0, 1.0), tiles=0.3, signs=0.0, theme=0.0)
CHUNK = 500
SIZES = (64, 96)

Region = tuple[str, Box]
"""What is seen in a part of a picture, and where: x1 y1 x2 y2 as fractions of the square picture."""


@dataclass(frozen=True)
class Pictures:
    """Square pictures of scenes of the split `pretrain`."""

    pixels_NHWC: np.ndarray
    regions: list[list[Region]]
    labels: list[int]
    """Category of the first object, an index into CATEGORIES; -1 where no object found room."""

    def batch(self, numbers: np.ndarray) -> Tensor:
        """Pictures as float pixels_BCHW, normalised by mean 0.5 and standard deviation 0.5."""
        chosen = torch.from_numpy(self.pixels_NHWC[np.sort(numbers)][np.argsort(np.argsort(numbers))])
        return chosen.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def pictures(folder: Path, kind: str, pixels: int, number: int, workers: int) -> Pictures:
    """The first `number` pictures of a kind (`mixed`, or `single` with one object) at `pixels`, drawn unless kept."""
    notes = folder / f"{kind}-{number}.json"
    if not notes.exists():
        _draw_all(notes, kind, number, workers)
    told = json.loads(notes.read_text())
    return Pictures(np.load(_array_path(notes, pixels), mmap_mode="r"), told["regions"], told["labels"])


def regions(drawn: Scene, strategy: str) -> list[Region]:
    """The objects, the sign, and the picture as a whole, which is called after its background."""
    found: list[Region] = [(article(f"{drawn.background} background"), (0.0, 0.0, 1.0, 1.0))]
    for thing in drawn.things:
        under = f" on {article(f'{thing.tile} tile')}" if thing.tile else ""
        found.append((f"{article(f'{thing.size} {thing.category}')}{under}", squared(thing.box, drawn, strategy)))
    if drawn.sign is not None:
        found.append((f"a sign that says {drawn.sign.word}", squared(drawn.sign.box, drawn, strategy)))
    return found


def squared(box: Box, drawn: Scene, strategy: str) -> Box:
    """A box in the scene's pixels as fractions of the picture made square by `naive` or `letterbox`."""
    x1, y1, x2, y2 = box
    if strategy == "naive":
        return x1 / drawn.width, y1 / drawn.height, x2 / drawn.width, y2 / drawn.height
    side = max(drawn.width, drawn.height)
    left, top = (side - drawn.width) / 2, (side - drawn.height) / 2
    return (x1 + left) / side, (y1 + top) / side, (x2 + left) / side, (y2 + top) / side


def covered(box: Box, side: int) -> list[int]:
    """Patches whose middle lies in the box, and the one in which the box has its own."""
    x1, y1, x2, y2 = (side * edge for edge in box)
    columns = [x for x in range(side) if x1 <= x + 0.5 <= x2] or [min(side - 1, int((x1 + x2) / 2))]
    rows = [y for y in range(side) if y1 <= y + 0.5 <= y2] or [min(side - 1, int((y1 + y2) / 2))]
    return [y * side + x for y in rows for x in columns]


def way_to_square(number: int) -> str:
    """Both ways in turn, so that no resize strategy of a study is foreign to the towers."""
    return pick(generator(f"{SPLIT} captions", number), ("naive", "letterbox"))


def picture(kind: str, number: int) -> Scene:
    """Scene behind picture `number`: half of the mixed ones show one or two objects, half anything."""
    if kind == "single":
        return scene(f"{SPLIT} single", number, SINGLE)
    return scene(SPLIT, number, SIMPLE if number % 2 else ORDINARY)


def _array_path(notes: Path, pixels: int) -> Path:
    return notes.with_name(f"{notes.stem}-{pixels}.npy")


def _chunk(task: tuple[str, int, int]) -> tuple[list[list[np.ndarray]], list[list[Region]], list[int]]:
    kind, first, last = task
    images: list[list[np.ndarray]] = [[] for _ in SIZES]
    parts, labels = [], []
    for number in range(first, last):
        drawn, strategy = picture(kind, number), way_to_square(number)
        image = draw(drawn)
        for kept, pixels in zip(images, SIZES, strict=True):
            kept.append(np.asarray(square(image, strategy, pixels, (127, 127, 127))))
        parts.append(regions(drawn, strategy))
        labels.append(CATEGORIES.index(drawn.things[0].category) if drawn.things else -1)
    return images, parts, labels


def _draw_all(notes: Path, kind: str, number: int, workers: int) -> None:
    notes.parent.mkdir(parents=True, exist_ok=True)
    tasks = [(kind, first, min(first + CHUNK, number)) for first in range(0, number, CHUNK)]
    parts: list[list[Region]] = []
    labels: list[int] = []
    arrays = [
        np.lib.format.open_memmap(_array_path(notes, pixels), "w+", np.uint8, (number, pixels, pixels, 3))
        for pixels in SIZES
    ]
    progress = _counter(f"drawing {number} {kind} pictures")
    with ProcessPoolExecutor(workers) as pool:
        for images, seen, named in pool.map(_chunk, tasks):
            for array, kept in zip(arrays, images, strict=True):
                array[len(parts) : len(parts) + len(seen)] = np.stack(kept)
            parts += seen
            labels += named
            progress(len(parts), number)
    for array in arrays:
        array.flush()
    write_atomic(notes, json.dumps({"regions": parts, "labels": labels}))


def _counter(title: str) -> Callable[[int, int], None]:
    def say(done: int, total: int) -> None:
        print(f"\r{title}: {done}/{total}", end="" if done < total else "\n", flush=True)

    return say
