"""prism status: where every cell of a study stands."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape

from prism_sweeps.commands.opening import default_store
from prism_sweeps.commands.output import coloured, console, label, print_json, table
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.launching.run_job import last_lines
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking.records import Store

LOG_LINES = 8
SHOWN_FAILURES = 10


def run(arguments: Namespace) -> int:
    store = default_store(arguments)
    if arguments.study is None:
        return list_studies(store, arguments.json)
    found = status(store, read_plan(store, arguments.study))
    if arguments.json:
        print_json(found)
    else:
        show(store, found, console())
    return 0


def read_plan(store: Store, study: str) -> Plan:
    """The plan that was run under this name; ConfigError with the nearest name when there is none."""
    record = store.study(study)
    if study not in store.studies():
        raise ConfigError(f"the store {store.root} has no study '{study}'; {nearest(study, store.studies())}")
    return Plan.from_plain(record.plan())


def status(store: Store, plan: Plan) -> dict[str, Any]:
    """Cells and jobs as they stand now, JSON-able."""
    states = {name: store.job(name).state() for name in plan.jobs}
    shown = ("status", "attempts", "seconds", "cpu_seconds", "host", "pid", "error", "result")
    jobs = [
        {"fingerprint": name, "title": job.title, "kind": job.kind} | {key: states[name][key] for key in shown}
        for name, job in plan.jobs.items()
    ]
    return {
        "study": plan.study,
        "store": str(store.root),
        "jobs": jobs,
        "cells": [cell_status(plan, cell, states) for cell in plan.cells],
        "counts": dict(Counter(state["status"] for state in states.values())),
    }


def cell_status(plan: Plan, cell: PlannedCell, states: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Where a cell stands. Its mean score, once all is evaluated, is that of the evaluations with the right images."""
    done = [name for name in cell.evaluate if states[name]["status"] == "done"]
    scores = [states[name]["result"]["score"] for name in done if plan.jobs[name].spec.condition == "real"]
    own = [*cell.train, *cell.evaluate]
    return {
        "id": cell.id,
        "label": label(cell),
        "seed": cell.seed,
        "baseline": cell.baseline,
        "state": cell_state([states[name]["status"] for name in own]),
        "trained": sum(states[name]["status"] == "done" for name in cell.train),
        "stages": len(cell.train),
        "evaluated": len(done),
        "evaluations": len(cell.evaluate),
        "mean_score": sum(scores) / len(scores) if scores and len(done) == len(cell.evaluate) else None,
        "seconds": sum(states[name]["seconds"] for name in own),
    }


def cell_state(states: list[str]) -> str:
    """One word for a cell: the state that most wants to be known."""
    for word in ("failed", "running", "interrupted"):
        if word in states:
            return word
    return states[0] if len(set(states)) == 1 else "partial"


def show(store: Store, found: dict[str, Any], out: Console) -> None:
    rows = [
        (
            cell["id"],
            cell["label"],
            cell["seed"],
            cell["state"],
            f"{cell['trained']}/{cell['stages']}",
            f"{cell['evaluated']}/{cell['evaluations']}",
            "" if cell["mean_score"] is None else f"{cell['mean_score']:.1f}",
            f"{cell['seconds']:.0f}",
        )
        for cell in found["cells"]
    ]
    columns = ("cell", "differs in", "seed", "state", "trained", "evaluated", "mean score", "seconds")
    out.print(table(found["study"], columns, rows, right=("seed", "trained", "evaluated", "mean score", "seconds")))
    out.print()
    out.print(", ".join(f"{count} {coloured(word)}" for word, count in sorted(found["counts"].items())) + " jobs")
    show_failures(store, [job for job in found["jobs"] if job["status"] == "failed"], out)


def show_failures(store: Store, failed: list[dict[str, Any]], out: Console) -> None:
    """Each failed job with its error and the end of its log."""
    for job in failed[:SHOWN_FAILURES]:
        record = store.job(job["fingerprint"])
        out.print(f"\n[red]failed[/] {escape(job['title'])}: {escape(str(job['error']))}")
        for line in last_lines(record, LOG_LINES):
            out.print(f"    {escape(line)}", highlight=False)
        out.print(f"    log: {escape(str(record.log))}", highlight=False)
    if len(failed) > SHOWN_FAILURES:
        out.print(f"\nand {len(failed) - SHOWN_FAILURES} more; --json has them all")


def list_studies(store: Store, as_json: bool) -> int:
    """Every study this store has run, with how far it is."""
    rows = []
    for name in store.studies():
        plan = store.study(name).plan()
        states = Counter(store.job(job).state()["status"] for job in plan["jobs"])
        rows.append({"study": name, "cells": len(plan["cells"]), "jobs": states.total(), "counts": dict(states)})
    if as_json:
        print_json({"store": str(store.root), "studies": rows})
    elif rows:
        lines = [
            (
                row["study"],
                row["cells"],
                f"{row['counts'].get('done', 0)}/{row['jobs']}",
                row["counts"].get("failed", 0),
            )
            for row in rows
        ]
        console().print(table(str(store.root), ("study", "cells", "jobs done", "failed"), lines))
    else:
        print(f"{store.root} has no studies yet; `prism studies` lists those that can be run")
    return 0
