"""What benchmarks/train.py trains, and on what: one model and one set of made conversations for all frameworks.

The language model's head is as large as a real one's (32,000 tokens), the rest is small. A row has 64 patches and 10 to
110 tokens of text, long ones being rarer; a tenth to six tenths of its text are answers. Of sixteen rows about one has
no image (LLaVA-1.5's mixture: 40,000 of 665,000 conversations). That leaves a fifth of all positions supervised.

Shapes: T tokens of a conversation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import made_stage
import numpy as np
import torch
from made_stage import SOURCE, random_llama
from PIL import Image

from prism_sweeps.config.schema import Engine, Tower
from prism_sweeps.config.specs import ModelSpec, StageSpec
from prism_sweeps.data.batching import Example
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.data.steps import StepMaker
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.interop import llava
from prism_sweeps.interop.model import Model
from prism_sweeps.models.language import load_tokenizer
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import image_transform
from prism_sweeps.tracking.records import Store
from prism_sweeps.training.corpus import Corpus, training_data
from prism_sweeps.training.stage import build_model
from prism_sweeps.training.world import ALONE, World

ENGINE = Engine(name="benchmark", device="cpu")
WORLD = World(ALONE, torch.device("cpu"))
COUNT = 2048
"""Conversations: as many as are sorted by length together, sixteen times."""
FIRST_WORD = 300
"""Tokens below are bytes, ends and the exported model's image token."""
PICTURE = (336, 252)
"""Width and height of an image file."""
ANSWERS = (0.1, 0.4, 0.6)
"""Shares of a conversation's text that are supervised."""
LONE = 1 / 16
"""Conversations without an image."""


@dataclass(frozen=True)
class Geometry:
    pixels: int = 112
    patch: int = 14
    tower_width: int = 256
    tower_depth: int = 6
    width: int = 384
    depth: int = 8
    mlp_width: int = 1024
    vocabulary: int = 32_000
    batch: int = 8

    @property
    def patches(self) -> int:
        return (self.pixels // self.patch) ** 2


SMALL = Geometry(28, 14, 32, 3, 32, 2, 64, 400, 4)
"""For a test."""


def model_spec(geometry: Geometry) -> ModelSpec:
    """A CLIP-like ViT, LLaVA's projector and a Llama, with random weights and heads of 64 channels or fewer."""
    tower_heads, heads = max(2, geometry.tower_width // 64), max(2, geometry.width // 64)
    shape = {"patch_size": geometry.patch, "embed_dim": geometry.tower_width, "depth": geometry.tower_depth}
    tower = Tower(
        name="clip",
        model="vit_large_patch14_clip_quickgelu_224.openai",
        kwargs=shape | {"num_heads": tower_heads},
        weights={geometry.pixels: "random:1"},
        width=geometry.tower_width,
        depth=geometry.tower_depth,
        heads=tower_heads,
        patch=geometry.patch,
        prefix_tokens=1,
    )
    llm = random_llama(geometry.width, geometry.depth, heads, geometry.mlp_width, geometry.vocabulary, context=2048)
    return made_stage.model_spec(tower, geometry.pixels, llm)


def stage_spec(geometry: Geometry, batching: str) -> StageSpec:
    """LLaVA's second stage: the tower frozen, the rest trained."""
    spec = made_stage.stage_spec(model_spec(geometry), geometry.batch, batching=batching)
    return replace(spec, stage=replace(spec.stage, learning_rate=3e-4, weight_decay=0.1))


# ---- conversations


def made_corpus(geometry: Geometry, folder: Path) -> Corpus:
    """The conversations, always the same. Their images are to be in `folder`."""
    numbers, draw = np.random.default_rng(0), random.Random(0)
    ranks = np.arange(1, geometry.vocabulary - FIRST_WORD + 1)
    likelihood = (1 / ranks) / (1 / ranks).sum()  # Zipf's law
    examples = []
    for number in range(COUNT):
        image = None if draw.random() < LONE else folder / f"{number}.jpg"
        length = min(110, max(10, round(draw.lognormvariate(4.1, 0.6))))
        ids_T = FIRST_WORD + numbers.choice(len(ranks), length, p=likelihood).astype(np.int32)
        ids_T[0] = 0
        conversation = Conversation(f"{SOURCE}/{number}", SOURCE, image, [("human", "?"), ("gpt", ".")])
        extra = 0 if image is None else geometry.patches
        examples.append(Example(conversation, ids_T, answers(length, draw.choice(ANSWERS)), length + extra))
    return Corpus(examples, [])


def answers(length: int, share: float) -> np.ndarray:
    """Which of `length` tokens are supervised: the last `share` of every turn, of which there is one in 32 tokens."""
    supervised_T = np.zeros(length, dtype=bool)
    for turn in np.array_split(np.arange(1, length), 1 + length // 32):
        supervised_T[turn[-max(1, round(share * len(turn))) :]] = True
    return supervised_T


def draw_images(examples: Sequence[Example]) -> None:
    """Writes the images of `examples` that are not there yet."""
    for image in (example.conversation.image for example in examples):
        if image is not None and not image.exists():
            image.parent.mkdir(parents=True, exist_ok=True)
            drawn = np.random.default_rng(int(image.stem)).integers(0, 255, (16, 21, 3), dtype=np.uint8)
            Image.fromarray(drawn).resize(PICTURE, Image.Resampling.BICUBIC).save(image)


def batches_of(spec: StageSpec, corpus: Corpus, steps: int) -> StepMaker:
    """The data of so many steps as the engine makes them."""
    return training_data(spec, corpus, ENGINE, steps, WORLD, False, None)


# ---- the same weights for others


def export(spec: StageSpec, store: Store, to: Path) -> None:
    """Writes the model that `spec` starts with as a folder that transformers' LLaVA reads."""
    vlm, model = build_model(spec, store).eval(), spec.model
    loaded = LoadedModel(
        vlm=vlm,
        prompts=prompt_format(model.llm, load_tokenizer(model.llm)),
        transform=image_transform(model.backbone, model.resolution, model.resize),
        text_positions=model.llm.context - vlm.vision.patches,
    )
    llava.save(Model(model, loaded, "fp32", {}), to)


def computed(spec: StageSpec, packed: bool) -> StageSpec:
    """`spec` with its batches packed or padded, whatever put them together."""
    return replace(spec, stage=replace(spec.stage, batching="packed" if packed else "grouped"))
