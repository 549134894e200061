"""prism status: where every cell of a study stands, and why."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from prism_sweeps.commands.opening import default_store, read_outline
from prism_sweeps.commands.output import amount, coloured, console, label, numbered, print_json, table
from prism_sweeps.commands.up_to_date import bring_up
from prism_sweeps.launching.outputs import last_lines, telling
from prism_sweeps.launching.overview import ATTENTION, Overview, overview
from prism_sweeps.launching.progress import duration
from prism_sweeps.planning.outline import CellOutline, outlined
from prism_sweeps.planning.plan import Plan
from prism_sweeps.reporting.cost import cost_lines, cost_rows
from prism_sweeps.tracking.records import Store

LOG_LINES = 8
SHOWN_FAILURES = 10
SHOWN_CELLS = 40
"""Of a longer table the rest is told in one line, and so are the cells that are done."""
REASON = 110
"""Letters of a reason in the table; below it stands in full."""

NOWHERE = "None assigned"
"""SLURM's node of a job that never began."""
NUMBERS = ("seed", "trained", "evaluated", "mean score", "seconds")


def run(arguments: Namespace) -> int:
    store = default_store(arguments)
    if arguments.study is None:
        return list_studies(store, arguments.json)
    outline = read_outline(store, arguments.study)
    if arguments.watch is not None:
        from prism_sweeps.commands.watching import follow, screen_for

        found = follow(store, outline, arguments.watch, screen_for(sys.stderr if arguments.json else sys.stdout))
    else:
        found = overview(store, outline)
    if arguments.json:
        print_json(as_json(store, found))
    else:
        show(store, found, console(), every=arguments.all)
    sys.stdout.flush()
    bring_up(store, found)
    return int(bool(found.named("failed", "lost", "cancelled"))) if arguments.watch is not None else 0


def status(store: Store, plan: Plan) -> dict[str, Any]:
    """Cells and jobs as they stand now, JSON-able."""
    return as_json(store, overview(store, outlined(plan)))


# ---- as data


def as_json(store: Store, found: Overview) -> dict[str, Any]:
    """Everything that is known of a study. A job's `status` is that of its record alone, `state` where it stands."""
    return {
        "study": found.outline.study,
        "store": str(store.root),
        "slurm_answers": found.answers,
        "report_jobs": dict(found.report),
        "removed": list(found.removed),
        "jobs": [job_json(store, found, name) for name in found.outline.jobs],
        "cells": [cell_json(found, cell) for cell in found.outline.cells],
        "counts": found.counts(),
        "cost": cost_rows(store, found.outline, found.states),
    }


def job_json(store: Store, found: Overview, name: str) -> dict[str, Any]:
    job, standing, state, pace = (
        found.outline.jobs[name], found.standings[name], found.states[name], found.paces.get(name),
    )  # fmt: skip
    shown = ("status", "attempts", "seconds", "cpu_seconds", "host", "pid", "error", "result")
    row = {"fingerprint": name, "title": job.title, "kind": job.kind, "what": job.what, "condition": job.condition}
    row |= {key: state[key] for key in shown}
    row |= {"state": standing.state, "reason": standing.reason, "slurm_id": standing.slurm_id}
    row |= {"node": node_of(found, name), "silence": standing.silence, "log": str(store.job(name).log)}
    if pace is not None:
        row |= {"done": pace.done, "total": pace.total, "text": pace.text, "loss": pace.loss}
        row |= {"tokens_per_second": pace.tokens_per_second, "seconds_left": pace.seconds_left}
    if standing.state in ("failed", "lost"):
        path = told_by(store, found, name)
        row |= {"told_by": path and str(path), "last_lines": last_lines(path, LOG_LINES) if path else []}
    return row


