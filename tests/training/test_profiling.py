"""Traces of tiny steps, read back as the JSON that Chrome and Perfetto take."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_sweeps.config.checks import profile_window
from prism_sweeps.config.errors import StoreError
from prism_sweeps.training.profiling import profiled


def train(window: str | None, folder: Path, first: int = 1, last: int = 6, rank: int = 0, stop: int = 0) -> None:
    """Steps `first` to `last`, each with one product; `stop` is interrupted after it."""
    with profiled(profile_window(window, "profile"), folder, rank, done=first - 1) as profile:
        for step in range(first, last + 1):
            torch.mm(torch.ones(4, 4), torch.ones(4, 4))
            if step == stop:
                raise KeyboardInterrupt
            profile.step()


def events(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "rank0.json.gz", "rt", encoding="utf-8") as trace:
        found: list[dict[str, Any]] = json.load(trace)["traceEvents"]
    return found


def steps(folder: Path) -> list[str]:
    return sorted(event["name"] for event in events(folder) if event.get("cat") == "user_annotation")


def products(folder: Path) -> list[dict[str, Any]]:
    return [event for event in events(folder) if event["name"] == "aten::mm"]


@pytest.mark.parametrize(
    ("window", "first", "marks"),
    [
        ("2:3", 1, [2, 3]),
        ("1:1", 1, [1]),
        ("5:9", 1, [5, 6]),  # training is over before the window is
        ("2:4", 3, [3, 4]),  # goes on within it
        ("2:4", 2, [2, 3, 4]),
    ],
)
def test_the_trace_holds_the_steps_of_the_window_and_what_they_did(
    tmp_path: Path, window: str, first: int, marks: list[int]
) -> None:
    train(window, tmp_path / "profile", first)
    assert steps(tmp_path / "profile")[: len(marks)] == [f"step {step}" for step in marks]
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["rank0.json.gz"]
    left = len(steps(tmp_path / "profile")) - len(marks)
    assert left == (marks[-1] == 6)  # the mark of a seventh step, in which nothing happened
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events(tmp_path / "profile") if e.get("cat") == "user_annotation"]
    found = products(tmp_path / "profile")
    assert len(found) == len(marks)
    assert all(any(begin <= event["ts"] <= end for begin, end in spans) for event in found)


@pytest.mark.parametrize(
    ("window", "first", "rank"), [(None, 1, 0), ("2:3", 4, 0), ("2:3", 1, 1), ("8:9", 1, 0), ("7:9", 1, 0)]
)
def test_nothing_is_written_where_nothing_is_asked_for(
    tmp_path: Path, window: str | None, first: int, rank: int
) -> None:
    """No window, one that an earlier attempt has passed, another rank's, and ones that begin after the last step."""
    train(window, tmp_path / "profile", first, rank=rank)
    assert not (tmp_path / "profile").exists()


def test_an_interruption_leaves_the_steps_that_were_completed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("2:5", tmp_path, stop=4)
    assert steps(tmp_path)[:2] == ["step 2", "step 3"]
    with pytest.raises(KeyboardInterrupt):
        train("1:5", tmp_path / "first", stop=1)
    assert not (tmp_path / "first").exists()
    train("1:2", tmp_path / "again")  # the profiler is free again
    assert steps(tmp_path / "again") == ["step 1", "step 2"]


def test_a_trace_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "rank0.json.gz").mkdir()
    with pytest.raises(StoreError, match=r"cannot write the profile .*rank0\.json\.gz"):
        train("1:1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rank0.json.gz"]


def test_without_a_window_not_even_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from prism_sweeps.training.profiling import profiled\n"
        f"with profiled(range(0), Path({str(tmp_path)!r}), 0) as profile: profile.step()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
