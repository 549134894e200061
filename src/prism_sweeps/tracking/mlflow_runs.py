"""A study's records as MLflow runs: what each run holds, as plain data. No mlflow here.

One run per cell: params are its axis choices, its seed and its resolved values; metrics are its scores, as
`<benchmark>/<condition>` with `/standard_error` and further ones behind it; tags are fingerprints. Under it one child
run per training stage, with the curve. Evaluations have no run of their own: hundreds of runs without a curve would
say less than the metrics of their cell, and cost ten times the time. A stage that cells share has a child in each.
What has not begun has no run yet.

MLflow keeps every point it is given, equal ones once. So a point never changes: its time is that of a step by the
records' own seconds, or that at which the job behind it has ended. Where work was done again, the run's `generation`
changes, and MLflow gets a new run in the place of the old one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prism_sweeps.config.specs import Job, StageSpec
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking.mlflow_client import Point
from prism_sweeps.tracking.records import JobRecord, Store

FORMAT = 2
"""Goes into generations: a change of what is imported imports everything again."""
PLACES = ("engine", "cluster", "tracking", "store", "suite")
VALUE_LENGTH = 500
NOT_ALLOWED = re.compile(r"[^\w\-. :/]")


@dataclass
class Run:
    """One MLflow run. `key` finds it again within its experiment."""

    key: str
    name: str
    status: str
    """MLflow's: RUNNING, FINISHED, FAILED or SCHEDULED."""
    started: int
    """Milliseconds."""
    ended: int | None
    params: dict[str, str]
    tags: dict[str, str]
    generation: str
    """Points of runs of one generation are added to, and never changed."""
    points: list[Point]
    """Scores and totals, each at step 0."""
    curve: Callable[[], list[Point]] = list
    """Reads the curve as it is now; in the order in which its points came."""
    size: int = 0
    """Bytes of the rows that the curve is made of."""
    children: list[Run] = field(default_factory=list)

    def digest(self) -> str:
        """Changes whenever something about the run does."""
        fixed = [self.name, self.status, self.ended, self.generation, self.params, self.tags]
        content = [*fixed, self.points, self.size]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def cell_runs(plan: Plan, store: Store) -> list[Run]:
    """The runs of a study as its records have them now, each with its children."""
    states = {name: store.job(name).state() for name in plan.jobs}
    runs = []
    for cell in plan.cells:
        run = cell_run(cell, plan, states)
        begun = [name for name in cell.train if states[name]["started"]]
        run.children = [stage_run(cell, plan.jobs[name], states[name], store.job(name)) for name in begun]
        runs.append(run)
    return [run for run in runs if run.started]


def cell_run(cell: PlannedCell, plan: Plan, states: Mapping[str, dict[str, Any]]) -> Run:
    """The run of a cell, without children."""
    own = [*cell.train, *cell.evaluate]
    started, ended = span([states[name] for name in own])
    label = ", ".join(f"{axis}={value}" for axis, value in cell.overrides.items()) or "baseline"
    tags = {
        "prism.study": plan.study,
        "prism.cell": cell.id,
        "prism.baseline": str(cell.baseline).lower(),
        "prism.seed": str(cell.seed),
        "mlflow.note.content": plan.description,
    }
    tags |= {key_of("prism.job", *place(plan.jobs[name])): name for name in own}
    return Run(
        key=cell.id,
        name=f"{label} · seed {cell.seed}",
        status=status_of([states[name]["status"] for name in own]),
        started=started,
        ended=ended,
        params=params_of(cell),
        tags=tags,
        generation=f"{FORMAT}/{started}",
        points=list(scores(cell, plan.jobs, states)),
    )


def stage_run(cell: PlannedCell, job: Job, state: Mapping[str, Any], record: JobRecord) -> Run:
    """The run of a stage that has begun. Its totals are known once it is done."""
    assert isinstance(job.spec, StageSpec)
    started, ended = span([state])
    told = ("host", "commit", "error", "attempts")
    return Run(
        key=f"{cell.id}/{job.fingerprint}",
        name=job.spec.name,
        status=status_of([state["status"]]),
        started=started,
        ended=ended,
        params={"stage": job.spec.name, **dict(flat(job.spec.stage.__dict__))},
        tags={"prism.cell": cell.id, "prism.job": job.fingerprint, "prism.title": job.title}
        | {f"prism.{name}": str(state[name]) for name in told if state.get(name)},
        generation=f"{FORMAT}/{started}/{state['rewinds']}",
        points=[(f"total/{name}", value, ended or started, 0) for name, value in totals(state).items()],
        curve=lambda: curve(record, state),
        size=record.metrics.stat().st_size if record.metrics.exists() else 0,
    )


