"""How fast a thousand cells are planned, jobs, fingerprints and costs included, beside composing each with plain Hydra.

    python benchmarks/plan.py [--rounds 5] [--sample 60]

A round plans the whole grid from nothing read (files, caches) and composes a random sample of its cells with
`hydra.compose`, typed by the same dataclasses, in turn; every sampled cell has to be equal to the planned one. Speeds
are cells a second of CPU, and by the clock beside it, since others may use the machine. Plain Hydra does less for a
cell: it plans no jobs, checks no axes against each other and counts no costs.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from prism_sweeps.config.compose import design_space
from prism_sweeps.config.files import PACKAGED
from prism_sweeps.config.plain import plain
from prism_sweeps.planning.plan import SHOWN, Plan, PlannedCell, make_plan, summary

GRID = (
    "backbone=nano-clip,nano-siglip,nano-dinov2",
    "resolution=64,96",
    "resize=letterbox,naive,crop",
    "llm=nano-base,nano-instruct",
    "schedule=one-epoch,160-steps",
    "seed=range(1,15)",
)
"""1008 cells; each has 26 evaluations."""

Seconds = tuple[float, float]
"""Of CPU, and of the clock."""


def timed(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    """What `work` gives, and how long it took."""
    gc.collect()
    cpu, clock = time.process_time(), time.perf_counter()
    found = work()
    return found, (time.process_time() - cpu, time.perf_counter() - clock)


def planned(grid: Sequence[str]) -> Plan:
    """The plan and its costs, with nothing known from before."""
    design_space.cache_clear()
    plan = make_plan(grid)
    summary(plan, {})
    return plan


def composed(cells: Sequence[PlannedCell]) -> list[dict[str, Any]]:
    """Each cell by Hydra's public API, as plain data."""
    with initialize_config_dir(str(PACKAGED), version_base="1.3"):
        found = [compose("cell", overrides_of(cell)) for cell in cells]
        for config in found:
            with open_dict(config):
                config.pop("hydra", None)
        return [plain(OmegaConf.to_object(config)) for config in found]


def overrides_of(cell: PlannedCell) -> list[str]:
    return [*(f"{group}='{cell.choices[group]}'" for group in SHOWN), f"seed={cell.seed}"]


def check_equal(cells: Sequence[PlannedCell], others: Sequence[dict[str, Any]]) -> None:
    """Raises AssertionError, naming the cell, where the two ways differ."""
    for cell, other in zip(cells, others, strict=True):
        assert cell.config == other, f"cell {cell.id} ({' '.join(overrides_of(cell))}) is another one by Hydra"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=60, help="cells a round that Hydra composes as well")
    options = parser.parse_args()
    ours: list[Seconds] = []
    theirs: list[Seconds] = []
    count = jobs = 0
    for turn in range(options.rounds):
        plan, (cpu, clock) = timed(lambda: planned(GRID))
        count, jobs = len(plan.cells), len(plan.jobs)
        ours.append((cpu / count, clock / count))
        sample = random.Random(turn).sample(plan.cells, options.sample)
        found, (other_cpu, other_clock) = timed(lambda sample=sample: composed(sample))
        check_equal(sample, found)
        theirs.append((other_cpu / options.sample, other_clock / options.sample))
        print(
            f"round {turn + 1}: {count} cells, {jobs} jobs and their costs in {cpu:.2f} CPU s ({clock:.2f} s); "
            f"{options.sample} of them by Hydra in {other_cpu:.2f} CPU s ({other_clock:.2f} s), all equal",
            flush=True,
        )
    speeds = [1 / cpu for cpu, _ in ours]
    ratios = [other / own for (own, _), (other, _) in zip(ours, theirs, strict=True)]
    print(f"planned: {spread(speeds)} cells a CPU second, {spread([1 / clock for _, clock in ours])} by the clock")
    print(f"Hydra: {spread([1 / cpu for cpu, _ in theirs])} cells a CPU second")
    print(f"planned / composed by Hydra: {spread(ratios)}")
    found = {"cells_per_second": round(statistics.median(speeds), 1)}
    print(
        json.dumps({"benchmark": "plan", "ratios": found | {"over_hydra_compose": round(statistics.median(ratios), 2)}})
    )


if __name__ == "__main__":
    main()
