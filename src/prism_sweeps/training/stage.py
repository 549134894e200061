"""One stage as a job: from its spec to weights in its record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_sweeps.config.checks import profile_window
from prism_sweeps.config.errors import DataError, StoreError
from prism_sweeps.config.flops import training_operations
from prism_sweeps.config.schema import MODULES, Engine
from prism_sweeps.config.specs import StageSpec
from prism_sweeps.data.feeding import loaded_by_processes, prefetched
from prism_sweeps.data.steps import StepData, StepMaker
from prism_sweeps.models.adapters import add_adapters, merge_adapters
from prism_sweeps.models.attention import use_packed_attention, use_padded_rows
from prism_sweeps.models.resize import image_transform
from prism_sweeps.models.trained import load_trained, save_trained, trained_modules
from prism_sweeps.models.vlm import VLM, build_vlm
from prism_sweeps.tracking.records import Interrupted, JobRecord, Report, Store
from prism_sweeps.training.blocks import compile_each, recompute
from prism_sweeps.training.corpus import Corpus, read_corpus, steps_of, training_data
from prism_sweeps.training.devices import device_name, peak_flops
from prism_sweeps.training.features import FeatureTable, Filling, features_root, fill
from prism_sweeps.training.loop import Run, Trainer
from prism_sweeps.training.optimiser import parameter_groups
from prism_sweeps.training.profiling import profiled
from prism_sweeps.training.saving import Checkpoints, load_newest, remove_all
from prism_sweeps.training.sharding import blocks_of, check_precision, place, put_away
from prism_sweeps.training.telemetry import Telemetry
from prism_sweeps.training.validation import validation
from prism_sweeps.training.world import ALONE, World, joined

LOG = logging.getLogger(__name__)

Stop = Callable[[], bool]


def train_stage(
    spec: StageSpec,
    record: JobRecord,
    store: Store,
    engine: Engine,
    report: Report,
    stop: Stop,
    world: World | None = None,
) -> dict[str, Any]:
    """Trains `spec` from its parent's weights, or from the newest checkpoint of an earlier attempt.

    Writes a metrics row per step, checkpoints, and last the weights of every module that differs from its pretrained
    ones. An attempt that goes on from a checkpoint ends with the same bits as one that was never stopped, if as many
    processes work on it; with another number, the batches are the same and losses agree to rounding. All processes of
    `world` call it; the first alone writes the record.

    Returns steps, examples, tokens, supervised_tokens, loss (mean of the last steps), seconds, data_wait and what the
    throughput table needs. Raises Interrupted when `stop()` asked for it in any process, and DataError, ConfigError,
    StoreError or TrainingError.
    """
    with nullcontext(world) if world is not None else joined(ALONE, engine) as world:
        if not world.told_by_first(record.weights.is_dir()):
            train(spec, record, store, engine, report, stop, world)
        if not world.first:
            return {}
        remove_all(record.checkpoints)
        return summary(record.read_metrics()) | where(spec, engine, world)


def train(
    spec: StageSpec, record: JobRecord, store: Store, engine: Engine, report: Report, stop: Stop, world: World
) -> None:
    check_precision(spec.precision, world.device)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    corpus = read_corpus(spec, store, engine, report)
    steps = steps_of(spec, corpus)
    vlm = build_model(spec, store)
    trainer = build_trainer(spec, vlm, steps, engine, world)
    features = features_of(spec, vlm, corpus, store, engine, report, stop, world)
    data = training_data(spec, corpus, engine, steps, world, compiled(engine, world), features)
    checkpoints = Checkpoints(record.checkpoints, engine.keep_checkpoints, world.control)
    identity = {
        "steps": steps,
        "examples": len(corpus.trained),
        "positions": sum(example.length for example in corpus.trained),
    }
    start = resume(trainer, record, identity, report, world)
    window = profile_window(engine.profile, "engine.profile")
    with profiled(window, record.path / "profile", world.rank, start) as profile:
        run = Run(
            trainer=trainer,
            telemetry=telemetry(spec, record, engine, report, steps, world),
            checkpoints=checkpoints,
            identity=identity,
            engine=engine,
            stop=stop,
            validate=validation(vlm, corpus.held_out, data, world),
            profile=profile.step,
        )
        run.steps(feed(data, range(start, steps), engine, world), start)
    put_away(vlm)
    merge_adapters(vlm.llm)
    keep_weights(spec, vlm, record, store, world)


# ---- pieces


def build_model(spec: StageSpec, store: Store) -> VLM:
    """The VLM with the parent's weights in it; its projector is drawn from the spec's seed when there is no parent.

    In bf16 the language model stays in its files' type until its masters are made of it.
    """
    torch.manual_seed(spec.seed)
    vlm = build_vlm(spec.model, spec.seed, torch.float32 if spec.precision == "fp32" else None)
    if spec.parent is not None:
        load_trained(vlm, parent_weights(spec.parent, store))
    return vlm


def build_trainer(spec: StageSpec, vlm: VLM, steps: int, engine: Engine, world: World) -> Trainer:
    """Freezes what the stage does not train, and brings the model into the form that it is trained in."""
    vlm.train_only(spec.stage.trains, spec.stage.vision_blocks)
    if spec.tuning.method == "lora" and "llm" in spec.stage.trains:
        add_adapters(vlm.llm, spec.tuning, spec.seed)
    groups = parameter_groups(vlm, spec.stage)
    if spec.stage.batching == "packed":
        computed = torch.float32 if spec.precision == "fp32" else torch.bfloat16
        use_packed_attention(vlm.llm, engine.attention, world.device, computed)
    else:
        use_padded_rows(vlm.llm)
    if engine.activation_checkpointing != "none":
        recompute(blocks_of(vlm), engine.activation_checkpointing)
    if compiled(engine, world):
        compile_each(blocks_of(vlm))
    place(vlm, spec.precision, engine.sharding, world)
    return Trainer(vlm, groups, spec.stage, steps, spec.seed, world, engine.sharding)


def compiled(engine: Engine, world: World) -> bool:
    return world.device.type == "cuda" if engine.compile is None else engine.compile


def features_of(
    spec: StageSpec, vlm: VLM, corpus: Corpus, store: Store, engine: Engine, report: Report, stop: Stop, world: World
) -> Mapping[Path, Tensor] | None:
    """What the frozen towers see in every image, where that is to be kept; None where they look at it each time."""
    if not engine.feature_cache or "vision" in spec.stage.trains:
        return None
    model, images = spec.model, corpus.images()
    trained = None if spec.parent is None else parent_weights(spec.parent, store) / "vision.safetensors"
    root = features_root(
        store.root,
        model.backbone,
        model.resolution,
        model.resize,
        spec.precision,
        trained if trained is not None and trained.exists() else None,
    )
    transform = image_transform(model.backbone, model.resolution, model.resize)
    how = Filling(workers=engine.data_workers, ranks=(world.rank, world.size))
    failure: Interrupted | DataError | None = None
    try:
        fill(vlm.vision, transform, images, root, spec.precision, report, stop, how)
    except (Interrupted, DataError) as error:
        failure = error
    world.fail_together(failure)  # or all have written theirs
    return FeatureTable(root, images)


def resume(trainer: Trainer, record: JobRecord, identity: Mapping[str, int], report: Report, world: World) -> int:
    """Puts the newest good checkpoint into `trainer` and cuts the metrics back to it; returns the step to go on from.

    `identity` is what a checkpoint must have been made with (steps, conversations). Raises StoreError when it was not.
    """
    loaded = load_newest(record.checkpoints, trainer.state(), world.control)
    start = loaded.step or 0
    if loaded.step is not None and loaded.state["identity"] != identity:
        raise StoreError(
            f"the checkpoint in {record.checkpoints} was made with {loaded.state['identity']}, the data now give "
            f"{dict(identity)}: the prepared data have changed since; restore them, or remove that folder to train "
            "from the start"
        )
    if world.first:
        record.truncate_metrics(start)
        rows = len(record.read_metrics())
        lost = [f"{start - rows} of the {start} metrics rows of this run are lost"] if rows < start else []
        for warning in (*loaded.damaged, *lost):
            LOG.warning(warning)
            report(start, trainer.steps, warning)
    return start


def feed(data: StepMaker, steps: range, engine: Engine, world: World) -> Iterator[StepData]:
    """The data of `steps`, made ahead. The step's number is the data position."""
    if engine.data_workers:
        return loaded_by_processes(steps, data, engine.data_workers, world.device)
    pinned = world.device.type == "cuda"
    return prefetched(steps, lambda step: data(step).pin_memory() if pinned else data(step))


