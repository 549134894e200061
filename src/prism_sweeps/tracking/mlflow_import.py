"""Records -> MLflow, by one writer, as often as one likes: what is there already is found and left alone.

MLflow is imported here only, and only when there is something to write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_sweeps.config.errors import PrismError
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.files import read_json, write_atomic
from prism_sweeps.tracking.mlflow_runs import FORMAT, Run, cell_runs
from prism_sweeps.tracking.records import Store

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.entities import Run as StoredRun
    from mlflow.tracking import MlflowClient

BATCH = 1000
"""Metrics per call: the limit of MLflow's REST interface; 100 is that of params and of tags."""
SMALL_BATCH = 100
SQLITE = "sqlite:///"
KEY, DIGEST, PARENT = "prism.run", "prism.digest", "mlflow.parentRunId"


class TrackingError(PrismError):
    """MLflow could not be written; the records are whole and can be imported later."""


@dataclass(frozen=True)
class Imported:
    """What MLflow now holds of a study."""

    uri: str
    experiment_id: str
    digest: str
    runs: int
    """Runs of cells and of their stages."""
    written: int
    """Of these, how many this import created or changed."""


def tracking_uri(store: Store, uri: str | None) -> str:
    """`uri`, or the SQLite file in the store."""
    return uri or f"{SQLITE}{store.root / 'mlflow.db'}"


def import_study(store: Store, study: str, uri: str | None = None) -> Imported:
    """Brings MLflow's experiment `study` up to the records and returns what it holds.

    Idempotent: a run is found by its tag and rewritten only when its digest has changed; a study that has not changed
    since the last import is recognised without importing mlflow. Raises TrackingError.
    """
    record = store.study(study)
    plan = record.plan()
    where = tracking_uri(store, uri)
    note = record.path / "mlflow.json"
    digest = study_digest(store, plan)
    before = last_import(note)
    if before and (before.uri, before.digest) == (where, digest) and database_exists(where):
        return Imported(where, before.experiment_id, digest, before.runs, written=0)
    with one_importer(store):
        runs = cell_runs(Plan.from_plain(plan), store)
        try:
            create_database(where)
            imported = write_runs(runs, study, where, digest, store.root / "mlartifacts")
        except Exception as error:  # MLflow raises what its backends raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise TrackingError(
                f"MLflow at {where} could not be written ({reason}); nothing is lost, "
                f"`prism report {study}` tries again"
            ) from error
    write_atomic(note, json.dumps(asdict(imported)) + "\n")
    return imported


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
    client_for(f"{SQLITE}{temporary}").get_experiment("0")
    temporary.replace(place)


def create_in_background(store: Store, uri: str | None) -> subprocess.Popen[bytes] | None:
    """Starts a process that makes the database while jobs run, so that none waits for it; None when it is there."""
    where = tracking_uri(store, uri)
    if database_exists(where):
        return None
    command = [sys.executable, "-m", __name__, str(store.root), where]
    quiet = subprocess.DEVNULL
    # A session of its own: Ctrl-C is for the sweep, and this ends by itself.
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


@contextlib.contextmanager
def one_importer(store: Store) -> Iterator[None]:
    """One import into a store at a time: MLflow's schema must not be initialised twice at once."""
    descriptor = os.open(store.root / "mlflow.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_runs(runs: list[Run], study: str, uri: str, digest: str, artifacts: Path) -> Imported:
    """Creates or updates these runs in the experiment of the study."""
    client = client_for(uri)
    local = uri.startswith(SQLITE)
    experiment = experiment_of(client, study, (artifacts / study).as_uri() if local else None)
    stored = stored_runs(client, experiment.experiment_id)
    written = 0
    for run in runs:
        parent, changed = write_run(client, experiment.experiment_id, run, stored.get(run.key), None)
        written += changed
        for child in run.children:
            _, changed = write_run(client, experiment.experiment_id, child, stored.get(child.key), parent)
            written += changed
    count = len(runs) + sum(len(run.children) for run in runs)
    return Imported(uri, experiment.experiment_id, digest, count, written)


def client_for(uri: str) -> MlflowClient:
    """A client of MLflow at `uri`, with its telemetry off; a new SQLite file gets its schema."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_of(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    """The experiment of this name: found, brought back when it was deleted, or created."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found


def stored_runs(client: MlflowClient, experiment_id: str) -> dict[str, StoredRun]:
    """Runs of earlier imports by their key."""
    found: dict[str, StoredRun] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=BATCH, page_token=token)
        found |= {run.data.tags[KEY]: run for run in page if KEY in run.data.tags}
        token = page.token
        if not token:
            return found


def write_run(
    client: MlflowClient, experiment_id: str, run: Run, stored: StoredRun | None, parent: str | None
) -> tuple[str, bool]:
    """Creates the run, or updates it when its digest differs. Returns its id and whether anything was written.

    The digest goes in last: an import that dies half-way is done again, and MLflow stores equal points once.
    """
    digest = run.digest()
    if stored and stored.data.tags.get(DIGEST) == digest:
        return stored.info.run_id, False
    if stored is None:
        tags = {KEY: run.key} | ({PARENT: parent} if parent else {})
        stored = client.create_run(experiment_id, start_time=run.started, tags=tags, run_name=run.name)
    name = stored.info.run_id
    # MLflow does not let a param change; one that did belongs to a newer config of the same cell.
    params = {key: value for key, value in run.params.items() if key not in stored.data.params}
    log(client, name, run, params)
    if run.ended:
        client.set_terminated(name, run.status, run.ended)
    else:
        client.update_run(name, run.status)
    client.set_tag(name, DIGEST, digest)
    return name, True


def log(client: MlflowClient, name: str, run: Run, params: dict[str, str]) -> None:
    """Points, params and tags, in calls as large as MLflow takes."""
    from mlflow.entities import Metric

    metrics = [Metric(key, value, at, step) for key, value, at, step in run.points]
    params_left, tags_left = entities("Param", params), entities("RunTag", run.tags)
    while metrics or params_left or tags_left:
        client.log_batch(name, metrics[:BATCH], params_left[:SMALL_BATCH], tags_left[:SMALL_BATCH])
        metrics, params_left, tags_left = metrics[BATCH:], params_left[SMALL_BATCH:], tags_left[SMALL_BATCH:]


def entities(kind: str, values: dict[str, str]) -> list[Any]:
    """MLflow's Param or RunTag objects."""
    import mlflow.entities

    make = getattr(mlflow.entities, kind)
    return [make(key, value) for key, value in values.items()]


if __name__ == "__main__":
    place = Store.open(Path(sys.argv[1]))
    with one_importer(place):
        create_database(sys.argv[2])
