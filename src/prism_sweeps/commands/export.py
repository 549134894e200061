"""prism export: a trained cell, or a prism folder, into a folder of its own."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_sweeps.commands.ask import chosen, trained
from prism_sweeps.commands.output import label, print_json
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import AXES
from prism_sweeps.config.specs import EvaluationSpec, StageSpec
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking.provenance import source_commit
from prism_sweeps.tracking.records import Store

if TYPE_CHECKING:
    from prism_sweeps.interop.model import Model

FORMATS = ("prism", "llava")


def run(arguments: Namespace) -> int:
    if arguments.format not in FORMATS:
        raise ConfigError(f"--format {arguments.format}; {nearest(arguments.format, FORMATS)}")
    from prism_sweeps.interop.folders import check_free

    check_free(arguments.to)
    folder = Path(arguments.cell[0])
    is_folder = len(arguments.cell) == 1 and (folder / "config.json").is_file()
    model, what = (opened(folder), f"'{folder}'") if is_folder else of_cell(arguments)
    importlib.import_module(f"prism_sweeps.interop.{arguments.format}").save(model, arguments.to)
    if arguments.json:
        print_json({"exported": what, "format": arguments.format, "folder": str(arguments.to.absolute())})
    else:
        print(f"{what} is in {arguments.to} in the {arguments.format} format; its README.md tells how to load it")
    return 0


def opened(folder: Path) -> Model:
    from prism_sweeps.interop.prism import load

    return load(folder, device="cpu")


def of_cell(arguments: Namespace) -> tuple[Model, str]:
    """The trained cell that the arguments name, on the CPU, and its title."""
    plan, cell, store = chosen(arguments)
    job = trained(plan, cell, store)
    import torch

    from prism_sweeps.evaluation.loading import load
    from prism_sweeps.interop.model import Model

    spec, precision = job.spec.model, job.spec.precision
    loaded = load(spec, store.job(job.fingerprint).weights, precision, torch.device("cpu"))
    return Model(spec, loaded, precision, about(plan, cell, store)), f"cell {cell.id} ({label(cell)})"


def about(plan: Plan, cell: PlannedCell, store: Store) -> dict[str, Any]:
    """What the card tells of a cell."""
    stages = [plan.jobs[fingerprint].spec for fingerprint in cell.train]
    return {
        "origin": f"Cell `{cell.id}` of the study `{plan.study}`, by prism-sweeps ({source_commit() or 'installed'}).",
        "cell": cell.id,
        "fingerprint": cell.train[-1],
        "choices": {axis: choice for axis, choice in cell.choices.items() if axis in AXES},
        "seed": cell.seed,
        "stages": [stage_row(stage) for stage in stages if isinstance(stage, StageSpec)],
        "data": {stage.name: sources_of(stage) for stage in stages if isinstance(stage, StageSpec)},
        "scores": scores(plan, cell, store),
    }


def stage_row(stage: StageSpec) -> list[str]:
    """As it was run: a choice's name does not tell what was changed of it."""
    length = f"{stage.stage.epochs:g} epochs" + (
        "" if stage.max_steps is None else f", at most {stage.max_steps} steps"
    )
    recipe = stage.stage
    return [stage.name, ", ".join(recipe.trains), length, str(recipe.global_batch), f"{recipe.learning_rate:g}"]


def sources_of(stage: StageSpec) -> list[str]:
    return [
        f"{name}: {source.dataset}/{source.file}, version {source.version}"
        + ("" if source.examples is None else f", the first {source.examples}")
        for name, source in stage.sources.items()
    ]


def scores(plan: Plan, cell: PlannedCell, store: Store) -> list[dict[str, Any]]:
    """Of every evaluation of the cell that is done."""
    rows = []
    for fingerprint in cell.evaluate:
        spec, state = plan.jobs[fingerprint].spec, store.job(fingerprint).state()
        if state["status"] == "done" and isinstance(spec, EvaluationSpec):
            kept = {key: state["result"][key] for key in ("score", "standard_error", "n")}
            rows.append({"benchmark": spec.benchmark.name, "condition": spec.condition, **kept})
    return rows