def telemetry(
    spec: StageSpec, record: JobRecord, engine: Engine, report: Report, steps: int, world: World
) -> Telemetry:
    peak = peak_flops(world.device, spec.precision, engine.peak_tflops)
    cost = {image: training_operations(spec, image) for image in (True, False)}
    return Telemetry(
        record=record if world.first else None,
        sources=tuple(spec.sources),
        steps=steps,
        bad_step=spec.stage.bad_step,
        operations=lambda data: sum(cost[image].total(*data.sums[image]) for image in cost),
        peak=None if peak is None else peak * world.size,
        device=world.device,
        report=report,
        skipped=world.told_by_first(skipped_last(record.read_metrics()) if world.first else 0),
    )


def skipped_last(rows: list[dict[str, Any]]) -> int:
    """How many of the last rows, one after another, are of bad steps."""
    return next((number for number, row in enumerate(reversed(rows)) if "skipped" not in row), len(rows))


def keep_weights(spec: StageSpec, vlm: VLM, record: JobRecord, store: Store, world: World) -> None:
    """Writes what differs from its pretrained weights; in bf16 as such, as the reference's models are published."""
    dtype = None if spec.precision == "fp32" else torch.bfloat16
    with record.writing_weights() if world.first else nullcontext(record.path) as folder:
        save_trained(vlm, folder, modules_to_save(spec, store), dtype, world.control)
    world.told_by_first(None)  # they are in place before anybody goes on


