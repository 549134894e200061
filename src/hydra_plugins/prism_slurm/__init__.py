"""`hydra/launcher=prism_slurm`: a plain Hydra multirun whose cells go into SLURM's queue as one sweep.

    python launch/train.py -m backbone=nano-clip,nano-siglip resize=letterbox,naive hydra/launcher=prism_slurm \\
        cluster.partition=gpu

The cells, their jobs and their records are those of `prism sweep` with the same overrides, so shared stages are trained
once, and `prism status`, `logs` and `report` know the study. Hydra imports this module whenever it starts: it is light.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from prism_sweeps.planning.plan import Plan, PlannedCell
    from prism_sweeps.tracking.records import Store


@dataclass
class PrismSlurmConf:
    """hydra.launcher.*"""

    _target_: str = "hydra_plugins.prism_slurm.PrismSlurmLauncher"
    wait: bool = False
    """Whether to wait for the end, for sweepers and scripts that want scores back. Else it returns once all is queued.
    """


ConfigStore.instance().store(group="hydra/launcher", name="prism_slurm", node=PrismSlurmConf, provider="prism_sweeps")


class PrismSlurmLauncher(Launcher):
    """Submits the cells of a multirun as one study."""

    def __init__(self, wait: bool = False) -> None:
        self.wait = wait

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's. Keeps the multirun's own config."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Hydra's: one return for each set of overrides. Raises ConfigError and LaunchError, as `prism sweep` does."""
        from prism_sweeps.commands.output import say
        from prism_sweeps.commands.watching import SECONDS, follow, screen_for
        from prism_sweeps.launching.slurm.sweep import sweep
        from prism_sweeps.planning.outline import outlined
        from prism_sweeps.planning.plan import summary
        from prism_sweeps.tracking import throughput
        from prism_sweeps.tracking.kept_estimates import keep_estimates

        plan, cells = self.planned(job_overrides)
        store = self.store_of(plan)
        states = {name: store.job(name).state()["status"] for name in plan.jobs}
        keep_estimates(store.study(plan.study), summary(plan, states, throughput.read(store.root)))
        done = sweep(plan, store, say)
        told = f"{len(done.jobs)} jobs submitted in {done.allocations} allocations"
        say(f"{told if done.jobs else 'nothing to submit'}; prism status {plan.study}")
        if self.wait:
            follow(store, outlined(plan), SECONDS, screen_for(sys.stderr))
        return [self.returned(cell, store, list(each)) for cell, each in zip(cells, job_overrides, strict=True)]

    def planned(self, job_overrides: Sequence[Sequence[str]]) -> tuple[Plan, list[PlannedCell]]:
        """The grid of the multirun, and its cell for each set of overrides."""
        from prism_sweeps.config.errors import ConfigError
        from prism_sweeps.planning.plan import make_plan

        task = OmegaConf.to_object(self.config.hydra.overrides.task)
        plan = make_plan([*task, *([] if any(each.startswith("cluster=") for each in task) else ["cluster=slurm"])])
        if plan.cluster.kind != "slurm":
            raise ConfigError("hydra/launcher=prism_slurm needs cluster=slurm, or a choice of yours of that kind")
        asked = [make_plan(list(each)).cells[0].id for each in job_overrides]
        cells = {cell.id: cell for cell in plan.cells}
        if not cells.keys() == set(asked):
            raise ConfigError(
                f"these overrides are {len(cells)} cells, but Hydra's sweeper asks for {len(set(asked))}: prism_slurm "
                "goes with hydra/sweeper=basic"
            )
        return plan, [cells[name] for name in asked]

    def store_of(self, plan: Plan) -> Store:
        from prism_sweeps.tracking.records import Store

        root = Path(os.environ.get("PRISM_STORE") or plan.store.root)
        return Store.open(root, Path(plan.store.data) if plan.store.data else None)

    def returned(self, cell: PlannedCell, store: Store, overrides: list[str]) -> JobReturn:
        """A cell's mean score, once it is there; an error where one of its jobs has failed."""
        states = {name: store.job(name).state() for name in (*cell.train, *cell.evaluate)}
        result = JobReturn(overrides=overrides, cfg=self.config, status=JobStatus.COMPLETED)
        result.return_value = None
        with open_dict(self.config):
            result.hydra_cfg = OmegaConf.create({"hydra": self.config.hydra})
        scores = [states[name]["result"]["score"] for name in cell.evaluate if states[name]["status"] == "done"]
        if self.wait and any(state["status"] != "done" for state in states.values()):
            errors = [str(state["error"]) for state in states.values() if state["status"] == "failed"]
            result.status = JobStatus.FAILED
            result.return_value = RuntimeError("; ".join(errors) or f"cell {cell.id} is not complete")
        elif scores and len(scores) == len(cell.evaluate):
            result.return_value = sum(scores) / len(scores)
        return result
