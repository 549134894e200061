"""The costs of many jobs of one plan: those that cost the same are worked out once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from prism_sweeps.config.plain import plain
from prism_sweeps.config.schema import Cluster, Engine
from prism_sweeps.config.specs import BaselineSpec, Job, StageSpec
from prism_sweeps.planning.cost import job_cost
from prism_sweeps.planning.estimates import Estimate, estimate, place_of
from prism_sweeps.planning.fitting import Setting, change_that_fits
from prism_sweeps.planning.measured import Row
from prism_sweeps.planning.memory import needed_of_gpu


class Costs:
    """Of the jobs of a plan, which stay alive as long as this does."""

    def __init__(self, engine: Engine, cluster: Cluster, measured: Sequence[Row]) -> None:
        self._engine, self._cluster, self._measured = engine, cluster, measured
        self._known: dict[Hashable, dict[str, Any]] = {}

    def of(self, job: Job) -> dict[str, Any]:
        """The fields of its `JobCost` and its `Estimate`, `fits` and `fits_with`."""
        key = _alike(job)
        if key not in self._known:
            self._known[key] = self._worked_out(job)
        return self._known[key]

    def _worked_out(self, job: Job) -> dict[str, Any]:
        cost, place = job_cost(job), place_of(job, self._engine, self._cluster)
        told = estimate(job, cost, place, self._measured)
        both: dict[str, Any] = plain(cost) | plain(told)
        return both | self._fit(job, told)

    def _fit(self, job: Job, told: Estimate) -> dict[str, Any]:
        gpu = place_of(job, self._engine, self._cluster).gpu
        if gpu is None or told.peak_memory is None:
            return {"fits": None, "fits_with": None}
        if needed_of_gpu(told.peak_memory) <= gpu.memory:
            return {"fits": True, "fits_with": None}
        return {"fits": False, "fits_with": change_that_fits(Setting(job, self._engine, self._cluster))}


def _alike(job: Job) -> Hashable:
    """The same for jobs whose cost is the same. Cells share the parts of their models, so these count as objects."""
    spec = job.spec
    if isinstance(spec, BaselineSpec):
        return spec.kind, spec.benchmark.index, spec.benchmark.examples
    model = tuple(map(id, (spec.model.backbone, spec.model.resolution, spec.model.projector, spec.model.llm)))
    if isinstance(spec, StageSpec):
        sources = tuple(map(id, spec.sources.values()))
        return model, spec.name, repr(spec.stage), sources, spec.max_steps, spec.precision, repr(spec.tuning)
    asked = spec.benchmark
    what = (asked.name, asked.index, asked.answer, asked.max_new_tokens, asked.examples)
    return model, spec.kind, what, spec.precision
