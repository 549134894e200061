"""What was measured of finished jobs, as the throughput table of a store keeps it and estimates use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.shapes import head_width, linear_layers, projector_widths
from prism_sweeps.config.specs import EvaluationSpec, ModelSpec, StageSpec
from prism_sweeps.planning.cost import evaluation_operations


@dataclass(frozen=True)
class Settings:
    """Of the engine: what decides how fast the same model runs on the same device."""

    precision: str
    micro_batch: int
    batching: str
    activation_checkpointing: str
    compile: bool
    sharding: str


@dataclass(frozen=True)
class Measured:
    """One finished training job."""

    model: str
    """The shapes that decide its cost, and what of them is trained, as one hash (`model_key`)."""
    stage: str
    title: str
    """What people call it."""
    device: str
    device_type: str
    """cpu | cuda"""
    ranks: int
    settings: Settings
    tokens_per_second: float
    """Positions that hold something, on all ranks together."""
    examples_per_second: float
    flops_per_second: float
    """The model's own operations, on each device."""
    peak_memory: int
    """Bytes on the device that used most."""
    seconds: float
    """Of all steps."""
    steps: int
    mfu: float | None = None
    """Share of the device's best that `flops_per_second` is; None where the best is not known."""


@dataclass(frozen=True)
class Evaluated:
    """One finished evaluation job."""

    model: str
    """Its shapes, as one hash (`shapes_key`)."""
    benchmark: str
    title: str
    device: str
    device_type: str
    answer: str
    """How answers are obtained: generate | choice | letter | box."""
    max_new_tokens: int
    precision: str
    batch: int
    """Questions at a time (`engine.eval_batch`)."""
    examples: int
    seconds: float
    """From the job's start to its end, loading the model included."""
    examples_per_second: float
    """Of all processes together."""
    flops_per_second: float
    """Of each."""
    ranks: int = 1
    kind: str = "evaluate"


Row = Measured | Evaluated


def measured_row(spec: StageSpec, engine: Engine, result: Mapping[str, Any]) -> Measured:
    """The row of a training job that ended with `result`, whose keys are:

    steps, seconds (of all steps, more than 0); tokens, examples, flops (of all steps and ranks; tokens are positions
    that hold something, flops as `config.flops.training_operations` counts them); ranks, device (its name), device_type
    (cpu | cuda), peak_flops (FLOP/s of one device at best, or None), peak_memory (bytes, of the rank that used most).
    """
    seconds, ranks, best = result["seconds"], result["ranks"], result["peak_flops"]
    achieved = result["flops"] / seconds / ranks
    return Measured(
        model=model_key(spec),
        stage=spec.name,
        title=title_of(spec.model),
        device=result["device"],
        device_type=result["device_type"],
        ranks=ranks,
        settings=settings_of(spec, engine, result["device_type"]),
        tokens_per_second=result["tokens"] / seconds,
        examples_per_second=result["examples"] / seconds,
        flops_per_second=achieved,
        peak_memory=result["peak_memory"],
        seconds=seconds,
        steps=result["steps"],
        mfu=None if best is None else achieved / best,
    )


def evaluated_row(
    spec: EvaluationSpec, engine: Engine, examples: int, seconds: float, ranks: int, device: str, device_type: str
) -> Evaluated:
    """The row of an evaluation of so many examples (more than 0) that took `ranks` processes so many seconds (more than
    0) in all."""
    return Evaluated(
        model=shapes_key(spec.model),
        benchmark=spec.benchmark.name,
        title=title_of(spec.model),
        device=device,
        device_type=device_type,
        answer=spec.benchmark.answer,
        max_new_tokens=spec.benchmark.max_new_tokens,
        precision=spec.precision,
        batch=engine.eval_batch,
        examples=examples,
        seconds=seconds,
        examples_per_second=examples / seconds,
        flops_per_second=examples * evaluation_operations(spec) / seconds / ranks,
        ranks=ranks,
    )


def title_of(model: ModelSpec) -> str:
    """What people call a model."""
    return f"{model.backbone.name} {model.resolution.pixels} {model.llm.name}"


def settings_of(spec: StageSpec, engine: Engine, device_type: str) -> Settings:
    """What the engine does with the stage on this type of device."""
    return Settings(
        precision=spec.precision,
        micro_batch=engine.micro_batch,
        batching=spec.stage.batching,
        activation_checkpointing=engine.activation_checkpointing,
        compile=device_type == "cuda" if engine.compile is None else engine.compile,
        sharding=engine.sharding,
    )


def model_key(spec: StageSpec) -> str:
    """The same for stages that cost the same for an example of the same length: names, weights and recipes are out."""
    tuning = spec.tuning
    trained = [sorted(spec.stage.trains), spec.stage.vision_blocks, tuning.method]
    if tuning.method == "lora":
        trained += [tuning.rank, sorted(tuning.targets)]
    return _hashed([*_shapes(spec.model), trained])


def shapes_key(model: ModelSpec) -> str:
    """The same for models that cost the same to ask."""
    return _hashed(_shapes(model))


def _shapes(model: ModelSpec) -> list[Any]:
    llm = model.llm
    towers = [
        [t.kind, t.source, t.model, t.width, t.depth, t.heads, t.patch, t.prefix_tokens, t.mlp_ratio, t.parameters]
        for t in model.backbone.towers.values()
    ]
    vision = sum(tower.width for tower in model.backbone.towers.values())
    language = [
        [llm.architecture, llm.depth, llm.heads, llm.kv_heads, head_width(llm)],
        [llm.vocabulary, llm.tied_embeddings, linear_layers(llm)],
    ]
    return [towers, model.resolution.pixels, projector_widths(model.projector, vision, llm.width), language]


def _hashed(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
