"""prism sweep on a cluster: what is not done yet of a study into SLURM's queue."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter

from prism_sweeps.commands.output import print_json
from prism_sweeps.launching.local import prepare_data
from prism_sweeps.launching.progress import display_for
from prism_sweeps.launching.slurm.submit import Submitted, checked_requests, submit
from prism_sweeps.launching.standing import OPEN
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.records import Store


def run(arguments: Namespace, plan: Plan, store: Store, weights: dict[str, float]) -> int:
    """Prepares the data here, where there is a network, submits, and returns."""
    checked_requests(plan)  # before minutes go into preparing data
    display = display_for()
    with display:
        open_jobs = {name: job for name, job in plan.jobs.items() if store.job(name).state()["status"] != "done"}
        prepare_data(open_jobs, store, display)
    done = submit(plan, store, say, weights)
    store.study(plan.study).write_plan(plan.to_plain())
    if arguments.json:
        print_json(as_json(plan, done))
    else:
        for line in lines(plan, done):
            print(line)
    return 0


def as_json(plan: Plan, done: Submitted) -> dict[str, object]:
    return {
        "study": plan.study,
        "submitted": done.jobs,
        "allocations": done.allocations,
        "report_job": done.last_job,
        "before": dict(Counter(each.state for each in done.standings.values())),
    }


def lines(plan: Plan, done: Submitted) -> list[str]:
    """What was submitted, what not and why, and what to do next."""
    before = Counter(each.state for each in done.standings.values())
    left = [f"{count} {word}" for word, count in before.items() if word not in OPEN]
    told = f"{len(done.jobs)} jobs submitted in {done.allocations} allocations" if done.jobs else "nothing to submit"
    found = [told + (f"; {', '.join(left)}" if left else "")]
    if done.last_job:
        found.append(f"report and MLflow once all have ended: SLURM job {done.last_job}")
    if silent := before["silent"]:
        found.append(f"{silent} jobs give no sign of life; to end them and try again: prism retry {plan.study}")
    found.append(f"where it stands: prism status {plan.study}")
    return found


def say(text: str) -> None:
    print(f"prism: {text}", file=sys.stderr, flush=True)
