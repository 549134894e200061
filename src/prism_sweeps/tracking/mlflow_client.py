"""One store's runs in an MLflow experiment: found by their key, created once, each point in them once.

Whoever may create runs holds the store's importer lock. MLflow is imported here only, when there is something to write.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prism_sweeps.tracking.files import write_atomic
from prism_sweeps.tracking.mlflow_runs import Point, Run
from prism_sweeps.tracking.records import Store

if TYPE_CHECKING:
    from mlflow.entities import Experiment as StoredExperiment
    from mlflow.entities import Run as StoredRun
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"
PAGE = 1000
BATCH = 800
"""Metrics per call. MLflow takes 1000 metrics, params and tags together, and of the latter two 100 each."""
SMALL_BATCH = 100
KEY, CELL, PARENT = "prism.run", "prism.cell", "mlflow.parentRunId"
OWNER = "prism.store"
"""Tag: which store a run belongs to. Several may have the same study on one server."""
GENERATION, DIGEST = "prism.generation", "prism.digest"
SENT = "prism.points"
"""Tag: how many points of the curve are in MLflow, from its start. Written after them."""


@dataclass(frozen=True)
class Experiment:
    """An experiment, and whose runs in it are meant."""

    client: MlflowClient
    id: str
    owner: str


def client_for(uri: str) -> MlflowClient:
    """A client of MLflow at `uri`, without telemetry and words on stdout; a new SQLite file gets its schema."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def open_experiment(store: Store, study: str, uri: str) -> Experiment:
    """The experiment of a study: found, brought back when it was deleted, or created."""
    client = client_for(uri)
    artifacts = (store.root / "mlartifacts" / study).as_uri() if uri.startswith(SQLITE) else None
    found = client.get_experiment_by_name(study) or create_experiment(client, study, artifacts)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return Experiment(client, found.experiment_id, owner(store))


def create_experiment(client: MlflowClient, name: str, artifacts: str | None) -> StoredExperiment:
    """A new experiment, or the one that another store has created in this very moment."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found


def owner(store: Store) -> str:
    """This store's own word, made up when it is first needed."""
    place = store.root / "mlflow.id"
    if not place.exists():
        write_atomic(place, uuid.uuid4().hex + "\n")
    return place.read_text(encoding="utf-8").strip()


def stored_runs(experiment: Experiment, condition: str = "") -> dict[str, StoredRun]:
    """The store's runs by their key. Of several with one key all but the one that has most are deleted.

    There are several when MLflow did what it was asked to, but its answer was lost.
    """
    found: dict[str, StoredRun] = {}
    token = None
    while True:
        page = experiment.client.search_runs([experiment.id], condition, max_results=PAGE, page_token=token)
        for run in page:
            tags = run.data.tags
            if KEY not in tags or tags.get(OWNER, experiment.owner) != experiment.owner:
                continue
            best, *others = sorted([run, *filter(None, [found.get(tags[KEY])])], key=fullness, reverse=True)
            found[tags[KEY]] = best
            for other in others:
                experiment.client.delete_run(other.info.run_id)
        token = page.token
        if not token:
            return found


def fullness(run: StoredRun) -> tuple[int, int, str]:
    tags = run.data.tags
    return int(tags.get(SENT, 0)), len(tags), run.info.run_id


def write_run(experiment: Experiment, run: Run, stored: StoredRun | None, parent: str | None) -> tuple[str, bool]:
    """Creates the run, or brings it up to date when its digest differs. Returns its id and whether it was written.

    The digest goes in last: what dies half-way is done again, and MLflow stores equal points once.
    """
    digest = run.digest()
    same_place = stored is not None and stored.data.tags.get(PARENT) == parent
    if stored is not None and same_place and stored.data.tags.get(DIGEST) == digest:
        return stored.info.run_id, False
    stored = current_run(experiment, run, stored, parent)
    client, name = experiment.client, stored.info.run_id
    describe(client, run, stored, parent)
    send_curve(client, name, run.curve(), int(stored.data.tags.get(SENT, 0)))
    client.set_tag(name, DIGEST, digest)
    return name, True


def current_run(experiment: Experiment, run: Run, stored: StoredRun | None, parent: str | None) -> StoredRun:
    """The stored run, unless it is outdated or was not there: then a new one."""
    if stored is not None:
        if not outdated(run, stored, parent):
            return stored
        experiment.client.delete_run(stored.info.run_id)
    # With all its tags from the start: it is found by them.
    tags = run.tags | {KEY: run.key, OWNER: experiment.owner, GENERATION: run.generation, **under(parent)}
    return experiment.client.create_run(experiment.id, start_time=run.started, tags=tags, run_name=run.name)


def outdated(run: Run, stored: StoredRun, parent: str | None) -> bool:
    """Whether MLflow holds points that the records no longer have."""
    if stored.data.tags.get(GENERATION) != run.generation:
        return True
    # A cell's scores are written by importers alone. A stage's curve may be ahead of what was read of it.
    points = {(each.key, each.value, each.timestamp, each.step) for each in stored.data.to_proto().metrics}
    return parent is None and not points <= set(run.points)


def under(parent: str | None) -> dict[str, str]:
    return {PARENT: parent} if parent else {}


def describe(client: MlflowClient, run: Run, stored: StoredRun, parent: str | None) -> None:
    """Writes everything but the curve."""
    name = stored.info.run_id
    if run.ended:
        client.set_terminated(name, run.status, run.ended)
    elif stored.info.status != run.status:
        client.update_run(name, run.status)
    # MLflow does not let a param change; one that did belongs to a newer config of the same cell.
    params = entities("Param", {key: value for key, value in run.params.items() if key not in stored.data.params})
    tags, metrics = entities("RunTag", run.tags | under(parent)), metrics_of(run.points)
    while metrics or params or tags:
        client.log_batch(name, metrics[:BATCH], params[:SMALL_BATCH], tags[:SMALL_BATCH])
        metrics, params, tags = metrics[BATCH:], params[SMALL_BATCH:], tags[SMALL_BATCH:]


def send_curve(client: MlflowClient, name: str, points: Sequence[Point], sent: int, first: int = 0) -> int:
    """Sends the points of a curve behind its first `sent`, which is not below `first`; returns how many are there now.

    `points` are a piece of the curve, beginning with its point number `first`.
    """
    while sent < first + len(points):
        batch = points[sent - first : sent - first + BATCH]
        sent += len(batch)
        client.log_batch(name, metrics_of(batch), tags=entities("RunTag", {SENT: str(sent)}))
    return sent


def metrics_of(points: Sequence[Point]) -> list[Any]:
    """MLflow's Metric objects."""
    from mlflow.entities import Metric

    return [Metric(key, value, at, step) for key, value, at, step in points]


def entities(kind: str, values: dict[str, str]) -> list[Any]:
    """MLflow's Param or RunTag objects."""
    import mlflow.entities

    make = getattr(mlflow.entities, kind)
    return [make(key, value) for key, value in values.items()]
