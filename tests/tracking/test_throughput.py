"""The throughput table under many writers, kills, and versions before and after this one."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from prism_sweeps.config.errors import StoreError
from prism_sweeps.planning.measured import Evaluated, Measured, Settings
from prism_sweeps.tracking import throughput

SETTINGS = Settings("bf16", 4, "packed", "selective", True, "full")
ROW = Measured(
    model="0123456789abcdef", stage="finetune", title="clip 336 vicuna", device="NVIDIA H100 80GB HBM3",
    device_type="cuda", ranks=8, settings=SETTINGS, tokens_per_second=1.5e4, examples_per_second=20.0,
    flops_per_second=4e14, peak_memory=61_000_000_000, seconds=3600.0, steps=5000, mfu=0.4,
)  # fmt: skip
ASKED = Evaluated(
    model="0123456789abcdef", benchmark="vqav2", title="clip 336 vicuna", device="NVIDIA H100 80GB HBM3",
    device_type="cuda", answer="generate", max_new_tokens=16, precision="bf16", batch=64, examples=1000, seconds=50.0,
    examples_per_second=20.0, flops_per_second=2e14,
)  # fmt: skip
WRITERS, EACH = 4, 25


def write_many(root: Path, writer: int) -> None:
    for number in range(EACH):
        throughput.add(root, replace(ROW, steps=writer * EACH + number, title="long " * 200))


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    assert throughput.read(tmp_path / "no store") == []
    assert not (tmp_path / "no store").exists()
    rows = [ROW, ASKED, replace(ROW, mfu=None, stage="align")]
    for row in rows:
        throughput.add(tmp_path, row)
    assert throughput.read(tmp_path) == rows


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path, writer)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS
    steps = [row.steps for row in throughput.read(tmp_path)]
    assert sorted(steps) == list(range(WRITERS * EACH))
    for writer in range(WRITERS):
        own = [step for step in steps if step // EACH == writer]
        assert own == sorted(own)


def test_a_row_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    throughput.add(tmp_path, ROW)
    path = tmp_path / throughput.FILE
    path.write_bytes(path.read_bytes() + b'{"model": "0123')
    assert throughput.read(tmp_path) == [ROW]
    throughput.add(tmp_path, replace(ROW, steps=2))
    assert [row.steps for row in throughput.read(tmp_path)] == [5000, 2]


def test_what_another_version_wrote_is_read(tmp_path: Path) -> None:
    later = {**asdict(ROW), "watts": 700, "settings": {**asdict(SETTINGS), "offload": True}}
    earlier = {key: value for key, value in asdict(ROW).items() if key != "mfu"}
    asked = {**asdict(ASKED), "watts": 700}
    (tmp_path / throughput.FILE).write_text(f"{json.dumps(later)}\n{json.dumps(earlier)}\n{json.dumps(asked)}\n")
    assert throughput.read(tmp_path) == [ROW, replace(ROW, mfu=None), ASKED]


def test_a_table_from_before_evaluations_were_measured_is_read(tmp_path: Path) -> None:
    """A line as the first version wrote it."""
    (tmp_path / throughput.FILE).write_text(
        '{"model": "0123456789abcdef", "stage": "finetune", "title": "clip 336 vicuna", "device": "NVIDIA H100 80GB '
        'HBM3", "device_type": "cuda", "ranks": 8, "settings": {"precision": "bf16", "micro_batch": 4, "batching": '
        '"packed", "activation_checkpointing": "selective", "compile": true, "sharding": "full"}, "tokens_per_second": '
        '15000.0, "examples_per_second": 20.0, "flops_per_second": 4e14, "peak_memory": 61000000000, "seconds": '
        '3600.0, "steps": 5000, "mfu": 0.4}\n'
    )
    assert throughput.read(tmp_path) == [ROW]


BROKEN = {
    "not JSON": ('{"model": ', "is not valid JSON"),
    "no object": ("[1, 2]", "missing"),
    "a key is missing": (json.dumps({k: v for k, v in asdict(ROW).items() if k != "device"}), "'device'"),
    "settings are missing": (json.dumps({k: v for k, v in asdict(ROW).items() if k != "settings"}), "'precision'"),
    "a wrong type": (json.dumps({**asdict(ROW), "steps": "many"}), "not a int"),
    "no examples": (json.dumps({**asdict(ASKED), "examples_per_second": 0.0}), "examples_per_second is 0.0"),
    "an evaluation without its answers": (
        json.dumps({k: v for k, v in asdict(ASKED).items() if k != "answer"}),
        "'answer'",
    ),
    "no speed": (json.dumps({**asdict(ROW), "tokens_per_second": 0.0}), "tokens_per_second is 0.0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_named(tmp_path: Path, case: str) -> None:
    line, why = BROKEN[case]
    path = tmp_path / throughput.FILE
    path.write_text(f"{json.dumps(asdict(ROW))}\n{line}\n")
    with pytest.raises(StoreError, match=f"{re.escape(str(path))}, line 2.*{re.escape(why)}.*remove that line"):
        throughput.read(tmp_path)


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create the folder"):
        throughput.add(tmp_path / "file", ROW)
    (tmp_path / throughput.LOCK).mkdir()
    with pytest.raises(StoreError, match="cannot lock"):
        throughput.add(tmp_path, ROW)


def test_reading_it_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from prism_sweeps.tracking import throughput;"
        "throughput.read(Path('/nowhere')); print([m for m in ('torch', 'numpy', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
