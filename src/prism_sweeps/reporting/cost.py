"""What a study cost, beside what it was estimated to cost. Needs no pandas, so that `prism status` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from prism_sweeps.planning.reality import compared
from prism_sweeps.tracking.kept_estimates import read_estimates
from prism_sweeps.tracking.records import Store


class Planned(Protocol):
    """A plan, or its outline."""

    @property
    def study(self) -> str: ...
    @property
    def jobs(self) -> Mapping[str, Any]: ...


TELLING = 3
"""Jobs a line, those that the estimate missed most."""


def cost_rows(store: Store, plan: Planned, states: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """`planning.reality.compared` of the plan's jobs, JSON-able; `states` of all of them, where they are known already.

    Raises StoreError for a record that cannot be read.
    """
    kept = {name: each for name, each in read_estimates(store.study(plan.study)).items() if name in plan.jobs}
    return compared(kept, {name: store.job(name).state() if states is None else states[name] for name in kept})


def cost_lines(store: Store, plan: Planned, states: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Estimate and reality in a few sentences; [] where no job that was estimated is done."""
    found = cost_rows(store, plan, states)
    totals = found["totals"]
    lines = []
    if totals["seconds"]["ratio"] is not None:
        lines.append(f"time of {timed(found)} jobs: {both(totals['seconds'], duration)}")
    if totals["gpu_hours"]["ratio"] is not None:
        lines.append(f"GPU-hours: {both(totals['gpu_hours'], lambda hours: f'{hours:.3g}')}")
    missed = sorted((row for row in found["jobs"] if off(row) > 2), key=off, reverse=True)[:TELLING]
    return lines + [f"  far off: {row['title']}: {both(row['seconds'], duration)}" for row in missed]


def timed(found: dict[str, Any]) -> int:
    """Jobs of which both times are known."""
    return sum(row["seconds"]["ratio"] is not None for row in found["jobs"])


def off(row: dict[str, Any]) -> float:
    """How many times the estimate of its seconds was too long or too short; 1 where it is not known."""
    ratio = row["seconds"]["ratio"]
    return max(ratio, 1 / ratio) if ratio else 1.0


def both(found: dict[str, Any], text: Any) -> str:
    """`estimated 5 min, took 6 min (1.2 times the estimate)`."""
    return f"estimated {text(found['estimated'])}, took {text(found['real'])} ({found['ratio']:.2g} times the estimate)"


def duration(seconds: float | None) -> str:
    """In the unit that leaves a number of at least one: 42 s, 5.3 min, 31.2 h; ? when unknown."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
