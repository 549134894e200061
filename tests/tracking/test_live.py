"""Curves in MLflow while jobs run: many at once, with servers that stop, fail and hang."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Proxy, Server
from small_study import (
    ALIGN,
    a_plan,
    assert_once,
    each_total,
    evaluate_all,
    followers,
    planned,
    points,
    row,
    run,
    start_training,
    stored,
    tune,
    wait_for,
)

from prism_sweeps.config.schema import Engine
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import live, mlflow_import
from prism_sweeps.tracking.mlflow_client import client_for
from prism_sweeps.tracking.mlflow_import import bring_up_to_date, import_study
from prism_sweeps.tracking.mlflow_writing import open_experiment, stored_runs
from prism_sweeps.tracking.records import Store

on_server = [pytest.mark.slow, pytest.mark.xdist_group("mlflow_server")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store")
    yield opened
    for follower in followers(opened):
        os.kill(follower, signal.SIGKILL)


def one_cell(store: Store, study: str, uri: str) -> Plan:
    """A study whose align stage is done."""
    plan = planned(store, a_plan(study, "b", uri))
    run(store, plan.jobs[ALIGN], {"loss": 0.5})
    return plan


def is_live(store: Store, plan: Plan, name: str, uri: str) -> bool:
    """Whether MLflow shows the first half of a training."""
    found = [each for key, each in stored(store, plan.study, uri).items() if key.endswith(f"/{name}")]
    return bool(found) and all(points(uri, each) for each in found)


def finish(store: Store, training: subprocess.Popen[bytes], name: str) -> None:
    """Lets a training do its second half, and sees it end well."""
    (store.root / "go").touch()
    assert training.wait() == 0
    assert store.job(name).state()["status"] == "done"


class TestWithoutServer:
    @pytest.mark.parametrize("uri", [None, "sqlite:///somewhere.db", "file:///somewhere"])
    def test_only_a_server_is_written_live(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, uri: str | None
    ) -> None:
        plan = planned(store, a_plan(uri=uri))
        monkeypatch.setattr(live.subprocess, "Popen", None)
        live.start(store, tune("b"))
        assert live.live_studies(store, tune("b")) == []
        plan.tracking.mlflow, plan.tracking.uri = False, "http://127.0.0.1:1"
        planned(store, plan)
        assert live.live_studies(store, tune("b")) == []
        plan.tracking.mlflow = True
        planned(store, plan)
        planned(store, a_plan("another/one", "de", "https://somewhere:1"))
        assert live.live_studies(store, tune("b")) == ["nano/two"]
        assert live.live_studies(store, ALIGN) == ["another/one", "nano/two"]

    def test_a_job_does_not_care_whether_it_can_be_followed(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def no_memory(*_: object, **__: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        plan = planned(store, a_plan(uri="http://127.0.0.1:1"))
        store.job(ALIGN).begin(plan.jobs[ALIGN], Engine())
        monkeypatch.setattr(live.subprocess, "Popen", no_memory)
        live.start(store, ALIGN)
        assert "Cannot allocate memory" in caplog.text
        (store.study("nano/two").path / "plan.json").write_text(f'{{"{ALIGN}')
        live.start(store, ALIGN)
        assert "not valid JSON" in caplog.text

    def test_trainings_are_followed_and_evaluations_are_not(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from prism_sweeps.launching import run_job

        plan = planned(store, a_plan(letters="b"))
        started = []

        def work(spec: Any, record: Any, *_: object) -> dict[str, Any]:
            with record.writing_weights() as folder:
                (folder / "projector.safetensors").write_bytes(b"")
            return {"loss": 1.0, "score": 1.0}

        def begun(_: Store, name: str) -> None:
            started.append((name, store.job(name).state()["status"]))

        monkeypatch.setattr(run_job, "work_to_do", lambda job, world: work)
        monkeypatch.setattr(run_job, "remember_speed", lambda *_: None)
        monkeypatch.setattr(run_job.live, "start", begun)
        for job in plan.jobs.values():
            run_job.run_job(job, store, Engine(), lambda *_: None, lambda: False)
        assert started == [(ALIGN, "running"), (tune("b"), "running")]

    def test_what_waits_for_a_server_is_read_in_pieces(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """And a last row that is not whole yet is left for later."""
        monkeypatch.setattr(live, "BYTES", 300)
        record = store.job(ALIGN)
        record.begin(a_plan().jobs[ALIGN], Engine())
        tail = live.Tail(record, live.Curve(0), 0)
        assert tail.read() == []
        for step in range(1, 21):
            record.append_metrics(row(step))
        whole = record.metrics.read_bytes()
        record.metrics.write_bytes(whole[:-20])
        found = []
        readings = 0
        while points := tail.read():
            found += points
            readings += 1
        assert readings > 3
        record.metrics.write_bytes(whole)
        found += tail.read() or []
        assert found == live.Curve(0).points(record.read_metrics())
        record.truncate_metrics(3)
        assert tail.read() is None

    def test_a_server_that_does_not_answer_is_left_alone_for_longer_and_longer(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        now = [1000.0]
        asked = []

        def refused(*_: object) -> None:
            asked.append(now[0])
            raise ConnectionRefusedError("nobody there")

        monkeypatch.setattr(live, "open_experiment", refused)
        monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
        planned(store, a_plan(uri="http://127.0.0.1:1"))
        feed = live.Feed(store, "nano/two", ALIGN)
        while now[0] < 1300:
            feed.turn(over=False)
            now[0] += 1.0
        waits = [after - before for before, after in itertools.pairwise(asked)]
        assert waits[0] <= live.SECONDS + 1
        assert max(waits) <= live.LONGEST_WAIT + 1
        assert min(waits[5:]) >= live.LONGEST_WAIT / 2
        assert caplog.text.count("nobody there") == 1


class TestWithServer:
    pytestmark = on_server

    def test_eight_jobs_at_once_each_point_once(
        self, store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        letters = "bcdefghi"
        plan = planned(store, a_plan("many/cells", letters, server.uri))
        beside = planned(store, a_plan("many/beside", "bc", server.uri))
        run(store, plan.jobs[ALIGN], {"loss": 0.5})
        trainings = [start_training(store, plan, tune(letter)) for letter in letters]
        for letter, training in zip(letters, trainings, strict=True):
            name = tune(letter)
            wait_for(lambda name=name: is_live(store, plan, name, server.uri), f"{name} is not live", training)
        for letter in "bc":
            name = tune(letter)
            wait_for(lambda name=name: is_live(store, beside, name, server.uri), f"{name} is not live beside")
        assert {store.job(tune(letter)).state()["status"] for letter in letters} == {"running"}
        (store.root / "go").touch()
        assert [training.wait() for training in trainings] == [0] * len(letters)
        wait_for(lambda: not followers(store), "followers do not end")
        for study in (plan, beside):
            assert_once(store, study, server.uri, fingerprints=[tune(letter) for letter in letters])
        evaluate_all(store, plan)
        for study in (plan, beside):
            done = bring_up_to_date(store, study, 300)
            assert done is not None
            assert done.runs == 3 * len(study.cells)
            assert_once(store, study, server.uri)
            assert {each.info.status for each in stored(store, study.study, server.uri).values()} == {"FINISHED"}
            totals = dict(each_total(store, study, server.uri))
            assert totals == {f"{c.id}/{name}": 0.5 if name == ALIGN else 0.25 for c in study.cells for name in c.train}
        # Nothing has changed, so nobody is asked.
        monkeypatch.setattr(mlflow_import.subprocess, "run", None)
        again = bring_up_to_date(store, plan, 0)
        assert again is not None
        assert again.written == 0

    @pytest.mark.parametrize("mode", ["500", "429", "hang", "lost"])
    def test_a_failing_server_is_not_felt_and_loses_nothing(
        self, store: Store, server: Server, between: Proxy, mode: str
    ) -> None:
        name = tune("b")
        plan = one_cell(store, f"failing/{mode}", between.uri)
        between.mode = mode
        training = start_training(store, plan, name)
        wait_for(lambda: between.refused > 0, "the server was not asked", training)
        finish(store, training, name)
        between.mode = "pass"
        wait_for(lambda: not followers(store), "followers do not end")
        assert bring_up_to_date(store, plan, 300) is not None
        assert_once(store, plan, server.uri)

    @pytest.mark.parametrize("mode", ["500", "hang", "lost"])
    def test_a_server_that_fails_in_the_middle(self, store: Store, server: Server, between: Proxy, mode: str) -> None:
        name = tune("b")
        plan = one_cell(store, f"middle/{mode}", between.uri)
        training = start_training(store, plan, name)
        wait_for(lambda: is_live(store, plan, name, server.uri), "not live", training)
        before = between.refused
        between.mode = mode
        finish(store, training, name)
        wait_for(lambda: between.refused > before, "the server was not asked", training)
        assert_once(store, plan, server.uri, whole=False, fingerprints=[name])
        between.mode = "pass"
        wait_for(lambda: not followers(store), "followers do not end")
        assert_once(store, plan, server.uri, fingerprints=[name])
        assert bring_up_to_date(store, plan, 300) is not None
        assert_once(store, plan, server.uri)

    def test_a_follower_that_is_killed_leaves_the_rest_to_the_import(self, store: Store, server: Server) -> None:
        name = tune("b")
        plan = one_cell(store, "killed/follower", server.uri)
        training = start_training(store, plan, name)
        wait_for(lambda: is_live(store, plan, name, server.uri), "not live", training)
        (follower,) = followers(store)
        os.kill(follower, signal.SIGKILL)
        finish(store, training, name)
        assert bring_up_to_date(store, plan, 300) is not None
        assert_once(store, plan, server.uri)

    def test_a_follower_ends_with_a_job_that_was_killed(self, store: Store, server: Server) -> None:
        name = tune("b")
        plan = one_cell(store, "killed/job", server.uri)
        training = start_training(store, plan, name)
        wait_for(lambda: is_live(store, plan, name, server.uri), "not live", training)
        training.kill()
        training.wait()
        wait_for(lambda: not followers(store), "followers do not end")
        assert_once(store, plan, server.uri, fingerprints=[name])
        (store.root / "go").touch()
        record = store.job(name)
        with record.claim():
            record.begin(plan.jobs[name], Engine())
            record.truncate_metrics(0)
            record.interrupt()
        assert start_training(store, plan, name).wait() == 0
        wait_for(lambda: not followers(store), "followers do not end")
        assert_once(store, plan, server.uri, fingerprints=[name])
        assert stored(store, plan.study, server.uri)[f"{'b' * 8}/{name}"].data.tags["prism.attempts"] == "3"

    def test_an_import_has_its_time_and_no_more(
        self, store: Store, server: Server, between: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        plan = one_cell(store, "patience/one", between.uri)
        between.mode = "hang"
        assert bring_up_to_date(store, plan, 8) is None
        assert "nothing is lost" in caplog.text
        assert between.uri in caplog.text
        between.mode = "500"
        caplog.clear()
        assert bring_up_to_date(store, plan, 20) is None
        assert "500" in caplog.text
        between.mode = "pass"
        done = bring_up_to_date(store, plan, 300)
        assert done is not None
        assert done.written == 2
        assert_once(store, plan, server.uri, fingerprints=[ALIGN])
        plan.tracking.mlflow = False
        assert bring_up_to_date(store, plan, 300) is None

    def test_an_answer_that_got_lost_makes_no_second_run(self, store: Store, server: Server, between: Proxy) -> None:
        """The run is there, the importer does not know, and creates another one; the next look finds both."""
        plan = one_cell(store, "lost/answer", server.uri)
        import_study(store, plan.study, server.uri)
        experiment = open_experiment(client_for(server.uri, 60, 1), store, plan.study, server.uri)
        first = stored_runs(experiment)[f"{'b' * 8}/{ALIGN}"]
        twin = {key: value for key, value in first.tags.items() if key not in ("prism.points", "prism.digest")}
        experiment.client.create_run(experiment.id, first.tags["mlflow.runName"], 0, twin)
        assert stored_runs(experiment)[f"{'b' * 8}/{ALIGN}"].id == first.id
        run(store, plan.jobs[tune("b")], {"loss": 0.25})
        import_study(store, plan.study, server.uri)
        assert_once(store, plan, server.uri)

    def test_two_stores_with_one_study_keep_their_runs_apart(self, tmp_path: Path, server: Server) -> None:
        from mlflow.tracking import MlflowClient

        stores = [Store.open(tmp_path / name) for name in ("one", "two")]
        for each in stores:
            plan = one_cell(each, "shared/name", server.uri)
            import_study(each, plan.study, server.uri)
        for each in stores:
            run(each, plan.jobs[tune("b")], {"loss": 0.25})
            import_study(each, plan.study, server.uri)
        client = MlflowClient(server.uri)
        runs = client.search_runs([client.get_experiment_by_name("shared/name").experiment_id])
        owners = {each.data.tags["prism.store"] for each in runs}
        assert (len(runs), len(owners)) == (6, 2)


class TestServersThatStop:
    pytestmark = on_server

    def test_a_server_that_stands_still(self, store: Store, server: Server) -> None:
        name = tune("b")
        plan = one_cell(store, "stopped/still", server.uri)
        training = start_training(store, plan, name)
        wait_for(lambda: is_live(store, plan, name, server.uri), "not live", training)
        server.signal(signal.SIGSTOP)
        try:
            finish(store, training, name)
        finally:
            server.signal(signal.SIGCONT)
        wait_for(lambda: not followers(store), "followers do not end")
        assert bring_up_to_date(store, plan, 300) is not None
        assert_once(store, plan, server.uri)

    def test_a_server_that_is_killed_and_started_again(self, store: Store, server: Server) -> None:
        name = tune("b")
        plan = one_cell(store, "stopped/killed", server.uri)
        training = start_training(store, plan, name)
        wait_for(lambda: is_live(store, plan, name, server.uri), "not live", training)
        server.stop()
        finish(store, training, name)
        server.start()
        wait_for(lambda: not followers(store), "followers do not end")
        assert bring_up_to_date(store, plan, 300) is not None
        assert_once(store, plan, server.uri)
