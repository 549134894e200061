"""Both ways to speak to MLflow say and hear the same; logging in; answers that are none."""

from __future__ import annotations

import json
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server

from prism_sweeps.tracking import mlflow_client
from prism_sweeps.tracking.mlflow_client import (
    LibraryClient,
    ServerClient,
    TrackingError,
    authorization,
    client_for,
    trust,
    without_password,
)


class Recorder(HTTPServer):
    """Answers what it is told to, in turn, and keeps what it was asked."""

    def __init__(self, answers: list[tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Recording)
        self.answers = answers
        self.asked: list[tuple[str, Any, str | None]] = []


class Recording(BaseHTTPRequestHandler):
    server: Recorder

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, json.loads(body or b"null"), self.headers.get("Authorization")))
        status, text = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setattr(mlflow_client.time, "sleep", lambda seconds: None)
    with Recorder([]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_client_logs_in_below_a_prefix_and_takes_the_password_off_the_address(recorder: Recorder) -> None:
    recorder.answers = [(200, '{"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}'), (200, "{}")]
    client = client_for(f"http://me:p%40ss@127.0.0.1:{recorder.server_port}/lab/", 5, 1)
    found = client.experiment("a study/ü")
    assert found is not None
    assert (found.id, found.deleted) == ("7", True)
    client.restore_experiment("7")
    get, post = recorder.asked
    assert get[0] == "/lab/api/2.0/mlflow/experiments/get-by-name?experiment_name=a+study%2F%C3%BC"
    assert get[2] == post[2] == "Basic bWU6cEBzcw=="
    assert post[:2] == ("/lab/api/2.0/mlflow/experiments/restore", {"experiment_id": "7"})
    assert without_password("https://me:pw@host:5000/lab") == "https://host:5000/lab"
    assert without_password("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"


def test_names_and_passwords_are_looked_for_where_mlflow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    address = urllib.parse.urlsplit("http://somewhere:5000")
    assert authorization(address) == {}
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = filed\nmlflow_tracking_password = f%%x\n"
    )
    assert authorization(address) == {"Authorization": "Basic ZmlsZWQ6ZiV4"}
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    assert authorization(address) == {"Authorization": "Basic bWU6cHc="}
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    (tmp_path / ".mlflow" / "credentials").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    assert authorization(address) == {"Authorization": "Bearer abc"}


def test_certificates_are_checked_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_INSECURE_TLS", raising=False)
    assert trust().verify_mode == ssl.CERT_REQUIRED
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert trust().verify_mode == ssl.CERT_NONE


def test_logins_that_only_the_library_knows_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(mlflow_client, "LibraryClient", lambda *given: made.append(given))
    client_for("http://somewhere", 5, 1)
    assert made == []
    client_for("sqlite:///somewhere", 5, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    client_for("http://somewhere", 5, 1)
    assert [given[0] for given in made] == ["sqlite:///somewhere", "http://somewhere"]


def test_what_may_pass_is_tried_again_and_what_will_not_is_told(recorder: Recorder) -> None:
    client = ServerClient(f"http://127.0.0.1:{recorder.server_port}", 5, 3)
    recorder.answers = [(500, "no"), (429, "no"), (200, "{}")]
    client.delete_run("r")
    assert len(recorder.asked) == 3
    recorder.answers = [(503, "busy " * 100)] * 3
    with pytest.raises(TrackingError, match=r"503.*busy") as told:
        client.delete_run("r")
    assert len(str(told.value)) < 300
    refused = json.dumps({"error_code": "INVALID_STATE", "message": "run r must be in active state"})
    recorder.answers = [(400, refused), (200, "{}")]
    with pytest.raises(TrackingError, match=r"400.*INVALID_STATE: run r must be in active state"):
        client.delete_run("r")
    recorder.answers = [(404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such"}))]
    assert client.experiment("nowhere") is None
    recorder.answers = [(404, "<html>nginx</html>")]
    with pytest.raises(TrackingError, match=r"404.*nginx"):
        client.experiment("nowhere")


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow_server")
def test_both_clients_say_and_hear_the_same(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "PAGE", 2)
    clients = [ServerClient(server.uri, 60, 1), LibraryClient(server.uri, 60, 1)]
    heard = []
    for number, client in enumerate(clients):
        name = f"clients/{number}"
        assert client.experiment(name) is None
        client.create_experiment(name, None)
        with pytest.raises(Exception, match=r"RESOURCE_ALREADY_EXISTS|already exists"):
            client.create_experiment(name, None)
        found = client.experiment(name)
        assert found is not None
        assert not found.deleted
        runs = [client.create_run(found.id, f"run {i}", 1000 + i, {"which": str(i), "ü": "ß"}) for i in range(5)]
        points = [("loss", 0.1 + 1e-17, 2**41, 3), ("loss", 1 / 3, 2**41 + 1, 4), ("a b/c", -1e300, 5, 0)]
        for _ in range(2):
            client.log(runs[0].id, points, {"p": "1", "empty": ""}, {"t": "x"})
        client.update_run(runs[0].id, "FINISHED", 2000)
        client.update_run(runs[1].id, "FAILED", None)
        client.delete_run(runs[4].id)
        with pytest.raises(Exception, match="active"):
            client.log(runs[4].id, points, {}, {})
        for other in clients:
            listed = sorted(other.search(found.id, ""), key=lambda run: run.tags["which"])
            assert [run.id for run in listed] == [run.id for run in runs[:4]]
            assert [run.status for run in listed] == ["FINISHED", "FAILED", "RUNNING", "RUNNING"]
            assert listed[0].latest == {points[1], points[2]}
            assert [run.tags["which"] for run in other.search(found.id, "tags.`which` = '2'")] == ["2"]
            heard.append([(run.status, run.params, run.tags, run.latest) for run in listed])
    assert heard[0] == heard[1] == heard[2] == heard[3]
