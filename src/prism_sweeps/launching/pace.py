"""How fast a running job is, from its last sign of life and the end of its curve."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from prism_sweeps.launching.standing import Standing
from prism_sweeps.tracking.records import JobRecord

ROWS = 20
BYTES = 1 << 15
"""That hold so many rows, and are all that is read of a curve."""
STEP_TEXTS = ("loss", "skipped")
"""A training job that says these counts steps; before that it gathers features."""


@dataclass(frozen=True)
class Pace:
    """Of a running job. None is not known."""

    done: int
    total: int
    text: str
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


def pace_of(record: JobRecord, state: Mapping[str, Any], standing: Standing, kind: str) -> Pace:
    """Where a job that runs is, and when it will be done if it goes on like this."""
    if kind == "train" and standing.text.startswith(STEP_TEXTS):
        rows = last_rows(record.metrics, ROWS)
        if rows:
            return _by_steps(rows, standing)
    elapsed = time.time() - (state["attempt_started"] if state.get("attempt_started") else time.time())
    left = elapsed * (standing.total - standing.done) / standing.done if standing.done else None
    return Pace(standing.done, standing.total, standing.text, seconds_left=None if kind == "train" else left)


def _by_steps(rows: list[dict[str, Any]], standing: Standing) -> Pace:
    """The curve is younger than the sign of life, unless it was cut back since."""
    newest = rows[-1]
    step = max(standing.done, int(newest["step"]))
    speeds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    seconds = [row["seconds"] for row in rows if row.get("seconds")]
    return Pace(
        done=step,
        total=standing.total,
        text=standing.text,
        loss=newest.get("loss"),
        tokens_per_second=median(speeds) if speeds else None,
        seconds_left=median(seconds) * max(0, standing.total - step) if seconds else None,
    )


def last_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The last whole rows of a file of JSON lines, without reading what is before them; [] when there are none."""
    rows = []
    for line in tail(path, BYTES)[-count:]:
        try:
            row = json.loads(line)
        except ValueError:  # it is being written, or cut back, at this moment
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def tail(path: Path, size: int) -> list[str]:
    """The last lines of a file, of at most `size` bytes together; [] when there is no file."""
    try:
        with path.open("rb") as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - size)
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if start else lines