def where(spec: StageSpec, engine: Engine, world: World) -> dict[str, Any]:
    """What has to be known of a run's speed besides its totals."""
    return {
        "ranks": world.size,
        "device": device_name(world.device),
        "device_type": world.device.type,
        "peak_flops": peak_flops(world.device, spec.precision, engine.peak_tflops),
    }


def parent_weights(parent: str, store: Store) -> Path:
    weights = store.job(parent).weights
    if not weights.is_dir():
        raise StoreError(f"the weights of the stage before are missing: {weights}; run job {parent} first")
    return weights


def modules_to_save(spec: StageSpec, store: Store) -> list[str]:
    """What differs from its pretrained weights after this stage. The projector has none, so it always does."""
    inherited = trained_modules(parent_weights(spec.parent, store)) if spec.parent else set()
    return [name for name in MODULES if name in inherited | set(spec.stage.trains) | {"projector"}]


def summary(rows: list[dict[str, Any]], last: int = 10) -> dict[str, Any]:
    """Totals over the metrics rows, and the mean loss of the `last` ones."""
    summed = ("examples", "tokens", "padded_tokens", "supervised_tokens", "flops")
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    found = {
        "steps": len(rows),
        "loss": sum(losses[-last:]) / len(losses[-last:]) if losses else None,
        **{key: sum(row[key] for row in rows) for key in summed},
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "data_wait": round(sum(row["data_wait"] for row in rows), 3),
        "peak_memory": max(row["peak_memory"] for row in rows),
    }
    validated = [row["validation_loss"] for row in rows if "validation_loss" in row]
    skipped = sum("skipped" in row for row in rows)
    return found | ({"validation_loss": validated[-1]} if validated else {}) | ({"skipped": skipped} if skipped else {})