def cell_json(found: Overview, cell: CellOutline) -> dict[str, Any]:
    states = {name: found.standings[name].state for name in cell.jobs}
    return {
        "id": cell.id,
        "label": label(cell),
        "seed": cell.seed,
        "baseline": cell.baseline,
        "state": found.word(cell),
        "doing": doing(found, cell),
        "train": list(cell.train),
        "evaluate": list(cell.evaluate),
        "trained": sum(states[name] == "done" for name in cell.train),
        "stages": len(cell.train),
        "evaluated": sum(states[name] == "done" for name in cell.evaluate),
        "evaluations": len(cell.evaluate),
        "mean_score": found.mean_score(cell),
        "seconds": sum(found.states[name]["seconds"] for name in cell.jobs),
    }


def node_of(found: Overview, name: str) -> str:
    standing = found.standings[name]
    host = "" if standing.host == NOWHERE else standing.host
    return found.nodes.get(standing.slurm_id or "", "") or host


def told_by(store: Store, found: Overview, name: str) -> Any:
    """The log whose end says why a job has ended."""
    return telling(store, name, found.allotted.get(name), found.states[name].get("attempt_started"))


# ---- in words


def doing(found: Overview, cell: CellOutline) -> str:
    """What the foremost job of a cell is at, or why it is not."""
    name = found.foremost(cell)
    if name is None:
        return ""
    job, standing = found.outline.jobs[name], found.standings[name]
    same = sum(found.standings[other].state == standing.state for other in cell.jobs)
    more = f" (+{same - 1} more)" if same > 1 and standing.state != "new" else ""
    what = job.what if job.condition in (None, "real") else f"{job.what} {job.condition}"
    if standing.state == "new":
        return ""
    where = ", ".join(filter(None, (node_of(found, name), standing.slurm_id)))
    told = running(found, name) if standing.state == "running" else shortened(standing.reason)
    return (
        f"{what}{more}"
        + (f" {told}" if standing.state == "running" else f": {told}" if told else "")
        + (f" ({where})" if where else "")
    )


def running(found: Overview, name: str) -> str:
    """How far a running job is."""
    pace = found.paces[name]
    parts = [
        f"{pace.done}/{pace.total}" if pace.total else "",
        pace.text if pace.loss is None else f"loss {pace.loss:.3f}",
    ]
    if pace.tokens_per_second:
        parts.append(f"{amount(pace.tokens_per_second)} tokens/s")
    if pace.seconds_left is not None:
        parts.append(f"{duration(pace.seconds_left)} left")
    return ", ".join(filter(None, parts)) or "begins"


