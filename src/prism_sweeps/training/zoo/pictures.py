"""Pictures and the text that comes with them, for training towers: drawn once, kept as arrays, shared by all towers.

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

from prism_sweeps.data.nano_world.captions import at_place, place
from prism_sweeps.data.nano_world.draw import draw
from prism_sweeps.data.nano_world.scenes import ORDINARY, SIMPLE, Scene, SceneStyle, generator, pick, scene
from prism_sweeps.data.nano_world.words import CATEGORIES, article
from prism_sweeps.models.resize import square
from prism_sweeps.tracking.files import write_atomic

SPLIT = "pretrain"
SINGLE = SceneStyle(things=(1, 1), sizes=(0.3, 1.0, 1.0), tiles=0.3, signs=0.0, theme=0.0)
CHUNK = 500
SIZES = (64, 96)


@dataclass(frozen=True)
class Pictures:
    """Square pictures of scenes of the split `pretrain`, each with one web-like caption."""

    pixels_NHWC: np.ndarray
    captions: list[str]
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
    return Pictures(np.load(_array_path(notes, pixels), mmap_mode="r"), told["captions"], told["labels"])


def web_caption(drawn: Scene, rng: np.random.Generator) -> str:
    """A caption as people write them: it names the objects, and leaves out much of the rest.

    Background and sign are told seldom, else a contrastive tower learns the colour of the background and stops.
    """
    parts = []
    for thing in drawn.things:
        size = f"{thing.size} " if rng.random() < 0.4 else ""
        under = f" on {article(f'{thing.tile} tile')}" if thing.tile and rng.random() < 0.7 else ""
        where = f" {at_place(place(drawn, thing))}" if rng.random() < 0.6 else ""
        parts.append(f"{article(size + thing.category)}{under}{where}")
    order = rng.permutation(len(parts))
    text = " and ".join(parts[index] for index in order) or "nothing"
    if drawn.sign is not None and rng.random() < 0.8:
        text += f", with a sign that says {drawn.sign.word}"
    if rng.random() < 0.2:
        text += f", on {article(f'{drawn.background} background')}"
    return text


def picture(kind: str, number: int) -> Scene:
    """Scene behind picture `number`: half of the mixed ones show one or two objects, half anything."""
    if kind == "single":
        return scene(f"{SPLIT} single", number, SINGLE)
    return scene(SPLIT, number, SIMPLE if number % 2 else ORDINARY)


def _array_path(notes: Path, pixels: int) -> Path:
    return notes.with_name(f"{notes.stem}-{pixels}.npy")


def _chunk(task: tuple[str, int, int]) -> tuple[list[list[np.ndarray]], list[str], list[int]]:
    kind, first, last = task
    images: list[list[np.ndarray]] = [[] for _ in SIZES]
    captions, labels = [], []
    for number in range(first, last):
        drawn, rng = picture(kind, number), generator(f"{SPLIT} captions", number)
        # Both ways to a square, so that no resize strategy of a study is foreign to the towers.
        image, strategy = draw(drawn), pick(rng, ("naive", "letterbox"))
        for kept, pixels in zip(images, SIZES, strict=True):
            kept.append(np.asarray(square(image, strategy, pixels, (127, 127, 127))))
        captions.append(web_caption(drawn, rng))
        labels.append(CATEGORIES.index(drawn.things[0].category) if drawn.things else -1)
    return images, captions, labels


def _draw_all(notes: Path, kind: str, number: int, workers: int) -> None:
    notes.parent.mkdir(parents=True, exist_ok=True)
    tasks = [(kind, first, min(first + CHUNK, number)) for first in range(0, number, CHUNK)]
    captions: list[str] = []
    labels: list[int] = []
    arrays = [
        np.lib.format.open_memmap(_array_path(notes, pixels), "w+", np.uint8, (number, pixels, pixels, 3))
        for pixels in SIZES
    ]
    progress = _counter(f"drawing {number} {kind} pictures")
    with ProcessPoolExecutor(workers) as pool:
        for images, said, named in pool.map(_chunk, tasks):
            for array, kept in zip(arrays, images, strict=True):
                array[len(captions) : len(captions) + len(said)] = np.stack(kept)
            captions += said
            labels += named
            progress(len(captions), number)
    for array in arrays:
        array.flush()
    write_atomic(notes, json.dumps({"captions": captions, "labels": labels}))


def _counter(title: str) -> Callable[[int, int], None]:
    def say(done: int, total: int) -> None:
        print(f"\r{title}: {done}/{total}", end="" if done < total else "\n", flush=True)

    return say
