"""prism retry: what has ended badly, once more."""

from __future__ import annotations

from argparse import Namespace

from prism_sweeps.commands.opening import default_store, read_outline, read_plan
from prism_sweeps.commands.output import numbered, print_json, say
from prism_sweeps.commands.sweep import expected, run_here
from prism_sweeps.launching.lookup import chosen
from prism_sweeps.launching.overview import Overview, overview
from prism_sweeps.launching.retrying import Retry, end_silent, to_retry
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store


def run(arguments: Namespace) -> int:
    store = default_store(arguments)
    outline = read_outline(store, arguments.study)
    journal = submissions.read(store.root)
    found = overview(store, outline)
    wanted = chosen(outline, arguments.cell, arguments.job, journal.newest())
    retry = to_retry(outline.jobs, found.standings, wanted, journal.newest())
    for name in retry.out_of_reach:
        state = found.states[name]
        say(
            f"{outline.jobs[name].title} gives no sign of life and runs outside of SLURM: end process {state['pid']} "
            f"on {state['host']}, then try again"
        )
    if not retry.jobs:
        return nothing(arguments, found)
    plan = read_plan(store, arguments.study)
    if plan.cluster.kind == "slurm":
        return submitted(arguments, plan, store, retry)
    for name in retry.jobs:
        store.job(name).forgive()
    return run_here(arguments, plan, store, {name: job for name, job in plan.jobs.items() if name in retry.jobs})


def nothing(arguments: Namespace, found: Overview) -> int:
    if arguments.json:
        print_json({"study": arguments.study, "submitted": [], "counts": found.counts()})
    else:
        told = ", ".join(f"{count} {word}" for word, count in found.counts().items())
        print(f"nothing of {arguments.study} to try again: {told}")
    return 0


def submitted(arguments: Namespace, plan: Plan, store: Store, retry: Retry) -> int:
    from prism_sweeps.commands import submitting
    from prism_sweeps.launching.slurm.submit import submit

    if retry.silent:
        end_silent(store, set(retry.silent.values()), say)
    done = submit(plan, store, say, expected(plan), wanted=lambda name, _: name in retry.jobs)
    if arguments.json:
        print_json(submitting.as_json(plan, done))
        return 0
    print(f"{numbered(len(done.jobs), 'job')} submitted again in {numbered(done.allocations, 'allocation')}")
    left = retry.jobs - set(done.jobs)
    if left:
        print(f"{numbered(len(left), 'job')} not: {', '.join(sorted({done.standings[name].state for name in left}))}")
    print(f"where it stands: prism status {plan.study}")
    return 0
