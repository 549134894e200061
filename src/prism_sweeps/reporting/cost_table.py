"""The report's table of what a study cost."""

from __future__ import annotations

from typing import Any

from prism_sweeps.reporting.cost import Planned, cost_rows, duration
from prism_sweeps.reporting.tables import NONE, Field, Table
from prism_sweeps.tracking.records import Store

TITLE = "What it cost"
NOTE = (
    "A time is that of a training job's steps, and all of an evaluation. GPU-hours are those of all devices a job had, "
    "from its begin to its end. The ratio is reality / estimate; the estimate is the one from before the job began."
)
OFF = 1.5
"""From here on a ratio is marked."""


def cost_table(store: Store, plan: Planned) -> Table:
    """A row for each kind of job with its sums, then one for each training job; without rows where nothing is known."""
    found = cost_rows(store, plan)
    columns = [
        "job",
        "time estimated",
        "time",
        "ratio",
        "GPU-hours estimated",
        "GPU-hours",
        "memory estimated",
        "memory",
        "ratio of memory",
    ]
    jobs = [row for row in found["jobs"] if row["seconds"]["estimated"] is not None or row["peak_memory"]["ratio"]]
    rows = [
        _row(row["title"], row["seconds"], row["gpu_hours"], row["peak_memory"])
        for row in jobs
        if row["kind"] == "train"
    ]
    if jobs:
        totals = found["totals"]
        rows.insert(0, _row(f"all {len(found['jobs'])} jobs", totals["seconds"], totals["gpu_hours"], None))
    bases = list(dict.fromkeys(row["basis"] for row in jobs))
    return Table(TITLE, columns, rows, [NOTE, *(f"Estimated by: {basis}." for basis in bases[:4])])


def _row(title: str, seconds: dict[str, Any], hours: dict[str, Any], memory: dict[str, Any] | None) -> list[Field]:
    nothing = {"estimated": None, "real": None, "ratio": None}
    memory = memory or nothing
    return [
        Field(title),
        *(_field(seconds[which], duration) for which in ("estimated", "real")),
        _ratio(seconds["ratio"]),
        *(_field(hours[which], lambda value: f"{value:.3g}") for which in ("estimated", "real")),
        *(_field(memory[which], lambda value: f"{value / 1e9:.3g} GB") for which in ("estimated", "real")),
        _ratio(memory["ratio"]),
    ]


def _field(value: float | None, text: Any) -> Field:
    return Field(NONE, tone="muted") if value is None else Field(text(value), order=float(value))


def _ratio(value: float | None) -> Field:
    if value is None:
        return Field(NONE, tone="muted")
    return Field(f"{value:.2f}", order=value, tone="strong" if max(value, 1 / value if value else OFF) >= OFF else "")