def totals(state: Mapping[str, Any]) -> dict[str, float]:
    """What a finished job tells of itself as a whole."""
    if state["status"] != "done":
        return {}
    seconds = {name: float(state[name]) for name in ("seconds", "cpu_seconds", "gpu_seconds") if state.get(name)}
    return numbers(state["result"] or {}) | seconds


def place(job: Job) -> tuple[str, ...]:
    """What a job is within its cell: its stage, or its benchmark and condition."""
    if isinstance(job.spec, StageSpec):
        return (job.spec.name,)
    return job.spec.benchmark.name, job.spec.condition


def scores(cell: PlannedCell, jobs: Mapping[str, Job], states: Mapping[str, dict[str, Any]]) -> Iterator[Point]:
    """Metrics of a cell's finished evaluations; and their mean by condition, once all of a condition are done."""
    by_condition: dict[str, list[tuple[float, int] | None]] = {}
    for name in cell.evaluate:
        benchmark, condition = place(jobs[name])
        state = states[name]
        if state["status"] != "done":
            by_condition.setdefault(condition, []).append(None)
            continue
        result, at = state["result"], milliseconds(state["finished"])
        by_condition.setdefault(condition, []).append((result["score"], at))
        yield key_of(benchmark, condition), float(result["score"]), at, 0
        for key, value in numbers({"standard_error": result.get("standard_error")} | result.get("metrics", {})).items():
            yield key_of(benchmark, condition, key), value, at, 0
    for condition, found in by_condition.items():
        done = [each for each in found if each is not None]
        if len(done) == len(found):
            mean = math.fsum(score for score, _ in done) / len(done)
            yield key_of("mean", condition), mean, max(at for _, at in done), 0


def params_of(cell: PlannedCell) -> dict[str, str]:
    """Axis choices, the seed, and every resolved value that the model and its training have."""
    config = {group: value for group, value in cell.config.items() if group not in PLACES}
    return dict(flat(config)) | {"precision": str(cell.config["engine"]["precision"])} | dict(flat(cell.choices))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values under dotted keys, as text."""
    for key, value in values.items():
        name = key_of(f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        else:
            yield name, str(value)[:VALUE_LENGTH]


def curve(record: JobRecord, state: Mapping[str, Any]) -> list[Point]:
    """All points of a job's curve; [] where it was begun anew since `state` was read."""
    now, rows = record.curve()
    if (now["rewinds"], now["started"]) != (state["rewinds"], state["started"]):
        return []
    return Curve(milliseconds(state["started"])).points(rows)


class Curve:
    """Turns rows into points, as they come. Rows carry no clock: a step's place in time comes from their seconds."""

    def __init__(self, started: int) -> None:
        self.started, self.passed = started, 0.0

    def points(self, rows: Iterable[Mapping[str, Any]]) -> list[Point]:
        """Every number of rows that follow those given before."""
        found: list[Point] = []
        for row in rows:
            self.passed += float(row.get("seconds") or 0.0)
            at = self.started + round(1000 * self.passed)
            found += [(key, value, at, int(row["step"])) for key, value in numbers(row).items() if key != "step"]
        return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that MLflow can hold as a metric."""
    return {
        key_of(key): float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def key_of(*parts: str) -> str:
    """A name that MLflow takes: word characters, dashes, dots, spaces, colons and slashes."""
    return "/".join(NOT_ALLOWED.sub("_", str(part)) for part in parts)


def status_of(states: Iterable[str]) -> str:
    """MLflow's word for jobs in these states, taken together."""
    found = set(states)
    if "failed" in found:
        return "FAILED"
    if found <= {"done"}:
        return "FINISHED"
    return "SCHEDULED" if found <= {"new"} else "RUNNING"


def span(states: Iterable[Mapping[str, Any]]) -> tuple[int, int | None]:
    """First start and, when all have ended, last end, in milliseconds."""
    known = list(states)
    starts = [milliseconds(state["started"]) for state in known if state["started"]]
    ends = [milliseconds(state["finished"]) for state in known if state["finished"]]
    over = bool(known) and all(state["status"] in ("done", "failed") for state in known)
    return min(starts, default=0), max(ends) if over and ends else None


def milliseconds(seconds: float | None) -> int:
    return round(1000 * (seconds or 0.0))
