"""How far a running job is, from the end of its curve."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from prism_sweeps.launching.pace import BYTES, last_rows, pace_of, tail
from prism_sweeps.launching.standing import Standing
from prism_sweeps.tracking.records import JobRecord


def curve(path: Path, steps: int, **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"step": step, "loss": 1.0, "seconds": 2.0, "tokens_per_second": 100.0} | more for step in range(1, steps + 1)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_only_the_end_of_a_long_curve_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    curve(path, 20_000)
    assert path.stat().st_size > 20 * BYTES
    assert sum(map(len, tail(path, BYTES))) <= BYTES
    assert [row["step"] for row in last_rows(path, 3)] == [19_998, 19_999, 20_000]


@pytest.mark.parametrize("rest", ['{"step": 4', "null\n", '{"loss": 1}\n', '"text"\n', "\x00\x00"])
def test_what_is_no_row_is_passed_over(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "metrics.jsonl"
    curve(path, 3)
    path.write_text(path.read_text() + rest)
    assert [row["step"] for row in last_rows(path, 4)] in ([1, 2, 3], [2, 3])


def test_no_curve_yet(tmp_path: Path) -> None:
    record = JobRecord(tmp_path / "job")
    pace = pace_of(record, {}, Standing("running", done=1, total=9, text="loss 2.0"), "train")
    assert (pace.done, pace.total, pace.loss, pace.seconds_left) == (1, 9, None, None)


def test_a_skipped_last_step_has_no_loss_but_a_pace(tmp_path: Path) -> None:
    record = JobRecord(tmp_path / "job")
    curve(record.metrics, 4)
    with record.metrics.open("a") as stream:
        stream.write(json.dumps({"step": 5, "loss": None, "seconds": 2.0}) + "\n")
    pace = pace_of(record, {}, Standing("running", done=4, total=10, text="skipped"), "train")
    assert (pace.done, pace.loss, pace.tokens_per_second, pace.seconds_left) == (5, None, 100.0, 10.0)


def test_image_features_are_no_steps(tmp_path: Path) -> None:
    record = JobRecord(tmp_path / "job")
    curve(record.metrics, 4)
    pace = pace_of(record, {}, Standing("running", done=300, total=900, text="image features"), "train")
    assert (pace.done, pace.total, pace.seconds_left) == (300, 900, None)


def test_an_evaluation_goes_on_as_it_did(tmp_path: Path) -> None:
    state = {"attempt_started": time.time() - 30}
    pace = pace_of(JobRecord(tmp_path), state, Standing("running", done=10, total=40, text="score 12.0"), "evaluate")
    assert pace.seconds_left == pytest.approx(90, abs=5)
