"""Records -> MLflow, by one writer, as often as one likes: what is there already is found and left alone."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import ConfigError, PrismError, StoreError
from prism_sweeps.planning.outline import Outline
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.files import read_json, try_lock, write_atomic
from prism_sweeps.tracking.mlflow_client import TrackingError, client_for, without_password
from prism_sweeps.tracking.mlflow_runs import FORMAT, cell_runs
from prism_sweeps.tracking.mlflow_writing import SQLITE, open_experiment, stored_runs, write_run
from prism_sweeps.tracking.records import Store

LOG = logging.getLogger(__name__)

LOCK_SECONDS = 600.0
"""Longer than an import of a large study takes; whoever waits in vain comes again."""
LOOK_SECONDS = 0.1
AGAIN_SECONDS = 3.0
REQUEST_SECONDS, TRIES = 30.0, 3
"""Of one call to a server."""


@dataclass(frozen=True)
class Imported:
    """What MLflow now holds of a study."""

    uri: str
    experiment_id: str
    digest: str
    runs: int
    """Runs of cells and of their stages, of what has begun."""
    written: int
    """Of these, how many this import created or changed."""


def tracking_uri(store: Store, uri: str | None) -> str:
    """`uri`, or the SQLite file in the store."""
    return uri or f"{SQLITE}{store.root / 'mlflow.db'}"


def bring_up_to_date(store: Store, plan: Plan | Outline, patience_seconds: float) -> Imported | None:
    """What MLflow holds of a study after an import; None, and a warning in the log, where that could not be done.

    For commands and jobs that have something else to do: a study that has not changed is recognised by its digest,
    otherwise another process imports it (its start takes seconds) and is ended when it takes longer than
    `patience_seconds`. What it has written until then stays. None also for plans without MLflow.
    """
    if not plan.tracking.mlflow:
        return None
    try:
        found = unchanged(store, plan.study, plan.tracking.uri)
        return found or imported_by_a_process(store, plan, patience_seconds)
    except (TrackingError, StoreError) as error:
        LOG.warning("%s", error)
        return None


def imported_by_a_process(store: Store, plan: Plan | Outline, patience_seconds: float) -> Imported:
    """Raises TrackingError when the process has not done it in time."""
    began = time.time()
    command = [sys.executable, "-m", __name__, "import", str(store.root), plan.study, str(began + patience_seconds)]
    # By stdin, because it may hold a password and others can read arguments.
    uri = plan.tracking.uri or ""
    try:
        done = subprocess.run(command, input=uri, capture_output=True, text=True, timeout=patience_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        where = without_password(tracking_uri(store, uri))
        raise TrackingError(
            f"MLflow at {where} has not taken study {plan.study} within {patience_seconds:.0f} s; "
            f"nothing is lost, `prism report {plan.study}` goes on with it"
        ) from error
    found = last_import(store.study(plan.study).path / "mlflow.json")
    if done.returncode or found is None:
        raise TrackingError((done.stderr.strip().splitlines() or [f"the import ended with {done.returncode}"])[-1])
    return found


def import_until(store: Store, study: str, uri: str | None, end: float) -> Imported:
    """`import_study`, again and again until it works or `end`, in seconds of `time.time`. Raises TrackingError."""
    while True:
        began = time.time()
        try:
            return import_study(store, study, uri, end - began)
        except TrackingError:
            # Who ends this process at `end` would not hear the reason.
            took = time.time() - began
            if time.time() + AGAIN_SECONDS + 2 * took > end:
                raise
            time.sleep(AGAIN_SECONDS)


def import_study(store: Store, study: str, uri: str | None = None, lock_seconds: float = LOCK_SECONDS) -> Imported:
    """Brings MLflow's experiment `study` up to the records and returns what it holds.

    Idempotent: a run is found by its tag and written only when its digest has changed; a study that has not changed
    since the last import is recognised without importing mlflow. Raises TrackingError.
    """
    before = unchanged(store, study, uri)
    if before:
        return before
    record = store.study(study)
    plan = record.plan()
    where = tracking_uri(store, uri)
    digest = study_digest(store, plan)
    with one_importer(store, lock_seconds), told_as_tracking_error(where, study):
        create_database(where)
        imported = write_runs(store, Plan.from_plain(plan), where, digest)
    write_atomic(record.path / "mlflow.json", json.dumps(asdict(imported)) + "\n")
    return imported


def unchanged(store: Store, study: str, uri: str | None) -> Imported | None:
    """What the last import left there, if nothing has changed since. Costs two stats and a read a job."""
    where = tracking_uri(store, uri)
    record = store.study(study)
    before = last_import(record.path / "mlflow.json")
    if before is None or before.uri != where or not database_exists(where):
        return None
    digest = study_digest(store, record.plan())
    return Imported(where, before.experiment_id, digest, before.runs, written=0) if before.digest == digest else None


@contextlib.contextmanager
def told_as_tracking_error(where: str, study: str) -> Iterator[None]:
    """Turns whatever MLflow and its backends raise into a TrackingError."""
    try:
        yield
    except (StoreError, ConfigError):
        raise
    except Exception as error:
        reason = (
            first_line(error) if isinstance(error, TrackingError) else f"{type(error).__name__}: {first_line(error)}"
        )
        raise TrackingError(
            f"MLflow at {without_password(where)} could not be written ({reason}); nothing is lost, "
            f"`prism report {study}` tries again"
        ) from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def study_digest(store: Store, plan: dict[str, Any]) -> str:
    """Changes whenever the plan or the state or curve of one of its jobs does. Costs two stats and a read a job."""
    found = hashlib.sha256(json.dumps([FORMAT, plan], sort_keys=True).encode())
    for name in sorted(plan["jobs"]):
        record = store.job(name)
        size = record.metrics.stat().st_size if record.metrics.exists() else 0
        found.update(f"{name} {size} {json.dumps(record.state(), sort_keys=True)}\n".encode())
    return found.hexdigest()


def last_import(note: Path) -> Imported | None:
    """What the last import wrote down; None when there was none or another version wrote it."""
    if not note.exists():
        return None
    content = read_json(note, f"remove {note}")
    return Imported(**content) if content.keys() == Imported.__dataclass_fields__.keys() else None


def database_exists(uri: str) -> bool:
    """False when `uri` is a SQLite file that is not there."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()


