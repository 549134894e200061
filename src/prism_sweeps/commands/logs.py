"""prism logs: what jobs, and SLURM, have written."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prism_sweeps.commands.opening import default_store, read_outline
from prism_sweeps.commands.output import say
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.launching.lookup import begins
from prism_sweeps.launching.outputs import (
    by_slurm_id,
    last_lines,
    logs_of,
    report_study,
    slurm_outputs,
    written_since,
)
from prism_sweeps.launching.overview import ACTIVE
from prism_sweeps.launching.standing import known_of, standings
from prism_sweeps.planning.outline import JobOutline, Outline
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.submissions import Journal

LOOK_SECONDS = 1.0
LOOKS = 5
"""At the logs between two questions to SLURM whether their jobs have ended."""

Jobs = Mapping[str, JobOutline]


@dataclass(frozen=True)
class Source:
    """Logs that belong together."""

    title: str
    paths: Sequence[Path]


def run(arguments: Namespace) -> int:
    if arguments.lines < 1:
        raise ConfigError(f"-n {arguments.lines}: one line at least")
    store = default_store(arguments)
    journal = submissions.read(store.root)
    jobs = meant(arguments.what, arguments.study, store, journal)
    if jobs is None:
        study = report_study(journal, arguments.what)
        assert study is not None
        sources = [Source(f"report job of {study}", slurm_outputs(store, study, arguments.what))]
    else:
        sources = sources_of(jobs, store, journal)
    for source in sources:
        show(source, arguments.lines)
    if not sources:
        print(f"nothing of {arguments.what} has failed; name a cell or a job for its log (prism status)")
    if arguments.follow:
        if not jobs:
            raise ConfigError(f"-f {arguments.what}: name a cell, a job or a SLURM id of a job to follow")
        follow(store, jobs, lambda: paths_of(jobs, store))
    return 0


# ---- which


def meant(what: str, study: str | None, store: Store, journal: Journal) -> Jobs | None:
    """The jobs whose logs are wanted; None for a report job. Raises ConfigError when it is none of all."""
    if study is None and what in store.studies():
        return ended_badly(store, read_outline(store, what), journal)
    if report_study(journal, what):
        return None
    outlines = [read_outline(store, name) for name in ([study] if study else store.studies())]
    every = {name: job for outline in outlines for name, job in outline.jobs.items()}
    if allotted := by_slurm_id(journal, what):
        return {name: every.get(name) or unknown(name) for each in allotted for name in each.jobs}
    cells = {cell.id: cell for outline in outlines for cell in outline.cells}
    found = {cells[each].id: cells[each].jobs for each in begins(what, cells)}
    found |= {name: (name,) for name in begins(what, every)}
    if len(found) > 1:
        raise ConfigError(f"'{what}' may be {', '.join(list(found)[:5])}; give more of it")
    if not found:
        known = [*store.studies(), *cells]
        raise ConfigError(
            f"'{what}' is no study, cell, job or SLURM id of {study or store.root}; {nearest(what, known)}"
        )
    return {name: every[name] for names in found.values() for name in names}


def unknown(name: str) -> JobOutline:
    """A job that no plan of the store has any more."""
    return JobOutline(name, f"{name} (of no study now)", "", (), "")


def ended_badly(store: Store, outline: Outline, journal: Journal) -> Jobs:
    known = known_of(outline.jobs, store, journal, must_answer=False)
    found = standings(outline.jobs, known)
    return {name: job for name, job in outline.jobs.items() if found[name].state in ("failed", "lost")}


def sources_of(jobs: Jobs, store: Store, journal: Journal) -> list[Source]:
    """Logs of each job; SLURM's output once, where it speaks of several."""
    newest, shown = journal.newest(), set[Path]()
    sources = []
    for name, job in jobs.items():
        paths = [path for path in logs_of(store, name, newest.get(name)) if path not in shown]
        shown |= set(paths)
        if paths or len(jobs) == 1:
            sources.append(Source(f"{job.title} ({name})", paths))
    return sources


def paths_of(jobs: Jobs, store: Store) -> list[Path]:
    """All logs of these jobs now; a job that is submitted again gets another output."""
    return [path for source in sources_of(jobs, store, submissions.read(store.root)) for path in source.paths]


# ---- how


def show(source: Source, lines: int) -> None:
    print(source.title)
    for path in source.paths:
        print(f"==> {path} <==")
        for line in last_lines(path, lines):
            print(line)
    if not source.paths:
        print("nothing written yet")


def follow(
    store: Store, jobs: Jobs, paths: Callable[[], Sequence[Path]], pause: Callable[[float], None] = time.sleep
) -> None:
    """Prints what is added to the logs until the jobs have ended, over as many attempts as they take."""
    read = {path: path.stat().st_size for path in paths()}
    last: Path | None = None
    going, looks = True, 0
    while going:
        pause(LOOK_SECONDS)
        looks += 1
        if looks % LOOKS == 0:
            going = going_on(store, jobs)
        for path in paths():
            text, read[path] = written_since(path, read.get(path, 0))
            if text and path != last:
                print(f"==> {path} <==")
                last = path
            sys.stdout.write(text)
        sys.stdout.flush()
    ends = standings(jobs, known_of(jobs, store, submissions.read(store.root), must_answer=False))
    say("; ".join(f"{jobs[name].title} {each.state}" for name, each in list(ends.items())[:LOOKS]))


def going_on(store: Store, jobs: Jobs) -> bool:
    found = standings(jobs, known_of(jobs, store, submissions.read(store.root), must_answer=False))
    return any(each.state in ACTIVE for each in found.values())
