"""Records after kills at any byte, full disks, two owners, and names from outside."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records_of import FINGERPRINT, JOB

from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.config.schema import (
    Engine,
)
from prism_sweeps.tracking import files
from prism_sweeps.tracking.records import JobBusy, JobRecord, Store


def test_a_new_job_is_new_and_reading_it_writes_nothing(store: Store, record: JobRecord) -> None:
    assert record.state()["status"] == "new"
    assert record.read_metrics() == record.read_predictions() == []
    assert not record.path.exists()
    assert store.data == store.root / "data"


def test_life_of_a_job(record: JobRecord) -> None:
    with record.claim():
        record.begin(JOB, Engine())
        assert record.state()["status"] == "running"
        assert record.state()["pid"] == os.getpid()
        record.fail("boom")
    assert record.state()["error"] == "boom"
    with record.claim():
        record.begin(JOB, Engine())
        time.sleep(0.05)
        record.interrupt()
    first = record.state()
    assert (first["status"], first["attempts"], first["error"]) == ("interrupted", 2, None)
    assert first["seconds"] >= 0.05
    with record.claim():
        record.begin(JOB, Engine())
        sum(range(3_000_000))
        record.finish({"loss": 1.5})
    state = record.state()
    assert (state["status"], state["attempts"], state["result"]) == ("done", 3, {"loss": 1.5})
    assert state["seconds"] > first["seconds"]
    assert state["cpu_seconds"] > first["cpu_seconds"]
    assert state["started"] == first["started"] < state["finished"]


def test_config_is_yaml_that_says_what_ran(record: JobRecord) -> None:
    import yaml

    with record.claim():
        record.begin(JOB, Engine(workers=3))
    config = yaml.safe_load(record.config.read_text())
    assert config["job"]["spec"]["stage"]["learning_rate"] == 1e-3
    assert config["engine"]["workers"] == 3
    assert config["libraries"]["torch"]


def die_in_the_middle(path: str, phase: str) -> None:
    record = JobRecord(Path(path))
    with record.claim():
        record.begin(JOB, Engine())
        if phase == "weights":
            with record.writing_weights() as folder:
                (folder / "projector.safetensors").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        record.append_metrics({"step": 1})
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("phase", ["running", "weights"])
def test_a_killed_owner_leaves_an_interrupted_job_that_can_be_claimed(record: JobRecord, phase: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=die_in_the_middle, args=(str(record.path), phase))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((record.path / "state.json").read_text())["status"] == "running"
    assert record.state()["status"] == "interrupted"
    assert not record.weights.exists()
    with record.claim():
        record.begin(JOB, Engine())
        assert record.state()["attempts"] == 2
        assert not list(record.path.glob("weights.tmp-*"))


def hold_claim(path: str, held: object, release: object) -> None:
    with JobRecord(Path(path)).claim():
        held.set()  # type: ignore[attr-defined]
        release.wait(20)  # type: ignore[attr-defined]


def test_two_processes_cannot_claim_one_job(record: JobRecord) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold_claim, args=(str(record.path), held, release))
    process.start()
    assert held.wait(20)
    assert record.busy()
    with pytest.raises(JobBusy), record.claim():
        pass
    release.set()
    process.join()
    with record.claim():
        assert record.busy()
    assert not record.busy()


def compete(path: str, start: object, rounds: int) -> None:
    record = JobRecord(Path(path))
    start.wait(20)  # type: ignore[attr-defined]
    for _ in range(rounds):
        try:
            with record.claim():
                # Exclusive creation fails if anybody else is inside.
                inside = record.path / "inside"
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                time.sleep(0.001)
                inside.unlink()
        except JobBusy:
            pass


def test_claim_is_exclusive_under_contention(record: JobRecord) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    record.path.mkdir(parents=True)
    record._write_state({"status": "running", "pid": 1, "host": "x"})
    processes = [context.Process(target=compete, args=(str(record.path), start, 30)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


ROWS = st.lists(
    st.fixed_dictionaries({"id": st.text(max_size=8), "score": st.floats(0, 1), "answer": st.text(max_size=20)}),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, more=ROWS, cut=st.floats(0, 1))
def test_predictions_cut_at_any_byte_keep_their_whole_rows(tmp_path: Path, rows: list, more: list, cut: float) -> None:
    record = JobRecord(tmp_path / "job")
    record.predictions.unlink(missing_ok=True)
    append = partial(files.append_rows, record.predictions, durable=False)
    append(rows)
    data = record.predictions.read_bytes()
    size = round(cut * len(data))
    record.predictions.write_bytes(data[:size])
    whole = rows[: data[:size].count(b"\n")]
    assert record.read_predictions() == whole
    append(more)
    assert record.read_predictions() == whole + more


def read_everything(root: Path) -> None:
    store = Store.open(root)
    store.job(FINGERPRINT).state()
    store.study("nano/axes").plan()


def test_a_store_cut_anywhere_opens_or_says_which_file(tmp_path: Path, store: Store, record: JobRecord) -> None:
    with record.claim():
        record.begin(JOB, Engine())
        record.finish({"loss": 1.0})
    store.study("nano/axes").write_plan({"cells": []})
    targets = [store.root / "store.json", record.path / "state.json", store.root / "studies/nano/axes/plan.json"]
    chance = random.Random(0)
    for target in targets:
        whole = target.read_bytes()
        for size in {0, len(whole) - 2, *(chance.randrange(len(whole) - 1) for _ in range(10))}:
            target.write_bytes(whole[:size])
            with pytest.raises(StoreError, match=re.escape(str(target))):
                read_everything(store.root)
        target.write_bytes(whole)
    assert Store.open(store.root).job(FINGERPRINT).state()["status"] == "done"


def test_a_malformed_row_in_the_middle_is_an_error_with_its_line(record: JobRecord) -> None:
    record.append_metrics({"step": 1})
    with record.metrics.open("a") as stream:
        stream.write('{"step": \n{"step": 3}\n')
    with pytest.raises(StoreError, match="line 2"):
        record.read_metrics()


def test_truncate_metrics_drops_what_will_be_done_again(record: JobRecord) -> None:
    for step in range(5):
        record.append_metrics({"step": step, "loss": step / 2})
    record.truncate_metrics(2)
    assert [row["step"] for row in record.read_metrics()] == [0, 1, 2]
    record.append_metrics({"step": 3})
    assert [row["step"] for row in record.read_metrics()] == [0, 1, 2, 3]


def test_a_full_disk_leaves_the_old_state_and_names_the_file(
    record: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    with record.claim():
        record.begin(JOB, Engine())
        rows = record.path / "rows.jsonl"
        files.append_rows(rows, [{"id": "a"}], durable=True)
        record.write_predictions([{"id": "a"}])
        before = (record.path / "state.json").read_bytes()

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def half(descriptor: int, data: memoryview, offset: int) -> int:
            monkeypatch.setattr(files.os, "pwrite", full)
            return real(descriptor, bytes(data)[:5], offset)

        real = os.pwrite
        monkeypatch.setattr(files.os, "pwrite", half)
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(StoreError, match=r"state\.json.*disk is full.*unchanged"):
            record.finish({})
        with pytest.raises(StoreError, match=r"predictions\.jsonl.*disk is full.*unchanged"):
            record.write_predictions([{"id": "bcdefgh"}])
        with pytest.raises(StoreError, match=r"rows\.jsonl.*disk is full.*kept"):
            files.append_rows(rows, [{"id": "bcdefgh"}], durable=True)
    monkeypatch.undo()
    assert (record.path / "state.json").read_bytes() == before
    assert record.predictions.read_bytes() == b'{"id": "a"}\n'
    assert rows.read_bytes() == b'{"id": "a"}\n'
    assert not list(record.path.glob(".*.tmp"))


def test_weights_appear_whole_and_can_be_replaced(record: JobRecord) -> None:
    for content in (b"one", b"two"):
        with record.writing_weights() as folder:
            (folder / "projector.safetensors").write_bytes(content)
            assert folder != record.weights
        assert (record.weights / "projector.safetensors").read_bytes() == content
    with contextlib.suppress(RuntimeError), record.writing_weights() as folder:
        (folder / "projector.safetensors").write_bytes(b"three")
        raise RuntimeError
    assert (record.weights / "projector.safetensors").read_bytes() == b"two"
    assert [path.name for path in record.path.iterdir()] == ["weights"]


def test_a_newer_store_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match=r"version 99.*upgrade"):
        Store.open(tmp_path)


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Store.open(tmp_path / "file")


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../b", "/etc", "a//b", "a/", "", ".hidden", "a/.b", "a\\b", "a\nb", "a\x00", "-x", "a b"]
)
def test_study_names_cannot_leave_the_store(store: Store, name: str) -> None:
    with pytest.raises(ConfigError):
        store.study(name)


def test_studies_are_listed_by_name(store: Store) -> None:
    assert store.studies() == []
    for name in ("nano/axes", "nano", "adhoc-1a2b3c4d"):
        store.study(name).write_plan({"study": name})
    assert store.studies() == ["adhoc-1a2b3c4d", "nano", "nano/axes"]
    assert store.study("nano/axes").plan() == {"study": "nano/axes"}
    with pytest.raises(StoreError, match="prism sweep other"):
        store.study("other").plan()


def test_a_group_shares_a_store_where_the_umask_says_so(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from prism_sweeps.tracking.records import Store;"
        "record = Store.open(Path(sys.argv[1])).job('0' * 16)\n"
        "with record.claim(): record.append_metrics({'step': 1})"
    )
    for umask, rights in ((0o002, "664"), (0o077, "600")):
        root = tmp_path / rights
        subprocess.run([sys.executable, "-c", script, str(root)], check=True, umask=umask)
        files = [root / "store.json", *root.rglob("lock"), *root.rglob("metrics.jsonl")]
        assert len(files) == 3
        assert {f"{file.stat().st_mode & 0o777:o}" for file in files} == {rights}
