"""prism sweep: run what is not done yet of a study."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping

from prism_sweeps.commands.opening import open_store, plan_of
from prism_sweeps.commands.output import console, print_json
from prism_sweeps.commands.plan import recorded_states
from prism_sweeps.commands.status import as_json, show
from prism_sweeps.config.specs import Job
from prism_sweeps.launching.local import Outcome, run_jobs
from prism_sweeps.launching.overview import overview
from prism_sweeps.launching.progress import display_for
from prism_sweeps.launching.removed import replace_plan
from prism_sweeps.planning.budget import check_budget
from prism_sweeps.planning.costs import Costs
from prism_sweeps.planning.outline import outlined
from prism_sweeps.planning.plan import Plan, summary
from prism_sweeps.tracking import throughput
from prism_sweeps.tracking.kept_estimates import keep_estimates
from prism_sweeps.tracking.mlflow_import import TrackingError, create_in_background, import_study
from prism_sweeps.tracking.records import Store


def run(arguments: Namespace) -> int:
    plan = plan_of(arguments)
    store = open_store(plan.store, arguments)
    found = summary(plan, recorded_states(plan, arguments), throughput.read(store.root))
    check_budget(plan, found, arguments.budget)
    keep_estimates(store.study(plan.study), found)
    if plan.cluster.kind == "slurm":
        from prism_sweeps.commands import submitting

        return submitting.run(arguments, plan, store, expected(plan))
    replace_plan(store, plan)
    return run_here(arguments, plan, store, plan.jobs)


def run_here(arguments: Namespace, plan: Plan, store: Store, jobs: Mapping[str, Job]) -> int:
    """Runs these jobs of a plan on this machine, feeds MLflow, and shows what came out."""
    if plan.tracking.mlflow:
        create_in_background(store, plan.tracking.uri)
    outcome = run_jobs(jobs, store, plan.engine, display_for(), weights=expected(plan))
    tracked = None if outcome.interrupted else track(plan, store)
    found = overview(store, outlined(plan))
    if arguments.json:
        ended = {"mlflow": tracked, "skipped": outcome.skipped, "interrupted": outcome.interrupted}
        print_json(as_json(store, found) | ended)
    else:
        show(store, found, console())
        for line in closing(plan, outcome, tracked):
            print(line)
    return exit_code(outcome)


def expected(plan: Plan) -> dict[str, float]:
    """Fingerprint -> FLOPs, as relative durations; {} where one is unknown, since units must not mix."""
    alike = Costs(plan.engine, plan.cluster, measured=())
    costs = {name: alike.of(job)["flops"] for name, job in plan.jobs.items()}
    known = {name: cost for name, cost in costs.items() if cost}
    return known if len(known) == len(costs) else {}


def track(plan: Plan, store: Store) -> str | None:
    """Feeds MLflow and returns where it is; a failure is a warning, for the records have everything."""
    if not plan.tracking.mlflow:
        return None
    try:
        return import_study(store, plan.study, plan.tracking.uri).uri
    except TrackingError as error:
        print(f"prism: warning: {error}", file=sys.stderr)
        return None


def closing(plan: Plan, outcome: Outcome, tracked: str | None) -> list[str]:
    """What to do next."""
    again = f"prism sweep {plan.study}"
    if outcome.interrupted:
        return [
            f"interrupted; go on with the same command (or {again}): done jobs are kept, others go on where they were"
        ]
    lines = [f"tables and plots: prism report {plan.study}"]
    if tracked:
        lines.append(f"curves and runs:  mlflow ui --backend-store-uri {tracked}")
    if outcome.failed:
        lines.append(f"failed jobs are tried again by: {again}")
    return lines


def exit_code(outcome: Outcome) -> int:
    """130 interrupted by the user, 75 by a scheduler (start it again), 1 when a job failed, else 0."""
    return outcome.stopped_with if outcome.interrupted else int(bool(outcome.failed))
