"""A stage with nothing to download: random weights and made-up conversations, through the package's own loop.

Shapes: T tokens of an example.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prism_sweeps.config.schema import (
    Backbone,
    Engine,
    LanguageModel,
    Projector,
    Resize,
    Resolution,
    Source,
    Stage,
    Tower,
)
from prism_sweeps.config.specs import ModelSpec, StageSpec
from prism_sweeps.data.batching import Example
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.data.steps import StepMaker
from prism_sweeps.models.vlm import VLM
from prism_sweeps.tracking.records import Store
from prism_sweeps.training.corpus import Corpus, training_data
from prism_sweeps.training.loop import Run, Trainer
from prism_sweeps.training.saving import Checkpoints
from prism_sweeps.training.stage import build_trainer, compiled, feed, telemetry
from prism_sweeps.training.world import World

SOURCE = "made"
TINY_TOWER = Tower(
    name="tiny",
    model="vit_tiny_patch16_224",
    kwargs={"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 8},
    weights={32: "random:1"},
    width=32,
    depth=3,
    heads=4,
    patch=8,
    prefix_tokens=1,
)


def random_llama(width: int, depth: int, heads: int, mlp_width: int, vocabulary: int, context: int) -> LanguageModel:
    return LanguageModel("random", "random:2", "in-out", width, depth, heads, heads, mlp_width, vocabulary, context)


def model_spec(tower: Tower, pixels: int, llm: LanguageModel) -> ModelSpec:
    return ModelSpec(
        backbone=Backbone(tower.name, {tower.name: tower}),
        resolution=Resolution(str(pixels), pixels),
        resize=Resize("naive", "naive"),
        projector=Projector("mlp", "mlp"),
        llm=llm,
    )


def stage_spec(model: ModelSpec, global_batch: int, precision: str = "fp32", batching: str = "grouped") -> StageSpec:
    stage = Stage(
        trains=["projector", "llm"], epochs=1.0, global_batch=global_batch, learning_rate=2e-5, batching=batching
    )
    return StageSpec("finetune", model, stage, {SOURCE: Source(SOURCE, "chat.json")}, seed=1, precision=precision)


def example(number: int, length: int, image: Path | None, patches: int, vocabulary: int) -> Example:
    """Of `length` text tokens, BOS included, half of which are answers, which come last."""
    draw = np.random.default_rng(number)
    ids_T = draw.integers(2, vocabulary, length, dtype=np.int32)
    ids_T[0] = 0
    supervised_T = np.arange(length) >= max(1, length // 2)
    talk = Conversation(f"{SOURCE}/{number}", SOURCE, image, [("human", "?"), ("gpt", "!")])
    return Example(talk, ids_T, supervised_T, length + (0 if image is None else patches))


def chat_lengths(count: int, seed: int = 0) -> list[tuple[int, bool]]:
    """Text tokens, and whether there is an image, of so many conversations mixed as LLaVA-1.5's 665,298.

    624,610 of these have an image. Their texts are taken to be log-normal about 200 tokens (in the mean 265), those
    without an image about 400, cut at 2048 as the reference cuts them: with 576 patches some 810 positions in the mean.
    """
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        pictured = draw.random() < 624_610 / 665_298
        length = round(math.exp(draw.gauss(math.log(200 if pictured else 400), 0.75)))
        found.append((min(max(length, 16), 2048), pictured))
    return found


def made_images(folder: Path, count: int, pixels: int) -> list[Path]:
    """JPEGs of noise as files; decoding and resizing them takes what it takes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    draw = np.random.default_rng(0)
    for path in paths:
        small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((pixels * 4 // 3, pixels)).save(path, quality=90)
    return paths


@dataclass
class Bench:
    """A trainer in its place, and its data; `run` lets the package's loop make some of the steps."""

    spec: StageSpec
    trainer: Trainer
    data: StepMaker
    engine: Engine
    world: World
    store: Store
    done: int = 0

    def run(self, steps: int, checkpoints: Checkpoints, **engine: object) -> list[dict[str, Any]]:
        """The next `steps`, with these settings of the engine; their metrics, in the first process."""
        begin, end = self.done, self.done + steps
        record = self.store.job("a" * 16)
        record.path.mkdir(parents=True, exist_ok=True)
        set_to = replace(self.engine, **engine)  # type: ignore[arg-type]
        self.trainer.steps = end
        run = Run(
            trainer=self.trainer,
            telemetry=telemetry(self.spec, record, set_to, quiet, end, self.world),
            checkpoints=checkpoints,
            identity={"steps": end},
            engine=set_to,
            stop=lambda: False,
            validate=None,
            profile=lambda: None,
        )
        run.steps(feed(self.data, range(begin, end), set_to, self.world), begin)
        self.done = end
        return record.read_metrics()[-steps:] if self.world.first else []


def bench(
    spec: StageSpec,
    build: Callable[[], VLM],
    examples: Sequence[Example],
    steps: int,
    engine: Engine,
    world: World,
    store: Store,
) -> Bench:
    trainer = build_trainer(spec, build(), steps, engine, world)
    corpus = Corpus(list(examples), [])
    data = training_data(spec, corpus, engine, steps, world, compiled(engine, world), None)
    return Bench(spec, trainer, data, engine, world, store)


def quiet(done: int, total: int, note: str) -> None:
    """Reports to nobody."""
