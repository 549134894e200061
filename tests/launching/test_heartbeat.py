"""Signs of life while a job is worked on."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable

import pytest
from fake_jobs import train

from prism_sweeps.config.schema import Engine
from prism_sweeps.launching import heartbeat
from prism_sweeps.launching.heartbeat import beating
from prism_sweeps.tracking.records import JobRecord, Store


@pytest.fixture
def record(store: Store) -> JobRecord:
    record = store.job("0" * 16)
    record.begin(train("0" * 16), Engine())
    return record


def wait_until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_progress_is_passed_on_and_left_with_the_next_sign(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    heard: list[tuple[int, int, str]] = []
    with beating(record, lambda *told: heard.append(told)) as report:
        first = record.last_beat()
        assert first is not None
        assert (first["done"], first["total"]) == (0, 0)
        report(3, 9, "loss 1.5")
        wait_until(lambda: (record.last_beat() or {}).get("done") == 3)
        assert (record.last_beat() or {})["text"] == "loss 1.5"
        seen = record.heartbeat.stat().st_mtime_ns
        wait_until(lambda: record.heartbeat.stat().st_mtime_ns > seen)
    assert heard == [(3, 9, "loss 1.5")]


@pytest.mark.parametrize("error", [None, RuntimeError("boom")])
def test_it_ends_with_the_work_and_so_before_the_record_does(
    error: Exception | None, record: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    with contextlib.suppress(RuntimeError), beating(record, lambda *_: None):
        if error:
            raise error
    record.finish({})
    time.sleep(0.05)
    assert not record.heartbeat.exists()
    assert record.silence() is None
    assert record.last_beat() is None


def test_a_sign_that_cannot_be_left_does_no_harm_and_is_told_once(
    record: JobRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    real, failures = record.beat, []

    def broken(*told: object, still: float = 0.0) -> None:
        failures.append(told)
        real(0, 0, "")

    with caplog.at_level(logging.WARNING), beating(record, lambda *_: None) as report:
        shutil.rmtree(record.path)
        monkeypatch.setattr(record, "beat", broken)
        wait_until(lambda: len(failures) > 3)
        report(1, 2, "")
        record.path.mkdir()
    assert len([line for line in caplog.messages if "no signs of life of this job can be left" in line]) == 1


def test_a_sign_of_life_tells_for_how_long_the_job_has_got_no_further(
    record: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    now = 0.0
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now)
    with beating(record, lambda *_: None) as report:
        now = 90.0
        wait_until(lambda: (record.last_beat() or {}).get("still") == 90)
        report(1, 2, "")
        wait_until(lambda: (record.last_beat() or {}).get("still") == 0)
