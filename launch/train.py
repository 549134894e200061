"""The cells of a grid as a plain Hydra multirun, with any Hydra launcher.

    python launch/train.py -m backbone=nano-clip,nano-dinov2 resize=letterbox,naive seed=1,2

Every Hydra job runs the jobs of its cell. They are those of `prism sweep`: one that is done, whoever ran it, is not
run again, and one that another Hydra job is at is waited for. Into SLURM's queue, all at once:

    python launch/train.py -m backbone=nano-clip,nano-dinov2 seed=1,2 hydra/launcher=prism_slurm cluster=slurm
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from hydra_plugins.prism_slurm import PrismSlurmLauncher
from prism_sweeps.launching.progress import LineDisplay
from prism_sweeps.launching.together import run_together
from prism_sweeps.planning.plan import make_plan
from prism_sweeps.tracking.records import Store

# Hydra finds plugins by itself where this package is installed, but not in a working copy.
Plugins.instance().register(PrismSlurmLauncher)


@hydra.main(config_path="pkg://prism_sweeps.conf", config_name="cell", version_base="1.3")
def main(_: DictConfig) -> float:
    """Trains and scores one cell; its mean score is what a Hydra sweeper optimises."""
    plan = make_plan(list(HydraConfig.get().overrides.task))
    root = Path(hydra.utils.get_original_cwd(), os.environ.get("PRISM_STORE") or plan.store.root)
    store = Store.open(root, Path(plan.store.data) if plan.store.data else None)
    store.study(plan.study).write_plan(plan.to_plain())
    outcome = run_together(plan.jobs, store, plan.engine, LineDisplay())
    if outcome.interrupted:
        sys.exit(outcome.stopped_with)
    if outcome.failed:
        raise RuntimeError("; ".join(outcome.failed.values()))
    scores = [store.job(name).state()["result"]["score"] for name in plan.cells[0].evaluate]
    return float(sum(scores) / len(scores)) if scores else 0.0


if __name__ == "__main__":
    main()
