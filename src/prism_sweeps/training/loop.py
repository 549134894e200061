"""The training loop: steps, what the processes agree on before each, checkpoints and stops.

What a step does to the model is in `Trainer.step`. It never waits for a GPU: losses and norms stay tensors, and are
read a step later (telemetry.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import Engine, Stage
from prism_sweeps.data.steps import StepData
from prism_sweeps.models.batch import Batch
from prism_sweeps.models.vlm import VLM
from prism_sweeps.tracking.records import Interrupted
from prism_sweeps.training.optimiser import Group, build_optimiser, schedule, set_learning_rate
from prism_sweeps.training.saving import Checkpoints, Progress
from prism_sweeps.training.sharding import hold_between_passes, like, local_part, shard_group
from prism_sweeps.training.telemetry import Telemetry
from prism_sweeps.training.world import World

RECENT = 64
"""Steps whose mean loss tells what a spike is."""
SEEN = 16
"""Of these at least."""


@dataclass(frozen=True)
class Found:
    """What a step found, still on the device."""

    learning_rate: float
    loss: Tensor
    """Of the global batch."""
    by_source_K: Tensor
    """Summed cross entropy of each data source (nats)."""
    grad_norm: Tensor
    """Before clipping."""
    bad: Tensor
    """1.0 where the update was not made: loss or gradient not finite, or a spike."""


@dataclass
class Trainer:
    """A model in its place, its optimiser and the rules of a step."""

    vlm: VLM
    groups: list[Group]
    stage: Stage
    steps: int
    seed: int
    world: World
    sharding: str
    parameters: dict[str, nn.Parameter] = field(init=False)
    """All that are trained, by name; where the model is sharded, distributed ones."""
    parts: dict[str, nn.Parameter] = field(init=False)
    """What this process holds of them, in the same memory: the optimiser needs no more."""
    optimiser: torch.optim.AdamW = field(init=False)
    recent: Tensor = field(init=False)
    """Losses of the last steps that were no spikes, on the device."""

    def __post_init__(self) -> None:
        named = dict(self.vlm.named_parameters())
        self.parameters = {name: named[name] for group in self.groups for name in group.names}
        self.parts = {
            name: parameter if local_part(parameter) is parameter else nn.Parameter(local_part(parameter.detach()))
            for name, parameter in self.parameters.items()
        }
        self.optimiser = build_optimiser(self.groups, self.parts, self.stage)
        for part in self.parts.values():  # as AdamW would at its first step; a checkpoint is read into it
            self.optimiser.state[part] = {
                "step": torch.zeros((), dtype=torch.float32, device=part.device),
                "exp_avg": torch.zeros_like(part),
                "exp_avg_sq": torch.zeros_like(part),
            }
        self.recent = torch.full((RECENT,), torch.nan, device=self.world.device)

    def step(self, step: int, data: StepData) -> Found:
        """One optimiser step on a global batch. A bad step changes nothing; `Found.bad` tells it."""
        # A function of the step alone, so that there is no state to keep of it.
        torch.manual_seed(((self.seed * 1_000_003 + step) * 65_537 + self.world.rank) % 2**63)
        rate = set_learning_rate(self.optimiser, schedule(step, self.steps, self.stage.warmup_ratio))
        sums_1K = torch.stack([self.backward(batch, batch is data.passes[-1]) for batch in data.passes]).sum(0)
        loss, by_source_K = self.world.sum_over(sums_1K).split([1, len(sums_1K) - 1])
        norm = self.clipped(with_images=data.images > 0)
        bad = self.judge(step, loss.squeeze(), norm)
        self.optimiser.grad_scale, self.optimiser.found_inf = None, bad
        self.optimiser.step()
        self.vlm.zero_grad(set_to_none=True)
        self.optimiser.zero_grad(set_to_none=True)
        return Found(rate, loss.squeeze(), by_source_K, norm, bad)

    def backward(self, batch: Batch, last: bool) -> Tensor:
        """Adds the gradient of one pass; returns its share of the loss, then its sums by source (1 + K)."""
        hold_between_passes(self.vlm, self.sharding, self.world.size, last)
        loss, by_source_K = self.vlm(batch.to(self.world.device))
        # rows without an image tell a stage that trains the projector alone nothing, and have no graph
        if loss.requires_grad:
            loss.backward()
        return torch.cat([loss.detach()[None], by_source_K])

    def clipped(self, with_images: bool) -> Tensor:
        """The norm of the gradient over all processes, which is then scaled down to `max_grad_norm`."""
        for name, part in self.parts.items():
            gradient = self.parameters[name].grad
            # Where several processes run, even a projector that saw no image has a gradient, of zeros.
            seen = with_images or name.startswith("llm.")
            part.grad = None if gradient is None or not seen else local_part(gradient)
        held = [part.grad for part in self.parts.values() if part.grad is not None]
        # In fp32 also where gradients are not; a sum of squares in bf16 loses most of its terms.
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in held]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=self.world.device)
        if (group := shard_group(self.parameters.values())) is not None:
            squared = norm.square()
            dist.all_reduce(squared, group=group)
            norm = squared.sqrt()
        nn.utils.clip_grads_with_norm_(self.parts.values(), self.stage.max_grad_norm, norm)
        return norm

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """1.0 for a step whose update must not be made, else 0.0."""
        bad = ~(loss.isfinite() & norm.isfinite())
        if self.stage.spike is not None:
            enough = self.recent.isfinite().sum() >= SEEN
            bad = bad | (enough & (loss > self.stage.spike * self.recent.nanmean()))
            place = self.recent[step % RECENT]
            place.copy_(torch.where(bad, place, loss))
        return bad.float()

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name: trained weights, the optimiser's moments, recent losses."""
        tensors: dict[str, Tensor] = {"recent": self.recent}
        for name, parameter in self.parameters.items():
            tensors[f"model.{name}"] = parameter.detach()
            for key, value in self.optimiser.state[self.parts[name]].items():
                tensors[f"optimiser.{key}.{name}"] = like(value, parameter)
        return tensors


