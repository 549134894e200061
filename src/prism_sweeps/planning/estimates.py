"""How long a training job will take and what memory it will need: from runs that were measured, else from shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.shapes import head_width, linear_layers, projector_widths
from prism_sweeps.config.specs import Job, StageSpec
from prism_sweeps.planning.cost import JobCost

TRAINED_BYTES = {"fp32": 4 + 4 + 8, "bf16": 4 + 4 + 8 + 2, "bf16-true": 2 + 2 + 4}
"""Of a trained parameter: weight, gradient, two moments; with bf16 all of these in fp32, and a copy to compute with."""
FROZEN_BYTES = {"fp32": 4, "bf16": 2, "bf16-true": 2}
UNMEASURED_MEMORY = "memory without activations"


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
    """One finished training job, as the throughput table of a store keeps it."""

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
class Estimate:
    """Of one job. None is not known; `basis` says what the rest rests on."""

    seconds: float | None
    gpu_hours: float | None
    """0 on a CPU."""
    peak_memory: int | None
    """Bytes on each device."""
    basis: str


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
        title=f"{spec.model.backbone.name} {spec.model.resolution.pixels} {spec.model.llm.name}",
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
    model, llm, stage = spec.model, spec.model.llm, spec.stage
    towers = [
        [t.kind, t.source, t.model, t.width, t.depth, t.heads, t.patch, t.prefix_tokens, t.mlp_ratio, t.parameters]
        for t in model.backbone.towers.values()
    ]
    vision = sum(tower.width for tower in model.backbone.towers.values())
    language = [
        [llm.architecture, llm.depth, llm.heads, llm.kv_heads, head_width(llm)],
        [llm.vocabulary, llm.tied_embeddings, linear_layers(llm)],
    ]
    tuning = spec.tuning
    trained = [sorted(stage.trains), stage.vision_blocks, tuning.method]
    if tuning.method == "lora":
        trained += [tuning.rank, sorted(tuning.targets)]
    shapes = [towers, model.resolution.pixels, projector_widths(model.projector, vision, llm.width), language, trained]
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:16]


def estimate(job: Job, cost: JobCost, engine: Engine, measured: Sequence[Measured]) -> Estimate:
    """What a training job will take where `engine` would run it, by what ran there before; evaluations have none.

    A plan does not know which device it will run on, so it takes that of the newest row that counts, and as many of
    them. Rows of the same model and stage under the same settings count first, by their tokens a second; failing
    those, all of the same precision, by their operations a second. Memory is the most that such rows of the same
    model used; failing those `resting_memory`, into which activations do not go.
    """
    spec = job.spec
    if not isinstance(spec, StageSpec):
        return Estimate(None, None, None, "evaluations are not estimated")
    memory = resting_memory(cost, spec.precision)
    fitting = _fitting(measured, spec.precision, engine.device.partition(":")[0])
    if not fitting:
        return Estimate(None, None, memory, f"no run measured yet; {UNMEASURED_MEMORY}")
    same = _same(fitting, spec, engine)
    rows = _of_newest_place(same or fitting)
    seconds = _by_tokens(rows, cost) if same else _by_operations(rows, cost)
    if same:
        memory = max(row.peak_memory for row in rows)
    return Estimate(seconds, _gpu_hours(seconds, rows[-1]), memory, _basis(rows, bool(same), seconds))


def resting_memory(cost: JobCost, precision: str) -> int:
    """Bytes of weights, gradients and moments on one device that holds all of them; without activations."""
    return cost.trainable * TRAINED_BYTES[precision] + (cost.parameters - cost.trainable) * FROZEN_BYTES[precision]


def _fitting(measured: Sequence[Measured], precision: str, device: str) -> list[Measured]:
    return [row for row in measured if row.settings.precision == precision and device in ("auto", row.device_type)]


def _same(rows: Sequence[Measured], spec: StageSpec, engine: Engine) -> list[Measured]:
    key, stage = model_key(spec), spec.name
    settings = {kind: settings_of(spec, engine, kind) for kind in {row.device_type for row in rows}}
    return [
        row for row in rows if row.model == key and row.stage == stage and row.settings == settings[row.device_type]
    ]


def _of_newest_place(rows: Sequence[Measured]) -> list[Measured]:
    place = (rows[-1].device, rows[-1].ranks)
    return [row for row in rows if (row.device, row.ranks) == place]


def _by_tokens(rows: Sequence[Measured], cost: JobCost) -> float | None:
    return None if cost.tokens is None else cost.tokens / median(row.tokens_per_second for row in rows)


def _by_operations(rows: Sequence[Measured], cost: JobCost) -> float | None:
    if cost.flops is None:
        return None
    return cost.flops / median(row.flops_per_second for row in rows) / rows[-1].ranks


def _gpu_hours(seconds: float | None, row: Measured) -> float | None:
    if seconds is None:
        return None
    return seconds * row.ranks / 3600 if row.device_type == "cuda" else 0.0


def _basis(rows: Sequence[Measured], same: bool, seconds: float | None) -> str:
    newest, runs = rows[-1], f"{len(rows)} run{'s' if len(rows) > 1 else ''}"
    where = newest.device if newest.ranks == 1 else f"{newest.ranks} x {newest.device}"
    told = f"tokens/s of {runs} of this model on {where}" if same else f"FLOP/s of {runs} on {where}"
    if seconds is None:
        told = "how many examples there are is not known"
    return told if same else f"{told}; {UNMEASURED_MEMORY}"
