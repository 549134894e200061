"""What a stage trains on: its examples, those it holds out, and the order and cut of its batches."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from prism_sweeps.config.checks import backbone_patches
from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import StageSpec
from prism_sweeps.data import layout as layouts
from prism_sweeps.data import order
from prism_sweeps.data.batching import Example, Layout, encode_all
from prism_sweeps.data.mixture import read_mixture
from prism_sweeps.data.prepare import ensure_dataset
from prism_sweeps.data.steps import StepMaker
from prism_sweeps.models.language import load_tokenizer
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import image_transform
from prism_sweeps.tracking.records import Report, Store
from prism_sweeps.training.world import World

ROW = 4096
"""Positions of a packed row where nobody says, if every example fits in."""


@dataclass(frozen=True)
class Corpus:
    """The conversations of a stage, tokenised."""

    trained: list[Example]
    held_out: list[Example]

    def images(self) -> list[Path]:
        """Each image once."""
        shown = (example.conversation.image for example in (*self.trained, *self.held_out))
        return list(dict.fromkeys(image for image in shown if image is not None))

    @cached_property
    def sizes(self) -> order.Corpus:
        """What decides the order of those that are trained on."""
        return order.Corpus(
            [example.length for example in self.trained],
            [example.conversation.image is not None for example in self.trained],
            [order.word_count(example.conversation) for example in self.trained],
        )


def read_corpus(spec: StageSpec, store: Store, engine: Engine, report: Report) -> Corpus:
    """The stage's conversations, prepared where they are not yet, and tokenised.

    Those held out are the same for every seed, so that validation losses can be compared. Raises DataError.
    """
    for source in spec.sources.values():
        ensure_dataset(source.dataset, store.data, engine.workers, report)
    conversations = read_mixture(spec.sources, store.data)
    llm = spec.model.llm
    patches = backbone_patches(spec.model.backbone, spec.model.resolution.pixels)
    examples = encode_all(conversations, prompt_format(llm, load_tokenizer(llm)), patches, llm.context, llm.max_text)
    count = spec.stage.held_out
    if count >= len(examples):
        raise DataError(f"held_out is {count}, but the stage has {len(examples)} conversations; hold fewer out")
    apart = set(random.Random("held out").sample(range(len(examples)), count))
    return Corpus(
        [example for place, example in enumerate(examples) if place not in apart],
        [examples[place] for place in sorted(apart)],
    )


def steps_of(spec: StageSpec, corpus: Corpus) -> int:
    """Optimiser steps of the stage. Raises ConfigError when planning left its epochs open."""
    if spec.stage.epochs is None:
        raise ConfigError(f"stage '{spec.name}' has no epochs; resolve them against the schedule first")
    stage = spec.stage
    return order.steps_in(stage.batching, corpus.sizes, stage.global_batch, stage.epochs, spec.max_steps)


def training_data(
    spec: StageSpec,
    corpus: Corpus,
    engine: Engine,
    steps: int,
    world: World,
    compiled: bool,
    features: Mapping[Path, Tensor] | None,
) -> StepMaker:
    """The data of every step. Raises ConfigError for arithmetic that cannot work out."""
    layouts.check_ranks(spec.stage.global_batch, world.size)
    stage, sizes = spec.stage, corpus.sizes
    stream = order.batch_stream(stage.batching, sizes, stage.global_batch, spec.seed)
    rows = row_tokens(spec, engine, [*corpus.trained, *corpus.held_out])
    packed = stage.batching == "packed"
    batches = [next(stream) for _ in range(steps)]
    # What is compiled for one length of a row is not compiled again for another.
    positions = min(rows, even(max(sum(sizes.lengths[i] for i in batch) for batch in batches)))
    layout = layout_of(spec, packed, positions if packed and compiled else 0, features)
    return StepMaker(
        examples=corpus.trained,
        words=sizes.words,
        batches=batches,
        layout=layout,
        loss=stage.loss,
        averaged=stage.micro_batch,
        micro_batch=engine.micro_batch,
        row_tokens=rows,
        rank=world.rank,
        ranks=world.size,
    )


def layout_of(spec: StageSpec, packed: bool, positions: int, features: Mapping[Path, Tensor] | None) -> Layout:
    model = spec.model
    return Layout(
        transform=image_transform(model.backbone, model.resolution, model.resize),
        patches=backbone_patches(model.backbone, model.resolution.pixels),
        sources=tuple(spec.sources),
        packed=packed,
        positions=positions,
        features=features,
    )


def row_tokens(spec: StageSpec, engine: Engine, examples: Sequence[Example]) -> int:
    """Positions of a packed row. Raises ConfigError when the longest example has more than the engine allows."""
    longest = max(example.length for example in examples)
    if not engine.row_tokens:
        # Not the context: positions begin anew in every example.
        return max(longest, ROW)
    if spec.stage.batching == "packed" and longest > engine.row_tokens:
        raise ConfigError(
            f"engine.row_tokens is {engine.row_tokens}, but the longest example takes {longest} positions; give at "
            "least as many, or 0"
        )
    return engine.row_tokens


def even(positions: int, block: int = 128) -> int:
    """`positions`, up to the next multiple of what kernels compute at a time."""
    return -(-positions // block) * block
