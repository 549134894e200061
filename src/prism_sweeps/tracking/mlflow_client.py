"""MLflow as runs are written to it: one set of calls, over HTTP where a server is, through MLflow's library elsewhere.

Importing the library takes three seconds of a processor and 180 MB, which beside every training job is too much; its
REST interface (https://mlflow.org/docs/latest/api_reference/rest-api.html) is stable and small.
"""

from __future__ import annotations

import base64
import configparser
import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prism_sweeps.config.errors import PrismError

PAGE = 1000
API = "/api/2.0/mlflow/"
AGAIN = (429, 500, 502, 503, 504)
"""Answers after which trying again may help."""
LIBRARY_ONLY = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
"""Settings of ways to log in that the library alone knows."""

Point = tuple[str, float, int, int]
"""Metric, value, timestamp in milliseconds, step."""


class TrackingError(PrismError):
    """MLflow could not be written; the records are whole and can be imported later."""


@dataclass(frozen=True)
class StoredRun:
    """A run as MLflow has it."""

    id: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    latest: frozenset[Point]
    """The last point of each metric."""


@dataclass(frozen=True)
class StoredExperiment:
    id: str
    deleted: bool


class Client(Protocol):
    """What is asked of MLflow. Everything raises when it cannot be done."""

    def experiment(self, name: str) -> StoredExperiment | None: ...

    def create_experiment(self, name: str, artifacts: str | None) -> None: ...

    def restore_experiment(self, experiment: str) -> None: ...

    def search(self, experiment: str, condition: str) -> list[StoredRun]:
        """Runs that are not deleted."""

    def create_run(self, experiment: str, name: str, started: int, tags: Mapping[str, str]) -> StoredRun: ...

    def delete_run(self, run: str) -> None: ...

    def update_run(self, run: str, status: str, ended: int | None) -> None: ...

    def log(self, run: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """At most 1000 of all together, and 100 params, and 100 tags. Tags come last."""


def client_for(uri: str, timeout: float, tries: int) -> Client:
    """A client of MLflow at `uri`; a server is given `timeout` seconds for each of so many tries of a call."""
    if is_server(uri) and not any(map(os.environ.get, LIBRARY_ONLY)):
        return ServerClient(uri, timeout, tries)
    return LibraryClient(uri, timeout, tries)


def is_server(uri: str | None) -> bool:
    """Whether many may write there at once."""
    return uri is not None and uri.startswith(("http://", "https://"))


def without_password(uri: str) -> str:
    """`uri` as it may be shown."""
    address = urllib.parse.urlsplit(uri)
    if "@" not in address.netloc:
        return uri
    return urllib.parse.urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))


