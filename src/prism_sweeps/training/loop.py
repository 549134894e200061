"""The training loop: steps, metrics, checkpoints and stops. What a step does to the model is in `Trainer.step`.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prism_sweeps.config.errors import ConfigError, PrismError, StoreError, nearest
from prism_sweeps.config.schema import Engine, Stage
from prism_sweeps.models.vlm import IGNORED, VLM, Batch
from prism_sweeps.tracking.records import Interrupted, JobRecord, Report
from prism_sweeps.training.checkpoints import Checkpoint, capture, load_newest, restore, save_checkpoint
from prism_sweeps.training.optimiser import schedule, set_learning_rate

PRECISIONS = ("fp32", "bf16")


class TrainingError(PrismError):
    """Training that cannot go on: its loss or its gradient is not a number."""


@dataclass
class Trainer:
    """A model, its optimiser and the rules of a step."""

    vlm: VLM
    optimiser: torch.optim.Optimizer
    stage: Stage
    steps: int
    precision: str
    device: torch.device
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision '{self.precision}'; {nearest(self.precision, PRECISIONS)}")
        self.parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step on one global batch, given in micro-batches. Raises TrainingError on NaN or infinity.

        The loss is the mean over the supervised tokens of the global batch, so how it is cut does not matter.
        """
        learning_rate = set_learning_rate(self.optimiser, schedule(step, self.steps, self.stage.warmup_ratio))
        supervised = sum(int((batch.labels_BT != IGNORED).sum()) for batch in batches)
        loss = sum(self.backward(batch, supervised) for batch in batches)
        grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, self.stage.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(diverged(step, loss, grad_norm, batches))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate, "supervised_tokens": supervised}

    def backward(self, batch: Batch, supervised: int) -> float:
        """Adds the gradient of one micro-batch's share of the loss; returns that share."""
        batch = batch.to(self.device)
        with self.autocast():
            loss_sum, _ = self.vlm.loss(batch)
        loss = loss_sum / supervised
        # rows without an image tell a stage that trains the projector alone nothing, and have no graph
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 arithmetic over fp32 weights, or nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def diverged(step: int, loss: float, grad_norm: float, batches: Sequence[Batch]) -> str:
    names = [name for batch in batches for name in batch.names]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (
        f"training diverged at step {step + 1}: loss {loss}, gradient norm {grad_norm}, on conversations {shown}; "
        "try a lower learning rate or a longer warm-up"
    )


@dataclass
class Resumed:
    """Where a run starts: its first step, and what had to be passed over to find it."""

    step: int
    damaged: list[str]


def resume(trainer: Trainer, record: JobRecord, identity: dict[str, Any]) -> Resumed:
    """Puts the newest good checkpoint into `trainer` and cuts the metrics back to it; step 0 when there is none.

    `identity` is what a checkpoint must have been made with (steps, conversations). Raises StoreError when it was not.
    """
    checkpoint, damaged = load_newest(record.checkpoints)
    if checkpoint is None:
        record.truncate_metrics(0)
        return Resumed(0, damaged)
    if checkpoint.state != identity:
        raise StoreError(
            f"the checkpoint in {record.checkpoints} was made with {checkpoint.state}, the data now give {identity}: "
            "the prepared data have changed since; restore them, or remove that folder to train from the start"
        )
    restore(trainer.vlm, trainer.optimiser, checkpoint.tensors)
    record.truncate_metrics(checkpoint.step)
    return Resumed(checkpoint.step, damaged)


def run_steps(
    trainer: Trainer,
    batches: Iterator[list[Batch]],
    start: int,
    record: JobRecord,
    engine: Engine,
    identity: dict[str, Any],
    report: Report,
    stop: Callable[[], bool],
) -> None:
    """Steps `start` to the last, one metrics row each, with a checkpoint every `engine.checkpoint_seconds`.

    Raises Interrupted, after a checkpoint, when `stop()` is true before a step.
    """
    saved = start
    saved_at = time.monotonic()
    for step in range(start, trainer.steps):
        stopping = stop()
        if step > saved and (stopping or time.monotonic() - saved_at >= engine.checkpoint_seconds):
            save(trainer, record, step, engine, identity)
            saved, saved_at = step, time.monotonic()
        if stopping:
            raise Interrupted(f"stopped before step {step + 1} of {trainer.steps}")
        row = timed_step(trainer, step, batches)
        record.append_metrics(row)
        report(step + 1, trainer.steps, f"loss {row['loss']:.3f}")


def save(trainer: Trainer, record: JobRecord, step: int, engine: Engine, identity: dict[str, Any]) -> None:
    tensors = capture(trainer.vlm, trainer.optimiser)
    save_checkpoint(record.checkpoints, Checkpoint(step, tensors, identity), engine.keep_checkpoints)


def timed_step(trainer: Trainer, step: int, batches: Iterator[list[Batch]]) -> dict[str, Any]:
    """The metrics row of one step. `step` counts from 1 in it; `seconds` includes `data_wait`."""
    began = time.perf_counter()
    micro_batches = next(batches)
    waited = time.perf_counter() - began
    found = trainer.step(step, micro_batches)
    return {
        "step": step + 1,
        **found,
        **token_counts(micro_batches, trainer.vlm.vision.patches),
        "seconds": round(time.perf_counter() - began, 6),
        "data_wait": round(waited, 6),
    }


def token_counts(batches: Sequence[Batch], patches: int) -> dict[str, int]:
    """Examples, and positions in the language model: those that hold something and all, padding included."""
    rows = sum(len(batch.names) for batch in batches)
    with_image = sum(int(batch.has_image_B.sum()) for batch in batches)
    return {
        "examples": rows,
        "tokens": sum(int(batch.mask_BT.sum()) for batch in batches) + with_image * patches,
        "padded_tokens": sum(batch.ids_BT.numel() + longest_extra(batch, patches) for batch in batches),
    }


def longest_extra(batch: Batch, patches: int) -> int:
    """Positions that patches add to a padded batch: text-only rows are padded to the width of the others."""
    return len(batch.names) * patches if bool(batch.has_image_B.any()) else 0
