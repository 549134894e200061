"""prism cancel: jobs of a study out of SLURM's queue."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping

from prism_sweeps.commands.opening import default_store, read_outline
from prism_sweeps.commands.output import confirmed, numbered, print_json, say
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.launching import cancelling
from prism_sweeps.launching.cancelling import Cancellation, Keepers
from prism_sweeps.launching.lookup import chosen
from prism_sweeps.launching.removed import removed_from
from prism_sweeps.launching.schedule import descendants
from prism_sweeps.planning.outline import Outline
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

NAMED = 3
"""Things that a sentence names at most."""


def run(arguments: Namespace) -> int:
    store = default_store(arguments)
    outline = read_outline(store, arguments.study)
    names, others = meant(arguments, store, outline)
    keepers: Keepers = {} if arguments.even_shared else others
    found = cancelling.look(store, outline, names, keepers)
    titles = {name: job.title for name, job in outline.jobs.items()} | removed_from(store.study(outline.study))
    for line in lines(found, outline, titles):
        print(line, file=sys.stderr if arguments.json else sys.stdout)
    if found.taken and not confirmed(question(found), arguments.yes, "nothing was cancelled"):
        print("nothing was cancelled", file=sys.stderr)
        return 0
    done = cancelling.cancel(store, outline, names, keepers, say) if found.taken else found
    if arguments.json:
        print_json(as_json(outline, done))
    else:
        print(closing(done, outline.study, again=not arguments.removed))
    return 0


def meant(arguments: Namespace, store: Store, outline: Outline) -> tuple[set[str], Keepers]:
    """The jobs that the arguments mean, and who else needs which of them."""
    if arguments.removed:
        if arguments.cell or arguments.job:
            raise ConfigError("--removed means all jobs of removed cells; leave out --cell and --job")
        names = set(removed_from(store.study(outline.study)))
        return names, cancelling.keepers_of_removed(store, names)
    named = chosen(outline, arguments.cell, arguments.job, submissions.read(store.root).newest())
    names = set(outline.jobs) if named is None else named
    return names, cancelling.keepers_of(store, outline, names, of_cells=bool(arguments.cell))


def question(found: Cancellation) -> str:
    return f"cancel {numbered(len(found.jobs), 'job')} in {numbered(len(found.taken), 'allocation')}?"


def lines(found: Cancellation, outline: Outline, titles: Mapping[str, str]) -> list[str]:
    """What will be cancelled, what ends with it, and what will not."""
    told = []
    running = "running: a checkpoint is written first, if that takes less than SLURM's KillWait"
    for run, word in ((True, running), (False, "queued")):
        some = [each for each in found.taken if each.runs is run]
        if some:
            jobs = [name for each in some for name in each.meant]
            told.append(f"{numbered(len(jobs), 'job')} {word}: {listed([titles[name] for name in jobs])}")
    for each in found.taken:
        if each.along:
            told.append(
                f"SLURM job {each.slurm_id} is one allocation: with it end also "
                f"{listed([titles.get(name, name) for name in each.along])}"
            )
    behind = descendants(outline.jobs, found.jobs)
    if behind:
        told.append(f"{numbered(len(behind), 'job')} that need these cannot run either")
    for stays in found.kept:
        told.append(
            f"SLURM job {stays.slurm_id} stays ({listed([titles[name] for name in stays.jobs])}): "
            f"{listed(stays.by)} needs it too; --even-shared cancels it"
        )
    if found.unmarked:
        told.append(
            f"SLURM job {listed(list(found.unmarked))} stays: it does not carry this store's mark, so it may be "
            "another's; scancel ends it"
        )
    for name, (host, process) in list(found.elsewhere.items())[:NAMED]:
        told.append(
            f"{titles[name]} runs outside of SLURM: process {process} on {host}; Ctrl-C in its terminal stops it and "
            "keeps its checkpoint"
        )
    return told


def listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def closing(done: Cancellation, study: str, again: bool) -> str:
    if not done.taken:
        return f"nothing of {study} to cancel in SLURM's queue"
    report = " and the report job" if done.report else ""
    told = f"{numbered(len(done.jobs), 'job')} cancelled{report}"
    return f"{told}; what had begun goes on where it was: prism retry {study}" if again else told


def as_json(outline: Outline, done: Cancellation) -> dict[str, object]:
    return {
        "study": outline.study,
        "cancelled": [
            {"slurm_id": each.slurm_id, "running": each.runs, "jobs": each.meant, "along": each.along}
            for each in done.taken
        ],
        "kept": [{"slurm_id": each.slurm_id, "jobs": each.jobs, "needed_by": each.by} for each in done.kept],
        "report_jobs": list(done.report),
        "unmarked": list(done.unmarked),
        "outside_of_slurm": {name: {"host": host, "pid": pid} for name, (host, pid) in done.elsewhere.items()},
    }
