"""How long a job will take and what memory it will need.

By runs that were measured; where there are none and the plan names the GPU (`cluster.gpu`), by the job's operations and
a share of what that GPU can do, which is an assumption and told as one. Memory that was not measured is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from prism_sweeps.config.cluster import names_of, request_for, tasks_per_node
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.gpus import Gpu, card_of, gpu_named, peak_flops_of
from prism_sweeps.config.schema import Cluster, Engine
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, Job, StageSpec
from prism_sweeps.planning.cost import JobCost
from prism_sweeps.planning.measured import Evaluated, Measured, Row, model_key, settings_of, shapes_key
from prism_sweeps.planning.memory import Devices, evaluation_memory, training_memory

TRAINING_SHARE = 0.32
"""Of a GPU's best, in training. Prismatic VLMs (arXiv 2402.07865) has less than 9 hours on eight A100 for a 7B model on
665,298 conversations: with DINOv2 and SigLIP at 384 px, 0.32 of 312 TFLOP/s by the operations counted here."""
EVALUATION_SHARE = 0.12
"""Of a GPU's best, in evaluation. The authors of vlm-evaluation report 3.5 questions of VQAv2 a second for the same
model (its issue 12): 0.13 if the GPU, which is not named, was an A100."""
COUNTED_MEMORY = "memory from shapes"
UNKNOWN_SIZE = "how many examples there are is not known"


ONE = Devices()


@dataclass(frozen=True)
class Place:
    """Where a job would run."""

    engine: Engine
    gpu: Gpu | None = None
    """None: not said."""
    devices: Devices = ONE
    """That work on it."""

    @property
    def on_gpu(self) -> bool:
        """Whether it may be on one; where nothing is said, `auto` counts as the CPU."""
        return self.gpu is not None or self.engine.device.startswith("cuda")


@dataclass(frozen=True)
class Estimate:
    """Of one job. None is not known; `basis` says what the rest rests on."""

    seconds: float | None
    gpu_hours: float | None
    """Of all devices that it has; 0 on a CPU."""
    peak_memory: int | None
    """Bytes on each device."""
    devices: int
    """That work on it."""
    basis: str
    assumed: bool = False
    """Whether the time rests on an assumption instead of a measurement."""


def place_of(job: Job, engine: Engine, cluster: Cluster) -> Place:
    """Where the plan says that a job runs. ConfigError for a GPU that is not known, or that the engine does not use."""
    gpu = None if cluster.gpu is None else gpu_named(cluster.gpu)
    if gpu is not None and engine.device == "cpu":
        raise ConfigError(
            f"cluster.gpu={cluster.gpu} names a GPU, but engine={engine.name} computes on the CPU; take engine=gpu, or "
            "leave cluster.gpu null"
        )
    request = request_for(cluster, names_of(job))
    if request.jobs_per_allocation > 1:
        return Place(engine, gpu)
    return Place(engine, gpu, Devices(request.nodes, tasks_per_node(request)))


def estimate(job: Job, cost: JobCost, place: Place, measured: Sequence[Row]) -> Estimate:
    """What a job will take, by what ran at such a place before.

    A plan that names no GPU and no number of devices takes those of the newest row that counts. Rows of the same model
    and stage (or kind of benchmark) under the same settings count first, by their tokens (or examples) a second;
    failing those, all of the same precision, by their operations a second; failing those, an assumption.
    """
    if isinstance(job.spec, BaselineSpec):
        return Estimate(None, None, None, 1, "what a finished model of others costs is not known")
    if isinstance(job.spec, StageSpec):
        return _of_training(job.spec, cost, place, [row for row in measured if isinstance(row, Measured)])
    return _of_evaluation(job.spec, cost, place, [row for row in measured if isinstance(row, Evaluated)])


def _of_training(spec: StageSpec, cost: JobCost, place: Place, measured: Sequence[Measured]) -> Estimate:
    fitting = [row for row in measured if row.settings.precision == spec.precision and _at(place, row)]
    same = _same(fitting, spec, place.engine)
    rows = _of_newest_place(same or fitting, place)
    devices = _devices(rows, place)
    counted = training_memory(spec, place.engine, devices, _is_gpu(place, rows)).total
    if not rows:
        return _assumed(cost, place, counted, TRAINING_SHARE)
    if not same:
        seconds = None if cost.flops is None else cost.flops / median(r.flops_per_second for r in rows) / devices.count
        told = f"FLOP/s of {_runs(rows, devices.count)}; {COUNTED_MEMORY}"
        return _told(seconds, rows, counted, devices.count, told)
    rate = median(row.tokens_per_second / row.ranks for row in rows) * devices.count
    seconds = None if cost.tokens is None else cost.tokens / rate
    as_many = [row.peak_memory for row in rows if row.ranks == devices.count]
    told = f"tokens/s of {_runs(rows, devices.count, ' of this model')}" + ("" if as_many else f"; {COUNTED_MEMORY}")
    return _told(seconds, rows, max(as_many, default=counted), devices.count, told)


def _of_evaluation(spec: EvaluationSpec, cost: JobCost, place: Place, measured: Sequence[Evaluated]) -> Estimate:
    fitting = [row for row in measured if row.precision == spec.precision and _at(place, row)]
    benchmark, batch = spec.benchmark, place.engine.eval_batch
    key = shapes_key(spec.model) if fitting else ""
    asked = (key, benchmark.answer, benchmark.max_new_tokens, batch)
    same = [row for row in fitting if (row.model, row.answer, row.max_new_tokens, row.batch) == asked]
    rows = _of_newest_place(same or [row for row in fitting if row.answer == benchmark.answer] or fitting, place)
    counted = evaluation_memory(spec, place.engine, _is_gpu(place, rows)).total
    if not rows:
        return _assumed(cost, place, counted, EVALUATION_SHARE)
    devices = _devices(rows, place)
    if same:
        rate = median(row.examples_per_second / row.ranks for row in rows) * devices.count
        seconds = None if cost.examples is None else cost.examples / rate
        told = f"examples/s of {_runs(rows, devices.count, ' of such a benchmark')}"
    else:
        seconds = None if cost.flops is None else cost.flops / median(r.flops_per_second for r in rows) / devices.count
        told = f"FLOP/s of {_runs(rows, devices.count)}"
    return _told(seconds, rows, counted, devices.count, f"{told}; {COUNTED_MEMORY}")


def _devices(rows: Sequence[Row], place: Place) -> Devices:
    """Those of the place; where it says nothing of them, as many as have been measured."""
    free = place.gpu is None and place.devices.count == 1
    return Devices(1, rows[-1].ranks) if rows and free else place.devices


def _at(place: Place, row: Row) -> bool:
    kind = place.engine.device.partition(":")[0]
    if place.gpu is not None:
        return row.device_type == "cuda" and card_of(row.device) is place.gpu.card
    return kind in ("auto", row.device_type)


def _is_gpu(place: Place, rows: Sequence[Row]) -> bool:
    return rows[-1].device_type == "cuda" if rows else place.on_gpu


def _same(rows: Sequence[Measured], spec: StageSpec, engine: Engine) -> list[Measured]:
    if not rows:
        return []
    key, stage = model_key(spec), spec.name
    settings = {kind: settings_of(spec, engine, kind) for kind in {row.device_type for row in rows}}
    return [
        row for row in rows if row.model == key and row.stage == stage and row.settings == settings[row.device_type]
    ]


def _of_newest_place(rows: Sequence[Row], place: Place) -> list[Any]:
    """Rows of the device that was measured last, and of as many as are asked for where some were."""
    if not rows:
        return []
    asked = place.devices.count if place.gpu is not None or place.devices.count > 1 else None
    as_many = [row for row in rows if row.ranks == asked] or rows
    newest = (as_many[-1].device, as_many[-1].ranks)
    return [row for row in as_many if (row.device, row.ranks) == newest]


def _assumed(cost: JobCost, place: Place, memory: int, share: float) -> Estimate:
    """Where nothing was measured."""
    devices, precision = place.devices.count, place.engine.precision
    if place.gpu is None:
        return _unknown(place, memory, f"no run measured yet; {COUNTED_MEMORY}")
    best = peak_flops_of(place.gpu, precision)
    if best is None:
        return _unknown(place, memory, f"{place.gpu.name} does not compute in bfloat16; take engine.precision=fp32")
    if cost.flops is None:
        return _unknown(place, memory, f"{UNKNOWN_SIZE}; {COUNTED_MEMORY}")
    seconds = cost.flops / (share * best * devices)
    which = place.gpu.name if devices == 1 else f"{devices} x {place.gpu.name}"
    told = f"assumption: {share:.0%} of the {best / 1e12:.4g} TFLOP/s of {which}, nothing measured; {COUNTED_MEMORY}"
    return Estimate(seconds, seconds * devices / 3600, memory, devices, told, assumed=True)


def _unknown(place: Place, memory: int, basis: str) -> Estimate:
    on_cpu = place.engine.device == "cpu"
    return Estimate(None, 0.0 if on_cpu else None, memory, place.devices.count, basis)


def _told(seconds: float | None, rows: Sequence[Row], memory: int, devices: int, basis: str) -> Estimate:
    if rows[-1].device_type != "cuda":
        hours: float | None = 0.0
    else:
        hours = None if seconds is None else seconds * devices / 3600
    if seconds is None:
        basis = UNKNOWN_SIZE + (f"; {COUNTED_MEMORY}" if COUNTED_MEMORY in basis else "")
    return Estimate(seconds, hours, memory, devices, basis)


def _runs(rows: Sequence[Row], devices: int, of: str = "") -> str:
    newest, count = rows[-1], f"{len(rows)} run{'s' if len(rows) > 1 else ''}"
    ranks = newest.ranks
    where = newest.device if ranks == 1 else f"{ranks} x {newest.device}"
    return f"{count}{of} on {where}" + ("" if ranks == devices else f", as if {devices} were as fast each")
