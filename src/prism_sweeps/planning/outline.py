"""A plan without what its jobs are told: who needs whom, which cell has what. A large plan is outlined in a tenth of
the time that building it takes, and whoever looks where it stands needs no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.plain import from_plain
from prism_sweeps.config.schema import Tracking
from prism_sweeps.config.specs import StageSpec
from prism_sweeps.planning.plan import Plan


class Node(Protocol):
    """What of a job its place in a plan is known by."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def parents(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class JobOutline:
    fingerprint: str
    title: str
    kind: str
    parents: Sequence[str]
    what: str
    """Its stage or benchmark."""
    condition: str | None = None
    """Of the images, in an evaluation."""


@dataclass(frozen=True)
class CellOutline:
    id: str
    overrides: Mapping[str, Any]
    seed: int
    baseline: bool
    train: Sequence[str]
    evaluate: Sequence[str]

    @property
    def jobs(self) -> tuple[str, ...]:
        return (*self.train, *self.evaluate)


@dataclass(frozen=True)
class Outline:
    study: str
    cells: Sequence[CellOutline]
    jobs: Mapping[str, JobOutline]
    cluster: str = "local"
    """local | slurm"""
    tracking: Tracking = field(default_factory=Tracking)


def outline_of(content: Mapping[str, Any]) -> Outline:
    """The outline of a plan as it was written. Raises ConfigError where that is malformed."""
    try:
        return Outline(
            study=content["study"],
            cells=[_cell(each) for each in content["cells"]],
            jobs={name: _job(name, job, content.get("parts", {})) for name, job in content["jobs"].items()},
            cluster=content.get("cluster", {}).get("kind", "local"),
            tracking=from_plain(Tracking, content["tracking"], "plan.tracking"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"plan: malformed ({type(error).__name__}: {error}); sweep the study again") from error


def outlined(plan: Plan) -> Outline:
    """The outline of a plan."""
    jobs = {}
    for name, job in plan.jobs.items():
        what = job.spec.name if isinstance(job.spec, StageSpec) else job.spec.benchmark.name
        condition = None if isinstance(job.spec, StageSpec) else job.spec.condition
        jobs[name] = JobOutline(name, job.title, job.kind, tuple(job.parents), what, condition)
    cells = [CellOutline(c.id, c.overrides, c.seed, c.baseline, c.train, c.evaluate) for c in plan.cells]
    return Outline(plan.study, cells, jobs, plan.cluster.kind, plan.tracking)


def _cell(content: Mapping[str, Any]) -> CellOutline:
    return CellOutline(*(content[key] for key in ("id", "overrides", "seed", "baseline", "train", "evaluate")))


def _job(name: str, content: Mapping[str, Any], parts: Mapping[str, Any]) -> JobOutline:
    spec = content["spec"]
    if spec["kind"] != "evaluate":
        return JobOutline(name, content["title"], spec["kind"], content["parents"], spec["name"])
    benchmark = spec["benchmark"]
    benchmark = parts[benchmark] if isinstance(benchmark, str) else benchmark
    return JobOutline(name, content["title"], spec["kind"], content["parents"], benchmark["name"], spec["condition"])
