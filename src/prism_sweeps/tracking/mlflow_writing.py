"""One store's runs in an MLflow experiment: found by their key, created once, each point in them once.

Whoever may create runs holds the store's importer lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from prism_sweeps.tracking.files import write_atomic
from prism_sweeps.tracking.mlflow_client import Client, Point, StoredExperiment, StoredRun
from prism_sweeps.tracking.mlflow_runs import Run
from prism_sweeps.tracking.records import Store

SQLITE = "sqlite:///"
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

    client: Client
    id: str
    owner: str


def open_experiment(client: Client, store: Store, study: str, uri: str) -> Experiment:
    """The experiment of a study: found, brought back when it was deleted, or created."""
    artifacts = (store.root / "mlartifacts" / study).as_uri() if uri.startswith(SQLITE) else None
    found = client.experiment(study) or created(client, study, artifacts)
    if found.deleted:
        client.restore_experiment(found.id)
    return Experiment(client, found.id, owner(store))


def created(client: Client, name: str, artifacts: str | None) -> StoredExperiment:
    """A new experiment, or the one that another store has created in this very moment."""
    failure = None
    try:
        client.create_experiment(name, artifacts)
    except Exception as error:  # each client has its own
        failure = error
    found = client.experiment(name)
    if found is None:
        raise failure or LookupError(f"MLflow has created experiment {name} and does not know it")
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
    for run in sorted(experiment.client.search(experiment.id, condition), key=fullness, reverse=True):
        key = run.tags.get(KEY)
        if key is None or run.tags.get(OWNER, experiment.owner) != experiment.owner:
            continue
        if key in found:
            experiment.client.delete_run(run.id)
        else:
            found[key] = run
    return found


def fullness(run: StoredRun) -> tuple[int, int, str]:
    return int(run.tags.get(SENT, 0)), len(run.tags), run.id


def write_run(experiment: Experiment, run: Run, stored: StoredRun | None, parent: str | None) -> tuple[str, bool]:
    """Creates the run, or brings it up to date when its digest differs. Returns its id and whether it was written.

    The digest goes in last: what dies half-way is done again, and MLflow stores equal points once.
    """
    digest = run.digest()
    same_place = stored is not None and stored.tags.get(PARENT) == parent
    if stored is not None and same_place and stored.tags.get(DIGEST) == digest:
        return stored.id, False
    stored = current_run(experiment, run, stored, parent)
    describe(experiment.client, run, stored, parent)
    send_curve(experiment.client, stored.id, run.curve(), int(stored.tags.get(SENT, 0)))
    experiment.client.log(stored.id, [], {}, {DIGEST: digest})
    return stored.id, True


def current_run(experiment: Experiment, run: Run, stored: StoredRun | None, parent: str | None) -> StoredRun:
    """The stored run, unless it is outdated or was not there: then a new one."""
    if stored is not None:
        if not outdated(run, stored, parent):
            return stored
        experiment.client.delete_run(stored.id)
    # With all its tags from the start: it is found by them.
    tags = run.tags | {KEY: run.key, OWNER: experiment.owner, GENERATION: run.generation, **under(parent)}
    return experiment.client.create_run(experiment.id, run.name, run.started, tags)


def outdated(run: Run, stored: StoredRun, parent: str | None) -> bool:
    """Whether MLflow holds points that the records no longer have."""
    if stored.tags.get(GENERATION) != run.generation:
        return True
    # A cell's scores are written by importers alone. A stage's curve may be ahead of what was read of it.
    return parent is None and not stored.latest <= set(run.points)


def under(parent: str | None) -> dict[str, str]:
    return {PARENT: parent} if parent else {}


def describe(client: Client, run: Run, stored: StoredRun, parent: str | None) -> None:
    """Writes everything but the curve."""
    if run.ended or stored.status != run.status:
        client.update_run(stored.id, run.status, run.ended)
    # MLflow does not let a param change; one that did belongs to a newer config of the same cell.
    params = {key: value for key, value in run.params.items() if stored.params.get(key) is None}
    tags = {key: value for key, value in (run.tags | under(parent)).items() if stored.tags.get(key) != value}
    points = [point for point in run.points if point not in stored.latest]
    while points or params or tags:
        some_params, some_tags = (dict(islice(values.items(), SMALL_BATCH)) for values in (params, tags))
        client.log(stored.id, points[:BATCH], some_params, some_tags)
        points = points[BATCH:]
        params, tags = (dict(islice(values.items(), SMALL_BATCH, None)) for values in (params, tags))


def send_curve(client: Client, run: str, points: Sequence[Point], sent: int, first: int = 0) -> int:
    """Sends the points of a curve behind its first `sent`, which is not below `first`; returns how many are there now.

    `points` are a piece of the curve, beginning with its point number `first`.
    """
    while sent < first + len(points):
        batch = points[sent - first : sent - first + BATCH]
        sent += len(batch)
        client.log(run, batch, {}, {SENT: str(sent)})
    return sent
