"""prism sweep on a cluster: what is not done yet of a study into SLURM's queue."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence

from prism_sweeps.commands.output import asked, console, numbered, print_json, say
from prism_sweeps.commands.up_to_date import bring_up
from prism_sweeps.launching import cancelling
from prism_sweeps.launching.overview import Overview
from prism_sweeps.launching.removed import removed_from, still_there
from prism_sweeps.launching.slurm.submit import Submitted
from prism_sweeps.launching.slurm.sweep import sweep
from prism_sweeps.launching.standing import ENDED_BADLY, OPEN, known_of
from prism_sweeps.planning.outline import Outline, outlined
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store


def run(arguments: Namespace, plan: Plan, store: Store, weights: dict[str, float]) -> int:
    """Submits, and returns; with --wait once all have ended."""
    done = sweep(plan, store, say, weights)
    outline = outlined(plan)
    removed = removed_jobs(store, plan.study)
    if removed and not arguments.json and sys.stdin.isatty() and sys.stderr.isatty():
        removed = ask_about_removed(store, outline, removed)
    if arguments.json and not arguments.wait:
        print_json(as_json(plan, done) | {"removed": list(removed)})
        return 0
    for line in [] if arguments.json else lines(plan, done, removed):
        print(line, flush=True)
    return wait(arguments, store, outline) if arguments.wait else 0


def wait(arguments: Namespace, store: Store, outline: Outline) -> int:
    """Follows the study until all of it has ended: 0 when all is done, 1 otherwise, 130 after Ctrl-C."""
    from prism_sweeps.commands.status import as_json as status_json
    from prism_sweeps.commands.status import show
    from prism_sweeps.commands.watching import SECONDS, follow, screen_for

    try:
        found: Overview = follow(store, outline, SECONDS, screen_for(sys.stderr if arguments.json else sys.stdout))
    except KeyboardInterrupt:
        study = outline.study
        say(f"the jobs go on. Watch again: prism status {study} --watch; end them: prism cancel {study}")
        return 130
    if arguments.json:
        print_json(status_json(store, found))
    else:
        show(store, found, console())
    sys.stdout.flush()
    bring_up(store, found)
    return int(bool(found.named(*ENDED_BADLY)))


def removed_jobs(store: Store, study: str) -> list[str]:
    """Jobs of removed cells that SLURM still has and nobody needs."""
    names = removed_from(store.study(study))
    if not names:
        return []
    journal = submissions.read(store.root)
    return still_there(store, study, journal.newest(), known_of(names, store, journal, must_answer=True))


def ask_about_removed(store: Store, outline: Outline, removed: Sequence[str]) -> list[str]:
    """Cancels them if the user says so; returns those that are still there."""
    if not asked(f"{numbered(len(removed), 'job')} of removed cells are still queued or running; cancel them?"):
        return list(removed)
    keepers = cancelling.keepers_of_removed(store, removed)
    done = cancelling.cancel(store, outline, removed, keepers, say)
    return sorted(set(removed) - set(done.jobs))


def as_json(plan: Plan, done: Submitted) -> dict[str, object]:
    return {
        "study": plan.study,
        "submitted": done.jobs,
        "allocations": done.allocations,
        "report_job": done.last_job,
        "before": dict(Counter(each.state for each in done.standings.values())),
    }


def lines(plan: Plan, done: Submitted, removed: Sequence[str] = ()) -> list[str]:
    """What was submitted, what not and why, and what to do next."""
    before = Counter(each.state for each in done.standings.values())
    left = [f"{count} {word}" for word, count in before.items() if word not in OPEN]
    told = f"{len(done.jobs)} jobs submitted in {done.allocations} allocations" if done.jobs else "nothing to submit"
    found = [told + (f"; {', '.join(left)}" if left else "")]
    if done.last_job:
        found.append(f"report and MLflow once all have ended: SLURM job {done.last_job}")
    if silent := before["silent"]:
        found.append(f"{silent} jobs give no sign of life; to end them and try again: prism retry {plan.study}")
    if removed:
        found.append(
            f"{numbered(len(removed), 'job')} of removed cells still queued or running; to cancel: "
            f"prism cancel {plan.study} --removed"
        )
    found.append(f"where it stands: prism status {plan.study}")
    return found
