"""The plan: every cell of a study and every job they need, each job once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prism_sweeps.config.checks import check_cell, check_place
from prism_sweeps.config.compose import DesignSpace, design_space, load_study
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.fingerprint import fingerprint
from prism_sweeps.config.names import check_study_name
from prism_sweeps.config.plain import from_plain, plain
from prism_sweeps.config.published import Published
from prism_sweeps.config.schema import AXES, GROUPS, Cell, Cluster, Engine, Store, Study, Tracking
from prism_sweeps.config.specs import Job
from prism_sweeps.planning.costs import Costs
from prism_sweeps.planning.grid import PLACE, Grid, Point, check_rules, lookup, matches, with_overrides
from prism_sweeps.planning.jobs import Shared, jobs_of
from prism_sweeps.planning.measured import Row
from prism_sweeps.planning.parts import Parts, PlainOnce, jobs_from_plain

SHOWN = (*AXES, "suite")
"""The choices that describe a cell; the others only say where it runs."""


@dataclass
class PlannedCell:
    """One cell of a plan. `train` and `evaluate` are fingerprints of jobs; `config` is the whole cell as plain data."""

    id: str
    choices: dict[str, str]
    overrides: dict[str, Any]
    """What differs from the study's base; {} for the baseline, whatever its seed."""
    seed: int
    baseline: bool
    config: dict[str, Any]
    train: list[str]
    evaluate: list[str]
    reference_id: str | None = None
    """The published configuration that this cell is (conf/reference/), if it is one."""


@dataclass
class Plan:
    study: str
    description: str
    axes: dict[str, list[str]]
    """Axes under test -> their values, the baseline's first."""
    cells: list[PlannedCell]
    jobs: dict[str, Job]
    engine: Engine
    tracking: Tracking
    store: Store
    cluster: Cluster = field(default_factory=Cluster)

    def to_plain(self) -> dict[str, Any]:
        """As JSON-able data. What jobs have in common (models, benchmarks) stands once, under `parts`."""
        once = PlainOnce()
        rest = {each.name: once.of(getattr(self, each.name)) for each in fields(self) if each.name != "jobs"}
        return rest | Parts().taken_out_of(self.jobs)

    @staticmethod
    def from_plain(content: Mapping[str, Any]) -> Plan:
        """The plan that `to_plain` wrote; ConfigError where it is malformed."""
        jobs = jobs_from_plain(content)
        plan = from_plain(Plan, {**{k: v for k, v in content.items() if k != "parts"}, "jobs": {}}, "plan")
        plan.jobs = jobs
        return plan


def make_plan(study_or_overrides: Sequence[str], name: str | None = None, config_dir: Path | None = None) -> Plan:
    """The plan of a study (`nano/axes`), with overrides behind its name, or of an ad-hoc grid of overrides alone.

    Cells and pairs that cannot work raise one ConfigError that names them all. `name` is the plan's own; by default the
    study's, or `adhoc-` and a hash of the grid.
    """
    if name is not None:
        check_study_name(name)
    space = design_space(config_dir)
    given, overrides = _split(study_or_overrides)
    study = load_study(given, config_dir) if given else Study(description=" ".join(overrides))
    grid = with_overrides(study, overrides, space)
    check_rules(grid.study, space)
    base = _Base(*space.cell(grid.study.base))
    check_place(base.cell, base.choices, config_dir)
    cells, jobs = _cells_and_jobs(_composed(grid, base, space), grid, config_dir)
    return Plan(
        study=name or given or _adhoc_name(grid),
        description=study.description,
        axes=_axes(cells, base, grid),
        cells=cells,
        jobs=jobs,
        engine=base.cell.engine,
        tracking=base.cell.tracking,
        store=base.cell.store,
        cluster=base.cell.cluster,
    )


class _Base:
    """The baseline cell, against which points are told apart."""

    def __init__(self, cell: Cell, choices: dict[str, str]) -> None:
        self.cell, self.choices, self.config = cell, choices, plain(cell)

    def value(self, key: str) -> Any:
        return self.choices.get(key, lookup(self.config, key))

    def differing(self, point: Point, choices: Mapping[str, str], config: Mapping[str, Any]) -> Point:
        """The entries of `point` that change the baseline, with the values that its cell has in the end."""
        changed = {key for key in point if key in GROUPS and choices[key] != self.choices[key]}
        differing = {}
        for key in point:
            value = choices[key] if key in GROUPS else lookup(config, key)
            # In another choice of its group a key may have had another value, so there it always counts.
            if key in changed or key.partition(".")[0] in changed or value != self.value(key):
                differing[key] = value
        return differing


@dataclass
class _Composed:
    cell: Cell
    choices: dict[str, str]
    config: dict[str, Any]
    overrides: Point

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.overrides.items()) or "the baseline"


def _composed(grid: Grid, base: _Base, space: DesignSpace) -> list[_Composed]:
    study, parts = grid.study, PlainOnce()
    composed = []
    for point in grid.points():
        for seed in study.seeds:
            cell, choices = space.cell({**study.base, **point, "seed": seed})
            config = parts.of(cell)
            composed.append(_Composed(cell, choices, config, base.differing(point, choices, config)))
    return composed