def shortened(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= REASON else f"{line[: REASON - 1]}…"


def cell_table(found: Overview, limit: int | None) -> tuple[Any, list[str]]:
    """The table, what needs attention first, and lines on what is not in it. `limit` None: all cells are."""
    cells = sorted(found.outline.cells, key=lambda cell: rank(found.word(cell)))
    lines: list[str] = []
    if limit is not None and len(cells) > limit:
        done = [cell for cell in cells if found.word(cell) == "done"]
        shown, more = first_of_each(found, [cell for cell in cells if found.word(cell) != "done"], limit)
        lines += [told_done(found, done)] if done else []
        lines += [f"{numbered(more.total(), 'cell')} more: {counted(more)} (--all shows them)"] if more else []
        cells = shown
    rows = [cell_row(found, cell) for cell in cells]
    columns = ("cell", "differs in", "seed", "state", "trained", "evaluated", "mean score", "seconds", "what it is at")
    return table(found.outline.study, columns, rows, right=NUMBERS), lines


def first_of_each(found: Overview, cells: Sequence[CellOutline], limit: int) -> tuple[list[CellOutline], Counter[str]]:
    """As many cells as a table may have, no state more than half of it, and the others by their states."""
    shown: list[CellOutline] = []
    more: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for cell in cells:
        word = found.word(cell)
        if len(shown) < limit and taken[word] < max(1, limit // 2):
            shown.append(cell)
            taken[word] += 1
        else:
            more[word] += 1
    return shown, more


def cell_row(found: Overview, cell: CellOutline) -> tuple[object, ...]:
    row = cell_json(found, cell)
    score = "" if row["mean_score"] is None else f"{row['mean_score']:.1f}"
    trained, evaluated = f"{row['trained']}/{row['stages']}", f"{row['evaluated']}/{row['evaluations']}"
    return (*(row[key] for key in ("id", "label", "seed", "state")), trained, evaluated, score,
            f"{row['seconds']:.0f}", row["doing"])  # fmt: skip


def rank(word: str) -> int:
    """A cell some of whose jobs are done comes with those where nothing is."""
    return ATTENTION.index("new" if word == "partial" else word)


def told_done(found: Overview, cells: Sequence[CellOutline]) -> str:
    scores = [score for cell in cells if (score := found.mean_score(cell)) is not None]
    told = f", mean scores {min(scores):.1f} to {max(scores):.1f}" if scores else ""
    return f"{numbered(len(cells), 'cell')} done{told}"


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {coloured(word)}" for word, count in counts.items())


def show(store: Store, found: Overview, out: Console, every: bool = False) -> None:
    """The whole status for people."""
    for part in summary(found, None if every else SHOWN_CELLS):
        out.print(part)
    for line in cost_lines(store, found.outline, found.states):
        out.print(escape(line))
    show_failures(store, found, out)
    for line in next_steps(found):
        out.print(line, highlight=False)


def summary(found: Overview, limit: int | None) -> list[Any]:
    """What fits on a screen, as renderables."""
    cells, lines = cell_table(found, limit)
    parts = [cells] if cells.row_count else [escape(found.outline.study)]
    parts += [*lines, "", f"{counted(found.counts())} jobs"]
    if not found.answers:
        parts.append("SLURM does not answer: states are by records alone")
    parts += [f"report and MLflow once all have ended: SLURM job {name} {why}" for name, why in found.report.items()]
    return parts


def show_failures(store: Store, found: Overview, out: Console) -> None:
    """Each reason that jobs failed or were lost for, with the end of the log of one of them."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name in found.named("failed", "lost"):
        standing = found.standings[name]
        reasons.setdefault((standing.state, standing.reason), []).append(name)
    for (state, reason), names in list(reasons.items())[:SHOWN_FAILURES]:
        more = f" and {numbered(len(names) - 1, 'job')} more" if len(names) > 1 else ""
        out.print(f"\n{coloured(state)} {escape(found.outline.jobs[names[0]].title)}{more}: {escape(reason)}")
        path = told_by(store, found, names[0])
        for line in last_lines(path, LOG_LINES) if path else ():
            out.print(f"    {escape(line)}", highlight=False)
        out.print(f"    log: {escape(str(path or store.job(names[0]).log))}", highlight=False)
    if len(reasons) > SHOWN_FAILURES:
        out.print(f"\nand {len(reasons) - SHOWN_FAILURES} more reasons; --json has them all")


def next_steps(found: Overview) -> list[str]:
    """What may be done about it."""
    study, lines = found.outline.study, []
    if found.removed:
        count = numbered(len(found.removed), "job")
        lines.append(f"{count} of removed cells still queued or running; to cancel: prism cancel {study} --removed")
    if found.named("failed", "lost", "cancelled"):
        lines.append(f"to try again: prism retry {study}; whole logs: prism logs {study}")
    if found.named("silent"):
        lines.append(f"no sign of life of {len(found.named('silent'))}; to end them and try again: prism retry {study}")
    return ["", *lines] if lines else []


# ---- all studies


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
                row["counts"].get("running", 0),
                row["counts"].get("failed", 0),
            )
            for row in rows
        ]
        console().print(table(str(store.root), ("study", "cells", "jobs done", "running", "failed"), lines))
    else:
        print(f"{store.root} has no studies yet; `prism studies` lists those that can be run")
    return 0
