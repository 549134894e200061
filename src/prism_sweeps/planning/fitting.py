"""Whether a job fits its GPU, and the smallest change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from prism_sweeps.config.checks import backbone_patches
from prism_sweeps.config.cluster import JOINT, names_of, request_for
from prism_sweeps.config.schema import RECOMPUTATIONS, Cluster, Engine, Tuning
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, Job, StageSpec
from prism_sweeps.planning.datasets import longest_text
from prism_sweeps.planning.estimates import place_of
from prism_sweeps.planning.memory import ROW, evaluation_memory, needed_of_gpu, training_memory

Changes = dict[str, Any]
"""Key of an override -> its value."""
MOST_PER_NODE = 8
MOST_NODES = 16
BLOCK = 128
"""Packed rows are as long as a multiple of this."""


@dataclass(frozen=True)
class Setting:
    """All that the memory of a job hangs on."""

    job: Job
    engine: Engine
    cluster: Cluster

    @property
    def devices(self) -> int:
        return place_of(self.job, self.engine, self.cluster).devices.count

    def fits(self) -> bool:
        """By shapes, on the GPU that the cluster names; False where the work cannot be shared out to the devices."""
        place, spec = place_of(self.job, self.engine, self.cluster), self.job.spec
        # Of a finished model of others nobody knows how much memory it needs, so nobody asks what would fit.
        assert place.gpu is not None
        assert not isinstance(spec, BaselineSpec)
        if isinstance(spec, EvaluationSpec):
            memory = evaluation_memory(spec, self.engine, on_gpu=True)
        elif spec.stage.global_batch % place.devices.count:
            return False
        else:
            memory = training_memory(spec, self.engine, place.devices, on_gpu=True)
        return needed_of_gpu(memory.total) <= place.gpu.memory

    def changed(self, changes: Mapping[str, Any]) -> Setting:
        """As it would be with these overrides."""
        job, engine, cluster = self.job, self.engine, self.cluster
        for key, value in changes.items():
            group, _, inside = key.partition(".")
            if key == "tuning":
                job = _with_spec(job, tuning=Tuning(name=value, method="lora"))
            elif group == "engine":
                engine = replace(engine, **{inside: value})
                job = _with_spec(job, precision=value) if inside == "precision" else job
            else:
                cluster = _with_request(cluster, inside, value)
        return Setting(job, engine, cluster)


def change_that_fits(setting: Setting) -> list[str] | None:
    """The overrides with which a job that does not fit its GPU would; None where none are enough.

    Ways are, in this order, recomputing, smaller passes, more devices of a node, more nodes, sharding, bf16-true and
    adapters; the last two give other results. A way is gone only where those before it, together, are not enough; then
    with as few of these as can be.
    """
    ways = list(_ways(setting))
    for last, way in enumerate(ways):
        before = (chosen for count in range(last + 1) for chosen in combinations(ways[:last], count))
        for chosen in before:
            for values in product(*chosen, way):
                changes: Changes = {key: value for each in values for key, value in each.items()}
                if setting.changed(changes).fits():
                    return [f"{key}={value}" for key, value in changes.items()]
    return None


def _ways(setting: Setting) -> Iterator[list[Changes]]:
    """For each thing that can be changed, the values to try, the gentlest first."""
    spec, engine = setting.job.spec, setting.engine
    assert not isinstance(spec, BaselineSpec)
    if isinstance(spec, EvaluationSpec):
        yield [{"engine.eval_batch": size} for size in _halves(engine.eval_batch, 1)]
        return
    stronger = RECOMPUTATIONS[RECOMPUTATIONS.index(engine.activation_checkpointing) + 1 :]
    yield [{"engine.activation_checkpointing": how} for how in stronger]
    yield _smaller_passes(setting, spec)
    yield from _more_devices(setting)
    yield [{"engine.sharding": "full"}] if engine.sharding != "full" else []
    yield [{"engine.precision": "bf16-true"}] if spec.precision != "bf16-true" else []
    yield [{"tuning": "lora"}] if "llm" in spec.stage.trains and spec.tuning.method == "full" else []


def _smaller_passes(setting: Setting, spec: StageSpec) -> list[Changes]:
    engine, model = setting.engine, spec.model
    if spec.stage.batching != "packed":
        share = max(1, spec.stage.global_batch // setting.devices)
        return [{"engine.micro_batch": size} for size in _halves(min(engine.micro_batch or share, share), 1)]
    patches = backbone_patches(model.backbone, model.resolution.pixels)
    longest = min(patches + (longest_text(spec.sources) or model.llm.max_text or model.llm.context), model.llm.context)
    least = -(-longest // BLOCK) * BLOCK
    return [{"engine.row_tokens": size} for size in _halves(engine.row_tokens or ROW, least)]


def _halves(size: int, least: int) -> list[int]:
    """Half of it, a quarter, ... and at last `least`; [] where it is no more than that."""
    found = []
    while size > least:
        size = max(size // 2, least)
        found.append(size)
    return found


def _more_devices(setting: Setting) -> Iterator[list[Changes]]:
    names, cluster = names_of(setting.job), setting.cluster
    request = request_for(cluster, names)

    def key(name: str) -> str:
        """Where the request has a field from."""
        owners = [
            each for each, changes in cluster.overrides.items() if name in changes and set(each.split(JOINT)) <= names
        ]
        return f"cluster.overrides.{owners[-1]}.{name}" if owners else f"cluster.{name}"

    alone = {key("jobs_per_allocation"): 1} if request.jobs_per_allocation > 1 else {}
    now = 1 if alone else max(1, request.gpus_per_node)
    own_tasks = request.tasks_per_node is not None
    yield [
        {key("gpus_per_node"): count} | ({key("tasks_per_node"): count} if own_tasks else {}) | alone
        for count in (2, 4, MOST_PER_NODE)
        if count > now
    ]
    nodes = (2, 4, 8, MOST_NODES) if cluster.kind == "slurm" else ()
    yield [{key("nodes"): count} | alone for count in nodes if count > request.nodes]


def _with_spec(job: Job, **changes: Any) -> Job:
    return replace(job, spec=replace(job.spec, **changes))


def _with_request(cluster: Cluster, key: str, value: Any) -> Cluster:
    """`cluster` with `nodes` or `overrides.NAME.nodes` at `value`."""
    if not key.startswith("overrides."):
        return replace(cluster, **{key: value})
    name, _, field = key.removeprefix("overrides.").rpartition(".")
    return replace(cluster, overrides={**cluster.overrides, name: {**cluster.overrides[name], field: value}})
