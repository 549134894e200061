"""What jobs were estimated to take beside what they took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT = ("title", "kind", "seconds", "gpu_hours", "peak_memory", "devices", "basis")
"""Of a job's row in a summary, what is kept as its estimate."""
COMPARED = ("seconds", "gpu_hours", "peak_memory")


def to_keep(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprint -> estimate, from a plan's `summary` made before anything runs, and what was kept `earlier`.

    A job that has begun keeps the estimate from before it did: later ones know how long it took. Jobs that were done
    before anybody estimated them have none.
    """
    new = {row["fingerprint"]: {key: row[key] for key in KEPT} for row in found["jobs"] if row["status"] == "new"}
    begun = [row for row in found["jobs"] if row["status"] not in ("new", "done")]
    late = {row["fingerprint"]: {key: row[key] for key in KEPT} for row in begun}
    return {**late, **earlier, **new}


def compared(estimates: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`jobs`, one row for each that is done and was estimated, and `totals` over those of which both are known.

    `states` maps fingerprints to the states of their records. Rows have title, kind, basis and, for each of seconds,
    gpu_hours and peak_memory, the estimate, the reality and their ratio (reality / estimate), None where unknown.
    Seconds are a training job's steps, and all of an evaluation; GPU-hours are those of all devices, from begin to end.
    """
    rows = [
        {"fingerprint": name, "title": kept["title"], "kind": kept["kind"], "basis": kept["basis"]}
        | {what: pair(kept[what], real) for what, real in reality(states[name], kept["devices"]).items()}
        for name, kept in estimates.items()
        if name in states and states[name]["status"] == "done"
    ]
    return {
        "jobs": rows,
        "totals": {what: _total(rows, what) for what in ("seconds", "gpu_hours")} | {"jobs": len(rows)},
    }


def reality(state: Mapping[str, Any], devices: int) -> dict[str, float | None]:
    """What a job that is done took."""
    result = state["result"] or {}
    held = result.get("ranks", devices)
    return {
        "seconds": result.get("seconds", state["seconds"]),
        "gpu_hours": state.get("gpu_seconds", 0.0) * held / 3600,
        "peak_memory": result.get("peak_memory"),
    }


def pair(estimated: float | None, real: float | None) -> dict[str, float | None]:
    """Both, and reality / estimate where that says something."""
    ratio = real / estimated if estimated and real is not None else None
    return {"estimated": estimated, "real": real, "ratio": ratio}


def _total(rows: list[dict[str, Any]], what: str) -> dict[str, float | None]:
    known = [row[what] for row in rows if row[what]["estimated"] is not None and row[what]["real"] is not None]
    if not known:
        return pair(None, None)
    return pair(sum(each["estimated"] for each in known), sum(each["real"] for each in known))
