"""prism evaluate model=...: the scores of finished models of others."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from prism_sweeps.commands.opening import open_store
from prism_sweeps.commands.output import console, print_json, say, table
from prism_sweeps.commands.sweep import exit_code
from prism_sweeps.config.specs import BaselineSpec
from prism_sweeps.launching.progress import display_for
from prism_sweeps.launching.removed import replace_plan
from prism_sweeps.launching.together import run_together
from prism_sweeps.planning.baselines import make_baseline_plan
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.records import Store

COLUMNS = ("model", "benchmark", "condition", "state", "score", "SE", "n")


def run(arguments: Namespace) -> int:
    """Scores the models that the overrides name, each on all benchmarks, here."""
    plan = make_baseline_plan(arguments.overrides, arguments.name, arguments.config_dir)
    store = open_store(plan.store, arguments)
    replace_plan(store, plan)
    outcome = run_together(plan.jobs, store, plan.engine, display_for())
    rows = results(plan, store)
    if arguments.json:
        print_json({"study": plan.study, "store": str(store.root), "results": rows, "errors": outcome.failed})
        return exit_code(outcome)
    shown = [tuple(str(value) for value in shown_row(row)) for row in rows]
    console().print(table(plan.study, COLUMNS, shown, right=("score", "SE", "n")))
    for line in dict.fromkeys(outcome.failed.values()):
        say(line)
    if outcome.interrupted:
        print("interrupted; the same command goes on where it was")
    else:
        print(f"with plots, and models against each other: prism report {plan.study}")
    return exit_code(outcome)


def results(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """One row per model, benchmark and condition; scores in percent, None where there is none."""
    rows = []
    for name, job in plan.jobs.items():
        assert isinstance(job.spec, BaselineSpec)
        state = store.job(name).state()
        result = state["result"] or {}
        rows.append(
            {
                "model": job.spec.model,
                "benchmark": job.spec.benchmark.name,
                "condition": job.spec.condition,
                "state": state["status"],
                "score": result.get("score"),
                "standard_error": result.get("standard_error"),
                "n": result.get("n"),
                "job": name,
            }
        )
    return rows


def shown_row(row: dict[str, Any]) -> tuple[object, ...]:
    score = "" if row["score"] is None else f"{row['score']:.1f}"
    error = "" if row["standard_error"] is None else f"± {row['standard_error']:.1f}"
    return row["model"], row["benchmark"], row["condition"], row["state"], score, error, row["n"] or ""
