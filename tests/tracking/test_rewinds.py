"""Work that is done again: MLflow holds what the records hold, whenever it was imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_study import ALIGN, a_plan, assert_once, curve_of, evaluate_all, planned, points, row, run, score, stored

from prism_sweeps.config.schema import Engine
from prism_sweeps.tracking import records
from prism_sweeps.tracking.live import Feed
from prism_sweeps.tracking.mlflow_import import import_study, tracking_uri
from prism_sweeps.tracking.mlflow_runs import Curve, curve
from prism_sweeps.tracking.records import JobRecord, Store

Look = Callable[[], None]


def nothing() -> None:
    """Nobody looks at this moment."""


def test_rewinds_are_counted_when_rows_are_dropped_or_may_have_been_lost(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    job, record = a_plan().jobs[ALIGN], store.job(ALIGN)

    def rewinds() -> int:
        return int(record.state()["rewinds"])

    with record.claim():
        record.begin(job, Engine())
        record.truncate_metrics(0)
        assert rewinds() == 0
        for step in (1, 2, 3):
            record.append_metrics(row(step))
        record.interrupt()
        record.begin(job, Engine())
        record.truncate_metrics(3)
        assert rewinds() == 0
        record.truncate_metrics(2)
        assert rewinds() == 2
    # Its process has died: nobody knows which of its rows have reached the disk.
    with record.claim():
        record.begin(job, Engine())
        assert rewinds() == 3
        record.truncate_metrics(2)
        assert rewinds() == 4
        record.truncate_metrics(2)
        assert rewinds() == 4


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_rewind_that_is_cut_short_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Cut after no, one, or two of its three writes: rows are added only after all of them, under a new count."""
    record = Store.open(tmp_path).job(ALIGN)
    record.begin(a_plan().jobs[ALIGN], Engine())
    for step in (1, 2, 3):
        record.append_metrics(row(step))
    left = [survived]
    write = records.write_atomic

    def dying(path: Path, text: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(path, text)

    monkeypatch.setattr(records, "write_atomic", dying)
    with pytest.raises(KeyboardInterrupt):
        record.truncate_metrics(1)
    monkeypatch.undo()
    assert record.state()["rewinds"] == (0 if survived == 0 else 1)
    assert len(record.read_metrics()) == (1 if survived == 2 else 3)
    record.truncate_metrics(1)
    assert record.state()["rewinds"] == 2
    assert [each["step"] for each in record.read_metrics()] == [1]


def test_a_curve_is_read_with_the_count_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Store.open(tmp_path).job(ALIGN)
    with record.claim():
        record.begin(a_plan().jobs[ALIGN], Engine())
        for step in (1, 2, 3):
            record.append_metrics(row(step))
        old = record.state()
        read = JobRecord.read_metrics
        begun = [False]

        def meanwhile(self: JobRecord) -> list[dict]:
            rows = read(self)
            if not begun[0]:
                begun[0] = True
                record.truncate_metrics(1)
                record.append_metrics(row(2))
            return rows

        monkeypatch.setattr(JobRecord, "read_metrics", meanwhile)
        state, rows = record.curve()
        assert (state["rewinds"], [each["step"] for each in rows]) == (2, [1, 2])
        assert curve(record, old) == []
        assert curve(record, state) == Curve(round(1000 * state["started"])).points(rows)


def interrupted_training(store: Store, looks: dict[str, Look]) -> None:
    """Killed once, beyond its checkpoint; what `looks` has is called at each of the moments."""

    def moment(name: str) -> None:
        looks.get(name, nothing)()

    job, record = a_plan().jobs[ALIGN], store.job(ALIGN)
    with record.claim():
        record.begin(job, Engine())
        for step in range(1, 11):
            record.append_metrics(row(step))
        moment("running")
        record.append_metrics(row(11))
    moment("killed")
    with record.claim():
        record.begin(job, Engine())
        moment("begun again")
        record.truncate_metrics(6)
        moment("cut back")
        for step in (7, 8):
            record.append_metrics(row(step))
        moment("doing it again")
        for step in range(9, 16):
            record.append_metrics(row(step))
        moment("beyond")
        record.finish({"loss": 0.25})
    moment("done")


MOMENTS = ("running", "killed", "begun again", "cut back", "doing it again", "beyond", "done")


@pytest.mark.slow
def test_an_import_at_any_moment_leaves_each_point_once(tmp_path: Path) -> None:
    """By each moment alone, by each two that follow, and by all of them; into one database, as studies of their own."""
    choices = [{each} for each in MOMENTS[:-1]]
    choices += [{MOMENTS[i], MOMENTS[i + 1]} for i in range(len(MOMENTS) - 2)]
    choices.append(set(MOMENTS))
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for number, chosen in enumerate(choices):
        store = Store.open(tmp_path / str(number))
        plan = planned(store, a_plan(f"study-{number}", "b"))

        def look(store: Store = store, study: str = plan.study) -> None:
            import_study(store, study, database)

        interrupted_training(store, dict.fromkeys(chosen, look))
        look()
        assert_once(store, plan, database, fingerprints=[ALIGN])
        assert len(curve_of(store.job(ALIGN))) == 2 * 15


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow_server")
def test_live_and_imports_mixed_leave_each_point_once(tmp_path: Path, server: object) -> None:
    uri = server.uri  # type: ignore[attr-defined]
    for number, imported in enumerate(((), MOMENTS[::2], MOMENTS[1::2], MOMENTS)):
        store = Store.open(tmp_path / str(number))
        plan = planned(store, a_plan(f"mixed-{number}", "b", uri))
        feed = Feed(store, plan.study, ALIGN)

        def live(feed: Feed = feed) -> None:
            feed.turn(over=False)
            # The first turn after a rewind finds that out.
            feed.turn(over=False)
            assert feed.failures == 0, feed.said

        def both(live: Look = live, store: Store = store, study: str = plan.study) -> None:
            live()
            import_study(store, study, uri)
            live()

        interrupted_training(store, {each: both if each in imported else live for each in MOMENTS})
        assert_once(store, plan, uri, fingerprints=[ALIGN])
        import_study(store, plan.study, uri)
        assert_once(store, plan, uri, fingerprints=[ALIGN])
        # A feed that began with the first attempt knows of the run that an import has put in the place of its own.
        feed.turn(over=True)
        assert feed.complete, feed.said
        assert_once(store, plan, uri, fingerprints=[ALIGN])
        assert stored(store, plan.study, uri)[f"{'b' * 8}/{ALIGN}"].info.status == "FINISHED"


@pytest.mark.slow
def test_scores_and_totals_are_there_once_whatever_happens_to_their_jobs(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    plan = planned(store, a_plan(letters="b"))
    uri = tracking_uri(store, None)
    second = "b1".ljust(16, "0")
    record = store.job(second)

    def cell() -> tuple[str, dict[str, float], dict[str, str]]:
        import_study(store, plan.study)
        found = stored(store, plan.study, uri)
        keys = [point[0] for point in points(uri, found["b" * 8])]
        assert len(keys) == len(set(keys))
        parents = {key: each.data.tags["mlflow.parentRunId"] for key, each in found.items() if "/" in key}
        assert set(parents.values()) <= {found["b" * 8].info.run_id}
        return found["b" * 8].info.run_id, found["b" * 8].data.metrics, parents

    assert import_study(store, plan.study).runs == 0
    for job in plan.jobs.values():
        if job.fingerprint != second:
            run(store, job, {"loss": 0.25} if job.kind == "train" else score(62.5))
    first, metrics, _ = cell()
    assert "mean/real" not in metrics
    with record.claim():
        record.begin(plan.jobs[second], Engine())
        record.fail("no such luck")
    cell()
    run(store, plan.jobs[second], score(37.5))
    same, metrics, _ = cell()
    assert (same, metrics["mean/real"]) == (first, 50.0)
    # Somebody removes the record and has it evaluated anew.
    for file in record.path.iterdir():
        file.unlink()
    run(store, plan.jobs[second], score(42.5))
    other, metrics, parents = cell()
    assert (other != first, metrics["mean/real"]) == (True, 52.5)
    assert len(parents) == 2
    evaluate_all(store, plan)
    assert cell()[0] == other
