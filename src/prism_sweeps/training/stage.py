"""One stage as a job: from its spec to weights in its record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.config.schema import MODULES, Engine
from prism_sweeps.config.specs import StageSpec
from prism_sweeps.data.batching import Example, batch_stream, encode_all, micro_batches, prefetched, steps_in
from prism_sweeps.data.mixture import read_mixture
from prism_sweeps.data.prepare import ensure_dataset
from prism_sweeps.models.adapters import add_adapters, merge_adapters
from prism_sweeps.models.language import load_tokenizer
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import image_transform
from prism_sweeps.models.vlm import VLM, Batch, build_vlm, load_trained, save_trained
from prism_sweeps.tracking.records import JobRecord, Report, Store
from prism_sweeps.training.checkpoints import remove_all
from prism_sweeps.training.loop import Trainer, resume, run_steps
from prism_sweeps.training.optimiser import build_optimiser

LOG = logging.getLogger(__name__)


def train_stage(
    spec: StageSpec, record: JobRecord, store: Store, engine: Engine, report: Report, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Trains `spec` from its parent's weights, or from the newest checkpoint of an earlier attempt.

    Writes a metrics row per step, checkpoints, and last the weights of every module that differs from its pretrained
    ones. An attempt that goes on from a checkpoint ends with the same bits as one that was never stopped.

    Returns steps, examples, tokens, supervised_tokens, loss (mean of the last steps), seconds, data_wait. Raises
    Interrupted when `stop()` asked for it, and DataError, ConfigError, StoreError or TrainingError.
    """
    if not record.weights.is_dir():
        train(spec, record, store, engine, report, stop)
    remove_all(record.checkpoints)
    return summary(record.read_metrics())


def train(
    spec: StageSpec, record: JobRecord, store: Store, engine: Engine, report: Report, stop: Callable[[], bool]
) -> None:
    vlm = build_model(spec, store)
    examples = read_examples(spec, store, engine, vlm.vision.patches, report)
    steps = steps_in(len(examples), spec.stage.global_batch, passes(spec), spec.max_steps)
    trainer = build_trainer(spec, vlm, steps, device_of(engine))
    identity = {"steps": steps, "examples": len(examples), "positions": sum(example.length for example in examples)}
    resumed = resume(trainer, record, identity)
    for warning in resumed.damaged:
        LOG.warning(warning)
        report(resumed.step, steps, warning)
    batches = feed(examples, spec, engine.micro_batch, range(resumed.step, steps))
    run_steps(trainer, batches, resumed.step, record, engine, identity, report, stop)
    merge_adapters(vlm.llm)
    with record.writing_weights() as folder:
        save_trained(vlm, folder, modules_to_save(spec, store))


# ---- pieces


def build_model(spec: StageSpec, store: Store) -> VLM:
    """The VLM with the parent's weights in it; its projector is drawn from the spec's seed when there is no parent."""
    torch.manual_seed(spec.seed)
    vlm = build_vlm(spec.model, spec.seed)
    if spec.parent is not None:
        load_trained(vlm, parent_weights(spec.parent, store))
    return vlm


def build_trainer(spec: StageSpec, vlm: VLM, steps: int, device: torch.device) -> Trainer:
    """Freezes what the stage does not train, and sets the random state that training starts from."""
    vlm.train_only(spec.stage.trains, spec.stage.vision_blocks)
    if spec.tuning.method == "lora" and "llm" in spec.stage.trains:
        add_adapters(vlm.llm, spec.tuning, spec.seed)
    vlm.to(device)
    torch.manual_seed(spec.seed)
    return Trainer(vlm, build_optimiser(vlm, spec.stage), spec.stage, steps, spec.precision, device)


def read_examples(spec: StageSpec, store: Store, engine: Engine, patches: int, report: Report) -> list[Example]:
    """The stage's conversations, prepared where they are not yet, and tokenised."""
    for source in spec.sources.values():
        ensure_dataset(source.dataset, store.data, engine.workers, report)
    conversations = read_mixture(spec.sources, store.data)
    llm = spec.model.llm
    prompts = prompt_format(llm, load_tokenizer(llm))
    return encode_all(conversations, prompts, patches, llm.context, llm.max_text)


def feed(examples: list[Example], spec: StageSpec, micro_batch: int, steps: range) -> Iterator[list[Batch]]:
    """The batches of `steps`, each global batch cut into micro-batches. The step's number is the data position."""
    transform = image_transform(spec.model.backbone, spec.model.resolution, spec.model.resize)
    stream = batch_stream([example.length for example in examples], spec.stage.global_batch, spec.seed)
    return prefetched(
        islice(stream, steps.start, steps.stop),
        lambda indices: micro_batches([examples[index] for index in indices], micro_batch, transform),
    )


def passes(spec: StageSpec) -> float:
    """Epochs of the stage. Raises ConfigError when planning left them open."""
    if spec.stage.epochs is None:
        raise ConfigError(f"stage '{spec.name}' has no epochs; resolve them against the schedule first")
    return spec.stage.epochs


def parent_weights(parent: str, store: Store) -> Path:
    weights = store.job(parent).weights
    if not weights.is_dir():
        raise StoreError(f"the weights of the stage before are missing: {weights}; run job {parent} first")
    return weights


def modules_to_save(spec: StageSpec, store: Store) -> list[str]:
    """What differs from its pretrained weights after this stage. The projector has none, so it always does."""
    inherited = (
        {file.stem for file in parent_weights(spec.parent, store).glob("*.safetensors")} if spec.parent else set()
    )
    return [name for name in MODULES if name in inherited | set(spec.stage.trains) | {"projector"}]


def device_of(engine: Engine) -> torch.device:
    """`auto` is the GPU where there is one."""
    if engine.device != "auto":
        return torch.device(engine.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def summary(rows: list[dict[str, Any]], last: int = 10) -> dict[str, Any]:
    """Totals over the metrics rows, and the mean loss of the `last` ones."""
    totals = {
        key: sum(row[key] for row in rows) for key in ("examples", "tokens", "padded_tokens", "supervised_tokens")
    }
    ending = rows[-last:]
    return {
        "steps": len(rows),
        "loss": sum(row["loss"] for row in ending) / len(ending),
        **totals,
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "data_wait": round(sum(row["data_wait"] for row in rows), 3),
    }
