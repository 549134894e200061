"""How many jobs a user may have in SLURM at a time: what it says when there are more, and arrays cut to fit."""

from __future__ import annotations

from collections.abc import Mapping

from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.planning.allocations import Batch

TEXTS = ("MaxSubmitJob", "Job violates accounting/QOS policy")
"""What SLURM says then: AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, ..."""


class LimitReachedError(LaunchError):
    """SLURM takes so many jobs no more; it will once others have ended."""


def halves(batch: Batch) -> list[Batch]:
    """Two arrays for one, or single jobs."""
    middle = (len(batch.allocations) + 1) // 2
    parts = batch.allocations[:middle], batch.allocations[middle:]
    return [Batch(part, batch.task_by_task if len(part) > 1 else None, batch.lane) for part in parts]


def singles(batch: Batch) -> list[Batch]:
    """The tasks of an array one by one, each with what it needs itself."""
    return [Batch([allocation], lane=batch.lane) for allocation in batch.allocations]


def in_step(batch: Batch, ids: Mapping[str, tuple[str, int]]) -> bool:
    """Whether each task needs the task of the same number in one array, as `aftercorr` takes it. `ids`: job -> its
    SLURM id, ...; an array that was cut has more than one."""
    needed = [ids[allocation.needs[0]][0] for allocation in batch.allocations]
    base = needed[0].partition("_")[0]
    return needed == [f"{base}_{number}" for number in range(len(needed))]
