"""A limit to what a plan may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.planning.plan import Plan, PlannedCell

SHOWN_CELLS = 3


def check_budget(plan: Plan, found: Mapping[str, Any], budget: float | None) -> None:
    """Raise ConfigError unless all that is to be run costs at most `budget` GPU-hours; None is no limit.

    `found` is the plan's `summary`. What is not known could cost anything, so with it no budget can be kept.
    """
    if budget is None:
        return
    if not budget >= 0:
        raise ConfigError(f"--budget is {budget}; it should be GPU-hours, 0 or more")
    waiting = [row for row in found["jobs"] if row["status"] != "done"]
    unknown = [row for row in waiting if row["gpu_hours"] is None]
    cost = sum(row["gpu_hours"] for row in waiting if row["gpu_hours"] is not None)
    if cost <= budget and not unknown:
        return
    limit, known = f"the budget of {hours(budget)} GPU-hours", f"{hours(cost)} GPU-hours"
    told = [f"what is left of '{plan.study}' costs {known}, more than {limit}"]
    if unknown:
        count = f"{len(unknown)} of the {len(waiting)} jobs that are left of '{plan.study}'"
        told = [
            f"the cost of {count} is not known ({_reason(unknown)}), so {limit} cannot be kept; the rest costs {known}"
        ]
    largest = _largest(plan, waiting)
    if largest:
        told.append("the largest cells: " + ", ".join(f"{name} {hours(size)} GPU-hours" for name, size in largest))
    raise ConfigError("; ".join(told))


def hours(amount: float) -> str:
    """GPU-hours with three digits, or all of a larger number: 0.123, 12.3, 1,234."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def _reason(unknown: list[Mapping[str, Any]]) -> str:
    bases = dict.fromkeys(str(row["basis"]).partition(";")[0] for row in unknown)
    measured = any("no run measured" in basis for basis in bases)
    return ", ".join(bases) + ("; name the GPU to have it estimated: cluster.gpu=h100-80gb" if measured else "")


def _largest(plan: Plan, waiting: list[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Cells and what their own jobs cost, shared ones in full."""
    costs = {row["fingerprint"]: row["gpu_hours"] or 0.0 for row in waiting}
    cells = {_name(cell): sum(costs.get(job, 0.0) for job in (*cell.train, *cell.evaluate)) for cell in plan.cells}
    ordered = sorted(cells.items(), key=lambda entry: -entry[1])
    return [(name, cost) for name, cost in ordered[:SHOWN_CELLS] if cost]


def _name(cell: PlannedCell) -> str:
    changes = " ".join(f"{axis}={value}" for axis, value in cell.overrides.items()) or "baseline"
    return f"{cell.id} ({changes}, seed {cell.seed})"
