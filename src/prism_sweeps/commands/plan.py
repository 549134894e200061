"""prism plan: what would run."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from prism_sweeps.commands.opening import open_store, place_of, plan_of
from prism_sweeps.commands.output import amount, console, label, print_json, table
from prism_sweeps.planning.plan import Plan, summary
from prism_sweeps.tracking import throughput

SHOWN_JOBS = 60


def run(arguments: Namespace) -> int:
    plan = plan_of(arguments)
    states = recorded_states(plan, arguments)
    found = summary(plan, states, throughput.read(store_folder(plan, arguments)))
    if arguments.json:
        print_json(as_json(plan, found))
    else:
        show(plan, states, found, console())
    return 0


def recorded_states(plan: Plan, arguments: Namespace) -> dict[str, str]:
    """Fingerprint -> status of its record. Looks only: a store that is not there is not made."""
    if not (store_folder(plan, arguments) / "store.json").exists():
        return {}
    store = open_store(plan.store, arguments)
    return {name: store.job(name).state()["status"] for name in plan.jobs}


def store_folder(plan: Plan, arguments: Namespace) -> Path:
    return Path(place_of(plan.store, arguments).root).expanduser()


def as_json(plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    cells = [
        {
            "id": cell.id,
            "overrides": cell.overrides,
            "choices": cell.choices,
            "seed": cell.seed,
            "baseline": cell.baseline,
            "reference_id": cell.reference_id,
            "train": cell.train,
            "evaluate": cell.evaluate,
        }
        for cell in plan.cells
    ]
    return {"study": plan.study, "description": plan.description, "axes": plan.axes, "cells": cells, **found}


def show(plan: Plan, states: dict[str, str], found: dict[str, Any], out: Console) -> None:
    out.print(f"[bold]{escape(plan.study)}[/]  {escape(plan.description)}")
    out.print()
    out.print(cell_table(plan, states))
    out.print()
    jobs = [row for row in found["jobs"] if row["kind"] == "train"]
    bases = list(dict.fromkeys(row["basis"] for row in jobs))
    out.print(stage_table(jobs, with_basis=len(bases) > 1))
    if len(bases) == 1:
        out.print(f"time and memory: {escape(bases[0])}")
    out.print()
    for line in totals(found["totals"]):
        out.print(line)


def cell_table(plan: Plan, states: dict[str, str]) -> Any:
    def done(names: list[str]) -> str:
        return f"{sum(states.get(name) == 'done' for name in names)}/{len(names)}"

    rows = [
        (cell.id, label(cell), cell.seed, done(cell.train), done(cell.evaluate), " ".join(n[:8] for n in cell.train))
        for cell in plan.cells
    ]
    columns = ("cell", "differs in", "seed", "trained", "evaluated", "training jobs")
    return table(f"{len(plan.cells)} cells", columns, rows, right=("seed", "trained", "evaluated"))


def stage_table(jobs: list[dict[str, Any]], with_basis: bool) -> Any:
    """Training jobs one by one; evaluations are many and alike, so totals speak for them."""
    rows = [
        (
            row["fingerprint"][:8],
            row["title"],
            row["status"],
            row["cells"],
            amount(row["parameters"]),
            amount(row["trainable"]),
            amount(row["tokens"]),
            amount(row["flops"]),
            duration(row["seconds"]),
            amount(row["peak_memory"], "B"),
            *([row["basis"]] if with_basis else []),
        )
        for row in jobs[:SHOWN_JOBS]
    ]
    more = f" (the first {SHOWN_JOBS})" if len(jobs) > SHOWN_JOBS else ""
    numbers = ("cells", "parameters", "trainable", "tokens", "FLOPs", "time", "memory")
    columns = ("job", "title", "state", *numbers, *(["time and memory by"] if with_basis else []))
    return table(f"{len(jobs)} training jobs{more}", columns, rows, right=numbers)


def totals(found: dict[str, Any]) -> list[str]:
    """What is shared, done and left, in sentences."""
    every, left, apart = found["all"], found["to_run"], found["without_sharing"]
    shared = apart["jobs"] - every["jobs"]
    lines = [
        f"{every['jobs']} jobs: {every['train']} training, {every['evaluate']} evaluation"
        + (f"; sharing saves {shared} more" if shared else ""),
        f"{found['done']} done, {left['jobs']} to run: {left['train']} training, {left['evaluate']} evaluation; "
        f"{amount(left['tokens'])} tokens, {amount(left['flops'], 'FLOP')}",
    ]
    if left["train"] > left["not_timed"]:
        lines.append(time_left(left))
    if left["unknown"]:
        lines.append(f"the cost of {left['unknown']} jobs is not known before their data are prepared")
    return lines


def time_left(left: dict[str, Any]) -> str:
    """Of the training jobs to run, one after another, where some of them are known."""
    known = left["train"] - left["not_timed"]
    told = f"{duration(left['seconds'])} for {known} of {left['train']} training jobs, one after another"
    return told + (f"; {left['gpu_hours']:.3g} GPU-hours" if left["gpu_hours"] else "")


def duration(seconds: float | None) -> str:
    """In the unit that leaves a number of at least one: 42 s, 5.3 min, 31.2 h; ? when unknown."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
