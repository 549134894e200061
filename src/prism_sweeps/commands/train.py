"""prism train: one cell, here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping

from prism_sweeps.commands.opening import one_cell, open_store
from prism_sweeps.commands.output import console, label, print_json, table
from prism_sweeps.commands.status import status
from prism_sweeps.commands.sweep import exit_code
from prism_sweeps.config.specs import EvaluationSpec, Job
from prism_sweeps.launching.progress import display_for
from prism_sweeps.launching.together import run_together
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.records import Store


def run(arguments: Namespace) -> int:
    plan, _ = one_cell(arguments)
    store = open_store(plan.store, arguments)
    return run_cell(plan, store, plan.jobs, arguments.json)


def run_cell(plan: Plan, store: Store, jobs: Mapping[str, Job], as_json: bool) -> int:
    """Keeps the one-cell plan, runs these of its jobs, and prints what came out."""
    store.study(plan.study).write_plan(plan.to_plain())
    outcome = run_together(jobs, store, plan.engine, display_for())
    if as_json:
        print_json(status(store, plan))
    else:
        show_scores(plan, store)
        if outcome.interrupted:
            print("interrupted; the same command goes on where it was")
    return exit_code(outcome)


def show_scores(plan: Plan, store: Store) -> None:
    """The cell's scores, one row per benchmark and condition."""
    cell = plan.cells[0]
    rows = []
    for name in cell.evaluate:
        spec, state = plan.jobs[name].spec, store.job(name).state()
        assert isinstance(spec, EvaluationSpec)
        result = state["result"] or {}
        score = f"{result['score']:.1f}" if "score" in result else ""
        error = "" if result.get("standard_error") is None else f"± {result['standard_error']:.1f}"
        rows.append((spec.benchmark.name, spec.condition, state["status"], score, error, result.get("n", "")))
    columns = ("benchmark", "condition", "state", "score", "SE", "n")
    title = f"{plan.study}: cell {cell.id}, {label(cell)}, seed {cell.seed}"
    console().print(table(title, columns, rows, right=("score", "SE", "n")))
    if store.job(cell.train[-1]).state()["status"] == "done":
        print(f'ask it something: prism ask IMAGE "QUESTION" --cell {cell.id}')