class ServerClient:
    """MLflow's REST interface."""

    def __init__(self, uri: str, timeout: float, tries: int) -> None:
        address = urllib.parse.urlsplit(uri)
        self.uri = without_password(uri).rstrip("/")
        self.headers = {"Content-Type": "application/json", **authorization(address)}
        self.timeout, self.tries = timeout, tries
        self.tls = trust() if address.scheme == "https" else None

    def call(self, path: str, **content: Any) -> dict[str, Any]:
        """What the server answers. Raises TrackingError, with its status, or OSError."""
        for tried in range(1, self.tries + 1):
            try:
                return self.asked(path, content)
            except urllib.error.HTTPError as error:
                if error.code not in AGAIN or tried == self.tries:
                    raise refusal(error) from error
            except OSError:
                if tried == self.tries:
                    raise
            time.sleep(2.0 ** (tried - 1))
        raise AssertionError("at least one try")

    def asked(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in content.items() if value is not None}
        request = urllib.request.Request(self.uri + API + path, headers=self.headers)
        if path.startswith("experiments/get"):
            request.full_url += "?" + urllib.parse.urlencode(given)
        else:
            request.data = json.dumps(given).encode()
        with urllib.request.urlopen(request, timeout=self.timeout, context=self.tls) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def experiment(self, name: str) -> StoredExperiment | None:
        try:
            found = self.call("experiments/get-by-name", experiment_name=name)["experiment"]
        except TrackingError as error:
            if "RESOURCE_DOES_NOT_EXIST" in str(error):
                return None
            raise
        return StoredExperiment(found["experiment_id"], found["lifecycle_stage"] == "deleted")

    def create_experiment(self, name: str, artifacts: str | None) -> None:
        self.call("experiments/create", name=name, artifact_location=artifacts)

    def restore_experiment(self, experiment: str) -> None:
        self.call("experiments/restore", experiment_id=experiment)

    def search(self, experiment: str, condition: str) -> list[StoredRun]:
        found: list[StoredRun] = []
        token = None
        while True:
            page = self.call(
                "runs/search", experiment_ids=[experiment], filter=condition, max_results=PAGE, page_token=token
            )
            found += [from_answer(each) for each in page.get("runs", [])]
            token = page.get("next_page_token")
            if not token:
                return found

    def create_run(self, experiment: str, name: str, started: int, tags: Mapping[str, str]) -> StoredRun:
        made = self.call(
            "runs/create", experiment_id=experiment, run_name=name, start_time=started, tags=key_values(tags)
        )
        return from_answer(made["run"])

    def delete_run(self, run: str) -> None:
        self.call("runs/delete", run_id=run)

    def update_run(self, run: str, status: str, ended: int | None) -> None:
        self.call("runs/update", run_id=run, status=status, end_time=ended)

    def log(self, run: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        metrics = [dict(zip(("key", "value", "timestamp", "step"), point, strict=True)) for point in points]
        self.call("runs/log-batch", run_id=run, metrics=metrics, params=key_values(params), tags=key_values(tags))


def key_values(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def from_answer(run: Mapping[str, Any]) -> StoredRun:
    info, data = run["info"], run.get("data", {})
    params, tags = ({each["key"]: each.get("value", "") for each in data.get(kind, [])} for kind in ("params", "tags"))
    latest = frozenset(
        (each["key"], float(each["value"]), int(each["timestamp"]), int(each.get("step", 0)))
        for each in data.get("metrics", [])
    )
    return StoredRun(info["run_id"], info["status"], params, tags, latest)


def refusal(error: urllib.error.HTTPError) -> TrackingError:
    """What a server said when it did not do what it was asked to."""
    text = error.read(2000).decode(errors="replace")
    try:
        answer = json.loads(text)
        text = f"{answer['error_code']}: {answer['message']}"
    except (ValueError, KeyError, TypeError):
        text = " ".join(text.split())[:200]
    return TrackingError(f"the server answered {error.code} {error.reason}, {text}")


def authorization(address: urllib.parse.SplitResult) -> dict[str, str]:
    """The header that logs in, from where MLflow looks: address, environment, ~/.mlflow/credentials."""
    kept = configparser.ConfigParser()
    kept.read(Path("~/.mlflow/credentials").expanduser())
    file = dict(kept["mlflow"]) if "mlflow" in kept else {}
    given = [urllib.parse.unquote(each or "") for each in (address.username, address.password)]
    user = given[0] or os.environ.get("MLFLOW_TRACKING_USERNAME") or file.get("mlflow_tracking_username")
    password = given[1] or os.environ.get("MLFLOW_TRACKING_PASSWORD") or file.get("mlflow_tracking_password")
    if user and password:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def trust() -> ssl.SSLContext:
    """Whose certificates count: MLflow's two settings, or the system's."""
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class LibraryClient:
    """MLflow's own client, for SQLite and whatever else has its place in a URI; a new SQLite file gets its schema."""

    def __init__(self, uri: str, timeout: float, tries: int) -> None:
        # Telemetry, and words on stdout.
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(round(timeout))
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(tries - 1)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)

    def experiment(self, name: str) -> StoredExperiment | None:
        found = self.client.get_experiment_by_name(name)
        return found and StoredExperiment(found.experiment_id, found.lifecycle_stage == "deleted")

    def create_experiment(self, name: str, artifacts: str | None) -> None:
        self.client.create_experiment(name, artifact_location=artifacts)

    def restore_experiment(self, experiment: str) -> None:
        self.client.restore_experiment(experiment)

    def search(self, experiment: str, condition: str) -> list[StoredRun]:
        found: list[StoredRun] = []
        token = None
        while True:
            page = self.client.search_runs([experiment], condition, max_results=PAGE, page_token=token)
            found += [from_library(each) for each in page]
            token = page.token
            if not token:
                return found

    def create_run(self, experiment: str, name: str, started: int, tags: Mapping[str, str]) -> StoredRun:
        return from_library(self.client.create_run(experiment, start_time=started, tags=dict(tags), run_name=name))

    def delete_run(self, run: str) -> None:
        self.client.delete_run(run)

    def update_run(self, run: str, status: str, ended: int | None) -> None:
        if ended:
            self.client.set_terminated(run, status, ended)
        else:
            self.client.update_run(run, status)

    def log(self, run: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run,
            [Metric(key, value, at, step) for key, value, at, step in points],
            [Param(key, value) for key, value in params.items()],
            [RunTag(key, value) for key, value in tags.items()],
        )


def from_library(run: Any) -> StoredRun:
    latest = frozenset((each.key, each.value, each.timestamp, each.step) for each in run.data.to_proto().metrics)
    return StoredRun(run.info.run_id, run.info.status, run.data.params, run.data.tags, latest)
