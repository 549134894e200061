"""Jobs on several processes at once (`torchrun`, `srun`): the first keeps the records, all of them train and evaluate.

The rest (records, progress, what is done already) the first one does alone, while the others wait to hear of the next
job. A process that fails leaves with an error, upon which its launcher ends the others; all go on together from the
last checkpoint when they are started again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Mapping
from typing import NoReturn

from prism_sweeps.config.errors import PrismError, StoreError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.launching.foreground import run_here
from prism_sweeps.launching.local import Outcome
from prism_sweeps.launching.pool import StopRequests, stop_requests
from prism_sweeps.launching.progress import Display
from prism_sweeps.launching.run_job import describe, is_of_another, note, run_job, work_to_do
from prism_sweeps.tracking.records import Interrupted, Store
from prism_sweeps.training.world import World, joined, place_in


def run_together(jobs: Mapping[str, Job], store: Store, engine: Engine, display: Display) -> Outcome:
    """`run_here`, with every process that was started beside this one. Only the first returns; the others exit."""
    place = place_in(os.environ)
    if place.size == 1:
        return run_here(jobs, store, engine, display)
    with joined(place, engine) as world:
        if not world.first:
            follow(jobs, store, engine, world)
        try:
            outcome = run_here(jobs, store, engine, display, run=functools.partial(run_job, world=world))
        except BaseException as error:
            traceback.print_exc()
            leave(f"prism: {describe(error)}", 130 if isinstance(error, KeyboardInterrupt) else 1)
        if outcome.failed:
            # The others may be waiting in the middle of a step; an orderly farewell would wait for them.
            leave(f"prism: {'; '.join(outcome.failed.values())}", 1)
        # Stopped within a training job, the others have left as well and hear nothing any more.
        with contextlib.suppress(RuntimeError) if outcome.interrupted else contextlib.nullcontext():
            world.told_by_first(None)
        return outcome


def follow(jobs: Mapping[str, Job], store: Store, engine: Engine, world: World) -> NoReturn:
    """Takes part in every job that the first process names, until it names none."""
    with stop_requests() as requests:
        while (name := world.told_by_first(None)) is not None:
            take_part(jobs[name], store, engine, world, requests)
        sys.exit(requests.exit_code if requests.count else 0)


def take_part(job: Job, store: Store, engine: Engine, world: World, requests: StopRequests) -> None:
    """This process's share in one job. An error is put down beside the job's record and ends the process.

    But for what is wrong with an evaluation, which all processes say together, and then go on to another job.
    """
    record = store.job(job.fingerprint)
    try:
        work_to_do(job, world)(job.spec, record, store, engine, quiet, lambda: requests.count > 0)
    except Interrupted:
        requests.hear_from_others()
        sys.exit(requests.exit_code)
    except BaseException as error:
        if job.kind == "evaluate" and isinstance(error, PrismError):
            return
        text = f"process {world.rank} of {world.size}: {describe(error)}"
        with contextlib.suppress(StoreError):  # a full disk must not keep this process from leaving
            note(record, f"{text}\n{traceback.format_exc().rstrip()}")
            if not is_of_another(error):
                record.put_down_failure(world.rank, text)
        leave(f"prism: {text}", 1)


def leave(text: str, code: int) -> NoReturn:
    """Ends this process without waiting for the others, as an interpreter in a group of processes may."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def quiet(done: int, total: int, text: str) -> None:
    """Progress is the first process's to tell."""
