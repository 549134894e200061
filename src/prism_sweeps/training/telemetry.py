"""What a run tells of itself: a row of metrics per step, lines in its log, progress for whoever watches.

Shapes: K data sources.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prism_sweeps.config.errors import PrismError
from prism_sweeps.data.steps import StepData
from prism_sweeps.tracking.records import JobRecord, Report
from prism_sweeps.training.devices import peak_memory

if TYPE_CHECKING:
    from prism_sweeps.training.loop import Found

LOG = logging.getLogger(__name__)
LOG_SECONDS = 10.0
SKIPPED = 64
"""Bad steps in a row after which skipping helps no more."""


class TrainingError(PrismError):
    """Training that cannot go on: its loss or its gradient is not a number, or the loss has jumped."""


@dataclass(frozen=True)
class Unread:
    """A step whose numbers may still be under way from the device."""

    row: dict[str, Any]
    data: StepData
    numbers: Tensor
    """loss, gradient norm, bad, then the sums by source: 3 + K, on the CPU once `arrived`."""
    arrived: torch.cuda.Event | None
    """On a GPU, when they are."""
    ended: torch.cuda.Event | None
    """And when what was computed beside the step, its validation, had been too."""


@dataclass
class Telemetry:
    """Collects what steps found, and writes it where this process keeps the record."""

    record: JobRecord | None
    """Of the first process only."""
    sources: Sequence[str]
    steps: int
    bad_step: str
    operations: Callable[[StepData], float]
    """Floating-point operations of the model on a global batch, recomputation left out."""
    peak: float | None
    """Operations per second that all devices could do at best."""
    device: torch.device
    report: Report
    waiting: deque[Unread] = field(default_factory=deque)
    before: torch.cuda.Event | None = None
    """When all of the step read last had been done."""
    skipped: int = 0
    """Bad steps in a row."""
    logged: float = 0.0

    def stepped(
        self,
        step: int,
        data: StepData,
        found: Found,
        times: Mapping[str, float],
        beside: Callable[[], Mapping[str, float]],
    ) -> None:
        """Takes note of a step (from 0), and reads what has arrived of those before.

        `times` are its `seconds`, as seen from this side, and its `data_wait`; what `beside` computes goes into its row
        and not into its time. Raises TrainingError for a bad step that is not to be skipped.
        """
        numbers = torch.cat([torch.stack([found.loss, found.grad_norm, found.bad]), found.by_source_K])
        arrived = ended = None
        if self.device.type == "cuda":
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = recorded()
            self.read_all()  # the step before: the device is busy with this one meanwhile
        row = {"step": step + 1, "learning_rate": found.learning_rate, **counts(data), **times, **beside()}
        if arrived is not None:
            ended = recorded()
        self.waiting.append(Unread(row, data, numbers, arrived, ended))
        if arrived is None:
            self.read_all()

    def read_all(self) -> None:
        """Writes the rows of all steps taken so far. Raises TrainingError."""
        while self.waiting:
            self.read(self.waiting.popleft())

    def sync(self) -> None:
        """`read_all`, and the rows are on the disk afterwards."""
        self.read_all()
        if self.record is not None:
            self.record.sync_metrics()

    def read(self, step: Unread) -> None:
        if step.arrived is not None:
            step.arrived.synchronize()
            if self.before is not None:
                step.row["seconds"] = self.before.elapsed_time(step.arrived) / 1000
            self.before = step.ended
        loss, norm, bad, *sums = step.numbers.tolist()
        row = {"step": step.row["step"], "loss": loss, "grad_norm": norm, **step.row}
        row |= {
            f"loss/{source}": total / count
            for source, total, count in zip(self.sources, sums, step.data.supervised, strict=True)
            if count and len(self.sources) > 1
        }
        row |= self.speed(row, step.data)
        self.skipped = self.skipped + 1 if bad else 0
        if bad and (self.bad_step == "stop" or self.skipped >= SKIPPED):
            raise TrainingError(diverged(row["step"], loss, norm, step.data.names, self.skipped))
        if bad:
            row |= {"loss": None, "grad_norm": None, "skipped": list(step.data.names)}
        if bad and self.record is not None:
            LOG.warning("step %d was skipped: loss %s, gradient norm %s", row["step"], loss, norm)
        self.tell(row)

    def speed(self, row: dict[str, Any], data: StepData) -> dict[str, Any]:
        """Rates of a step, in tokens a second over all processes."""
        seconds = row["seconds"]
        operations = self.operations(data)
        rates: dict[str, Any] = {
            "tokens_per_second": round(data.tokens / seconds, 1),
            "supervised_per_second": round(sum(data.supervised) / seconds, 1),
            "padded_per_second": round(data.padded / seconds, 1),
            "flops": operations,
            "peak_memory": peak_memory(self.device),
        }
        return rates if self.peak is None else rates | {"mfu": round(operations / seconds / self.peak, 4)}

    def tell(self, row: dict[str, Any]) -> None:
        if self.record is not None:
            row |= {"seconds": round(row["seconds"], 6), "data_wait": round(row["data_wait"], 6)}
            self.record.append_metrics(row)
        text = f"loss {row['loss']:.3f}" if row["loss"] is not None else "skipped"
        self.report(row["step"], self.steps, text)
        last = row["step"] == self.steps
        if self.record is not None and (last or time.monotonic() - self.logged >= LOG_SECONDS):
            self.logged = time.monotonic()
            LOG.info("step %d of %d: %s, %.0f tokens/s", row["step"], self.steps, text, row["tokens_per_second"])


def recorded() -> torch.cuda.Event:
    """When the device has done all it was asked for until now."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def counts(data: StepData) -> dict[str, int]:
    return {
        "examples": len(data.names),
        "tokens": data.tokens,
        "padded_tokens": data.padded,
        "supervised_tokens": sum(data.supervised),
    }


def diverged(step: int, loss: float, grad_norm: float, names: Sequence[str], in_a_row: int) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    what = "diverged" if not math.isfinite(loss + grad_norm) else "jumped"
    times = f" ({in_a_row} bad steps in a row)" if in_a_row > 1 else ""
    return (
        f"training {what} at step {step}{times}: loss {loss}, gradient norm {grad_norm}, on conversations {shown}; "
        "try a lower learning rate or a longer warm-up, or stages.chain.STAGE.bad_step=skip to leave such steps out"
    )