def create_database(uri: str) -> None:
    """A SQLite database with MLflow's schema, where there is none yet. Call it with the importer's lock held.

    The schema takes seconds and MLflow cannot repair half of one, so it is made beside its place and moved there.
    """
    if database_exists(uri):
        return
    place = Path(uri.removeprefix(SQLITE))
    place.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in place.parent.glob(f".{place.name}.new-*"):
        abandoned.unlink()
    temporary = place.with_name(f".{place.name}.new-{os.getpid()}")
    client_for(f"{SQLITE}{temporary}", REQUEST_SECONDS, TRIES).experiment("Default")
    temporary.replace(place)


def create_in_background(store: Store, uri: str | None) -> subprocess.Popen[bytes] | None:
    """Starts a process that makes the database while jobs run, so that none waits for it; None when it is there."""
    where = tracking_uri(store, uri)
    if database_exists(where):
        return None
    command = [sys.executable, "-m", __name__, "create", str(store.root), where]
    quiet = subprocess.DEVNULL
    # A session of its own: Ctrl-C is for the sweep, and this ends by itself.
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


@contextlib.contextmanager
def one_importer(store: Store, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """One at a time creates runs of a store, and MLflow's schema. Raises TrackingError after so many seconds."""
    end = time.monotonic() + seconds
    descriptor = os.open(store.root / "mlflow.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not try_lock(descriptor, fcntl.LOCK_EX, 0.0):
            if time.monotonic() > end:
                raise TrackingError(
                    f"another process has been writing to MLflow for {seconds:.0f} s, it holds "
                    f"{store.root / 'mlflow.lock'}; nothing is lost, try again later"
                )
            time.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def write_runs(store: Store, plan: Plan, uri: str, digest: str) -> Imported:
    """Creates or updates the study's runs. Call it with the importer's lock held."""
    experiment = open_experiment(client_for(uri, REQUEST_SECONDS, TRIES), store, plan.study, uri)
    stored = stored_runs(experiment)
    count = written = 0
    for run in cell_runs(plan, store):
        parent, changed = write_run(experiment, run, stored.get(run.key), None)
        changes = [changed]
        changes += [write_run(experiment, child, stored.get(child.key), parent)[1] for child in run.children]
        count, written = count + len(changes), written + sum(changes)
    if written:
        stored_runs(experiment)  # a lost answer may have left a second run of a key
    return Imported(uri, experiment.id, digest, count, written)


def main(arguments: list[str]) -> None:
    """create ROOT URI | import ROOT STUDY END, the latter with its URI, if any, on stdin."""
    store = Store.open(Path(arguments[1]))
    if arguments[0] == "create":
        with one_importer(store):
            create_database(arguments[2])
        return
    try:
        import_until(store, arguments[2], sys.stdin.read() or None, float(arguments[3]))
    except PrismError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