def _cells_and_jobs(
    composed: Sequence[_Composed], grid: Grid, config_dir: Path | None
) -> tuple[list[PlannedCell], dict[str, Job]]:
    """Cells that are not excluded, each once, and their jobs, each once."""
    cells: dict[str, PlannedCell] = {}
    jobs: dict[str, Job] = {}
    wrong: dict[str, str] = {}
    shared = Shared()
    published = Published(config_dir)
    for each in composed:
        if any(matches(rule, each.choices, each.config) for rule in grid.study.exclude):
            if not each.overrides:
                raise ConfigError("exclude: a rule leaves out the baseline, which the others are compared with")
            continue
        try:
            check_cell(each.cell, each.choices, config_dir)
        except ConfigError as error:
            wrong[str(each)] = str(error)
            continue
        identity = fingerprint(each.cell, shared.known)
        if identity not in cells:
            cells[identity] = _planned(each, identity, jobs, shared, published)
    if wrong:
        raise ConfigError(_cannot_work(wrong))
    return list(cells.values()), jobs


def _planned(each: _Composed, identity: str, jobs: dict[str, Job], shared: Shared, published: Published) -> PlannedCell:
    train, evaluate = jobs_of(each.cell, shared)
    for job in (*train, *evaluate):
        jobs.setdefault(job.fingerprint, job)
    return PlannedCell(
        id=identity[:8],
        choices={group: each.choices[group] for group in SHOWN},
        overrides=each.overrides,
        seed=each.cell.seed,
        baseline=not each.overrides,
        config=each.config,
        train=[job.fingerprint for job in train],
        evaluate=[job.fingerprint for job in evaluate],
        reference_id=published.name_of(each.cell, each.choices),
    )


def _cannot_work(wrong: Mapping[str, str]) -> str:
    if len(wrong) == 1:
        return next(iter(wrong.values()))
    told = "\n".join(f"  {cell}: {error}" for cell, error in wrong.items())
    return f"{len(wrong)} combinations cannot work; leave them out with a study's `exclude`:\n{told}"


def _axes(cells: Sequence[PlannedCell], base: _Base, grid: Grid) -> dict[str, list[str]]:
    """Axes whose value differs between cells, in the order the grid names them."""
    named = dict.fromkeys(key for point in grid.points() for key in point)
    values = {key: [base.value(key), *(c.overrides[key] for c in cells if key in c.overrides)] for key in named}
    distinct = {key: list(dict.fromkeys(str(value) for value in seen)) for key, seen in values.items()}
    return {key: seen for key, seen in distinct.items() if len(seen) > 1}


def _adhoc_name(grid: Grid) -> str:
    # Where it runs is left out: the same grid on another machine is the same study.
    base = {key: value for key, value in grid.study.base.items() if key.partition(".")[0] not in PLACE}
    content = json.dumps([base, grid.crossed, grid.study.seeds], sort_keys=True)
    return f"adhoc-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    if arguments and "=" not in arguments[0] and not arguments[0].startswith("~"):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def summary(plan: Plan, states: Mapping[str, str], measured: Sequence[Row] = ()) -> dict[str, Any]:
    """What a plan holds and costs: `jobs`, one row each, and `totals`.

    `states` maps fingerprints to the status of their records; a job not in it is new. A job's `cells` is how many cells
    share it. By what was `measured` (the store's throughput table), or what `cluster.gpu` can do, jobs have `seconds`
    and `gpu_hours`; what cannot be told (unknown number of examples, no GPU named) is None in rows, counted in totals
    as `unknown` (operations), `not_timed` and `not_priced` (GPU-hours). `peak_memory` is in bytes a device, in totals
    of the training job that needs most. Where a GPU is named, `fits` says whether the job fits it and `fits_with` what
    would make it; else they are None. Raises ConfigError for a GPU that is not known or not used.
    """
    used = Counter(fp for cell in plan.cells for fp in (*cell.train, *cell.evaluate))
    costs = Costs(plan.engine, plan.cluster, measured)
    rows = [
        {"fingerprint": fp, "title": job.title, "kind": job.kind, "status": states.get(fp, "new"), "cells": used[fp]}
        | costs.of(job)
        for fp, job in plan.jobs.items()
    ]
    return {"jobs": rows, "totals": _totals(plan, rows)}


def _totals(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    waiting = [row for row in rows if row["status"] != "done"]
    once_per_cell = [row for row in rows for _ in range(row["cells"])]
    return {
        "cells": len(plan.cells),
        "done": len(rows) - len(waiting),
        "all": _sums(rows),
        "to_run": _sums(waiting),
        "already_done": _sums([row for row in rows if row["status"] == "done"]),
        "without_sharing": _sums(once_per_cell),
    }


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def known(what: str) -> list[Any]:
        return [row[what] for row in rows if row[what] is not None]

    trained = [row for row in rows if row["kind"] == "train"]
    flops, seconds, hours = known("flops"), known("seconds"), known("gpu_hours")
    return {
        "jobs": len(rows),
        "train": len(trained),
        "evaluate": len(rows) - len(trained),
        "tokens": sum(known("tokens")),
        "flops": sum(flops),
        "unknown": len(rows) - len(flops),
        "seconds": sum(seconds),
        "not_timed": len(rows) - len(seconds),
        "gpu_hours": sum(hours),
        "not_priced": len(rows) - len(hours),
        "peak_memory": max((row["peak_memory"] for row in trained), default=None),
        "not_fitting": sum(row["fits"] is False for row in rows),
    }
