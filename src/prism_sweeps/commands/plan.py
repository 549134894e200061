"""prism plan: what would run."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from prism_sweeps.commands.opening import open_store, place_of, plan_of
from prism_sweeps.commands.output import amount, console, label, print_json, table
from prism_sweeps.planning.budget import check_budget, hours
from prism_sweeps.planning.plan import Plan, summary
from prism_sweeps.reporting.cost import duration
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
    check_budget(plan, found, arguments.budget)
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
    for line in by_what(found["jobs"]):
        out.print(escape(line))
    out.print()
    out.print(sharing_table(found["totals"]))
    out.print()
    for line in [*totals(found["totals"]), *not_fitting(plan, found["jobs"])]:
        out.print(escape(line))


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
            *([] if row["fits"] is None else ["fits" if row["fits"] else "does not fit"]),
            *([row["basis"]] if with_basis else []),
        )
        for row in jobs[:SHOWN_JOBS]
    ]
    more = f" (the first {SHOWN_JOBS})" if len(jobs) > SHOWN_JOBS else ""
    numbers = ("cells", "parameters", "trainable", "tokens", "FLOPs", "time", "memory")
    fits = ["on the GPU"] if jobs and jobs[0]["fits"] is not None else []
    columns = ("job", "title", "state", *numbers, *fits, *(["time and memory by"] if with_basis else []))
    return table(f"{len(jobs)} training jobs{more}", columns, rows, right=numbers)


def by_what(rows: list[dict[str, Any]]) -> list[str]:
    """What times and memory rest on: of training where all its jobs rest on the same, and of evaluations."""
    bases = {kind: dict.fromkeys(row["basis"] for row in rows if row["kind"] == kind) for kind in ("train", "evaluate")}
    lines = []
    if len(bases["train"]) == 1:
        lines.append(f"time and memory: {next(iter(bases['train']))}")
    if bases["evaluate"]:
        told, *others = bases["evaluate"]
        lines.append(f"of evaluations: {told}" + (f", and {len(others)} other ways" if others else ""))
    return lines


def sharing_table(found: dict[str, Any]) -> Any:
    """What sharing saves, and what is done: jobs, operations, time and GPU-hours."""
    parts = {
        "without sharing": found["without_sharing"],
        "each job once": found["all"],
        "already done": found["already_done"],
        "to run": found["to_run"],
    }
    priced = any(part["gpu_hours"] for part in parts.values())
    rows = [
        (
            name,
            part["jobs"],
            amount(part["flops"]),
            duration(part["seconds"] if part["not_timed"] < part["jobs"] or not part["jobs"] else None),
            *([hours(part["gpu_hours"])] if priced else []),
        )
        for name, part in parts.items()
    ]
    numbers = ("jobs", "FLOPs", "time", *(["GPU-hours"] if priced else []))
    return table("sharing and reuse", ("", *numbers), rows, right=numbers)


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
    if left["jobs"] > left["not_timed"]:
        lines.append(time_left(left))
    if left["unknown"]:
        lines.append(f"the cost of {left['unknown']} jobs is not known before their data are prepared")
    return lines


def time_left(left: dict[str, Any]) -> str:
    """Of the jobs to run, one after another, where some of them are known."""
    known = left["jobs"] - left["not_timed"]
    told = f"{duration(left['seconds'])} for {known} of {left['jobs']} jobs, one after another"
    return told + (f"; {hours(left['gpu_hours'])} GPU-hours" if left["gpu_hours"] else "")


def not_fitting(plan: Plan, rows: list[dict[str, Any]]) -> list[str]:
    """The jobs that do not fit their GPU, with what would make them."""
    ways = Counter(
        None if row["fits_with"] is None else " ".join(row["fits_with"]) for row in rows if row["fits"] is False
    )
    return [
        f"{count} {'job' if count == 1 else 'jobs'} too large for {plan.cluster.gpu}: "
        + ("no change of settings that is known here makes room" if way is None else f"would fit with {way}")
        for way, count in ways.items()
    ]