@dataclass
class Run:
    """A trainer on its way: where its data come from, and where its telemetry and checkpoints go."""

    trainer: Trainer
    telemetry: Telemetry
    checkpoints: Checkpoints
    identity: Mapping[str, int]
    """What a checkpoint must have been made with to be gone on from."""
    engine: Engine
    stop: Callable[[], bool]
    validate: Callable[[], float] | None
    profile: Callable[[], None]
    """Called after each step."""
    saved: int = 0
    """The step of the last checkpoint, or the one that this attempt starts at."""
    saved_at: float = field(default_factory=time.monotonic)

    def steps(self, data: Iterator[StepData], start: int) -> None:
        """Steps `start` to the last. Raises Interrupted, after a checkpoint, when `stop()` is true in any process."""
        self.saved = start
        for step in range(start, self.trainer.steps):
            began = time.perf_counter()
            batch = next_of(data)
            waited = time.perf_counter() - began
            self.agree(step, batch)
            assert isinstance(batch, StepData)
            found = self.trainer.step(step, batch)
            times = {"seconds": time.perf_counter() - began, "data_wait": waited}
            self.telemetry.stepped(step, batch, found, times, partial(self.validated, step))
            self.profile()
        self.telemetry.read_all()
        self.checkpoints.finish()

    def agree(self, step: int, batch: StepData | DataError) -> None:
        """What all processes do together before a step: they save, stop or fail."""
        world = self.trainer.world
        due = world.first and self.due(step)
        failed = isinstance(batch, DataError)
        opinions = world.highest([self.stop(), due, failed, self.checkpoints.progress()])
        if opinions[3] == Progress.FAILED:
            self.checkpoints.abandon()
        if opinions[3] == Progress.WRITTEN:
            self.checkpoints.commit()
        # One that falls due while the one before is still being written waits for its turn, the step does not.
        now = opinions[0] or opinions[2] or (opinions[1] and opinions[3] != Progress.WRITING)
        if step > self.saved and now:
            self.save(step)
        if opinions[0] or opinions[2]:
            self.checkpoints.finish()
        if opinions[2]:
            raise DataError(next(text for text in world.all_say(str(batch) if failed else "") if text))
        if opinions[0]:
            raise Interrupted(f"stopped before step {step + 1} of {self.trainer.steps}")

    def due(self, step: int) -> bool:
        """Whether the clock or the count asks for a checkpoint before this step."""
        every = self.engine.checkpoint_steps
        by_count = every is not None and step - self.saved >= every
        return by_count or time.monotonic() - self.saved_at >= self.engine.checkpoint_seconds

    def save(self, step: int) -> None:
        """Begins a checkpoint of everything up to `step`; its metrics are on disk before it is."""
        self.telemetry.sync()
        self.checkpoints.begin(step, self.trainer.state(), {"identity": dict(self.identity)})
        self.saved, self.saved_at = step, time.monotonic()

    def validated(self, step: int) -> dict[str, float]:
        """The validation loss, where one is due after this step."""
        every, last = self.engine.validate_every, step + 1 == self.trainer.steps
        if self.validate is None or not (last or (every is not None and (step + 1) % every == 0)):
            return {}
        return {"validation_loss": self.validate()}


def next_of(data: Iterator[StepData]) -> StepData | DataError:
    """The next batch, or why there is none: the others have to hear it before anybody leaves."""
    try:
        return next(data)
    except DataError as error:
        return error
