"""A sweep on a cluster from its plan to SLURM's queue, as the command line and the Hydra launcher begin it."""

from __future__ import annotations

from collections.abc import Mapping

from prism_sweeps.launching.local import prepare_data
from prism_sweeps.launching.progress import display_for
from prism_sweeps.launching.removed import replace_plan
from prism_sweeps.launching.slurm.submit import Say, Submitted, checked_requests, submit
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.records import Store


def sweep(plan: Plan, store: Store, say: Say, weights: Mapping[str, float] | None = None) -> Submitted:
    """Submits what is not done of a plan, after its data were prepared here, where there is a network; and before that,
    as it may take long, after the cluster was asked whether it would take the jobs. Raises what `submit` does."""
    checked_requests(plan)
    open_jobs = {name: job for name, job in plan.jobs.items() if store.job(name).state()["status"] != "done"}
    display = display_for()
    with display:
        prepare_data(open_jobs, store, display)
    done = submit(plan, store, say, weights)
    replace_plan(store, plan)
    return done
