"""Plans of baselines: finished models of others on the benchmarks of a suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from prism_sweeps.config.baselines import KEY, content_of, normal, split
from prism_sweeps.config.checks import check_cell
from prism_sweeps.config.compose import assignment, compose_cell, design_space
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.names import check_study_name
from prism_sweeps.config.plain import plain
from prism_sweeps.config.schema import Cell
from prism_sweeps.config.specs import BaselineSpec, Job
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.planning.grid import PLACE, values_of
from prism_sweeps.planning.jobs import Shared, evaluation_jobs
from prism_sweeps.planning.plan import Plan, PlannedCell

SAID = ("suite", *PLACE)
"""All that can be said of a finished model's evaluation."""
NO_SEED = 0


def names_baselines(overrides: Sequence[str]) -> bool:
    """Whether these overrides are about finished models."""
    return any(text.partition("=")[0] == KEY for text in overrides)


def make_baseline_plan(overrides: Sequence[str], name: str | None = None, config_dir: Path | None = None) -> Plan:
    """The plan of `model=hf:A,hf:B` and overrides of suite, engine and store.

    Each model is a cell with nothing to train, the first one the baseline that others are compared with. `name` is the
    study's, by default `baseline/` and what the models are called. Raises ConfigError.
    """
    models, rest = told_apart(overrides, config_dir)
    cell, choices = compose_cell(rest, config_dir)
    check_cell(cell, choices, config_dir)
    jobs = {model: baseline_jobs(model, content, cell) for model, content in contents(models).items()}
    cells = [planned(model, own, cell, choices["suite"], model == models[0]) for model, own in jobs.items()]
    study = name or default_name(models)
    check_study_name(study)
    return Plan(
        study=study,
        description=f"finished models: {', '.join(jobs)}",
        axes={KEY: list(jobs)} if len(jobs) > 1 else {},
        cells=cells,
        jobs={job.fingerprint: job for own in jobs.values() for job in own},
        engine=cell.engine,
        tracking=cell.tracking,
        store=cell.store,
        cluster=cell.cluster,
    )


def told_apart(overrides: Sequence[str], config_dir: Path | None) -> tuple[list[str], list[str]]:
    """The models that overrides name, folders by their absolute paths, and the overrides that are left."""
    models: list[str] = []
    rest: list[str] = []
    for text in overrides:
        override = assignment(design_space(config_dir).files.parse(text))
        key = override.key_or_group
        if key == KEY:
            models += [normal(str(value)) for value in values_of(override)]
        elif key.partition(".")[0] in SAID:
            rest.append(text)
        else:
            raise ConfigError(
                f"'{text}': a finished model is as it is; beside {KEY}= only {', '.join(SAID)} can be said, and what "
                "is in them (suite.examples=100, engine.precision=bf16)"
            )
    return list(dict.fromkeys(models)), rest


def contents(models: Sequence[str]) -> dict[str, str]:
    """What each model is. Raises ConfigError for two that are one."""
    found: dict[str, str] = {}
    for model in models:
        content = content_of(model)
        for other, same in found.items():
            if (split(model)[0], content) == (split(other)[0], same):
                raise ConfigError(f"{KEY}={other} and {model} are one model: their files are the same; name it once")
        found[model] = content
    return found


def baseline_jobs(model: str, content: str, cell: Cell) -> list[Job]:
    """One per benchmark and condition."""

    def spec_of(benchmark: Benchmark, condition: str, version: int) -> BaselineSpec:
        return BaselineSpec(
            model=model,
            content=content,
            benchmark=benchmark,
            condition=condition,
            precision=cell.engine.precision,
            scorer_version=version,
            scheme=split(model)[0],
        )

    return evaluation_jobs(cell.suite, spec_of, model, [], Shared())


def planned(model: str, jobs: Sequence[Job], cell: Cell, suite: str, first: bool) -> PlannedCell:
    """A model as a cell. It has no seed that anybody knows; 0 stands for it."""
    own = [job.fingerprint for job in jobs]
    return PlannedCell(
        id=hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8],
        choices={KEY: model, "suite": suite},
        overrides={KEY: model},
        seed=NO_SEED,
        baseline=first,
        config={KEY: model, "suite": plain(cell.suite), "engine": plain(cell.engine)},
        train=[],
        evaluate=own,
    )


def default_name(models: Sequence[str]) -> str:
    """`baseline/` and the last part of each model's name."""
    parts = ["".join(c if c.isalnum() or c in "._-" else "-" for c in Path(split(each)[1]).name) for each in models]
    return f"baseline/{'+'.join(part.lstrip('.-') or 'model' for part in parts)[:100]}"
