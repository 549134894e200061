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

from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.config.schema import (
    Backbone,
    Engine,
    LanguageModel,
    Projector,
    Resize,
    Resolution,
    Source,
    Stage,
)
from prism_sweeps.config.specs import Job, ModelSpec, StageSpec
from prism_sweeps.tracking import files
from prism_sweeps.tracking.records import JobBusy, JobRecord, Store

FINGERPRINT = "0123456789abcdef"
MODEL = ModelSpec(
    Backbone("nano"), Resolution("64", 64), Resize("naive", "naive"), Projector("mlp", "mlp"),
    LanguageModel("nano", "zoo:nano", "in-out", 64, 2, 4, 4, 128, 512, 128),
)  # fmt: skip
STAGE = Stage(trains=["projector"], global_batch=8, learning_rate=1e-3)
JOB = Job(FINGERPRINT, "align", StageSpec("align", MODEL, STAGE, {"a": Source("nano-world-8", "chat.json")}, seed=1))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def record(store: Store) -> JobRecord:
    return store.job(FINGERPRINT)


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
        record.append_predictions([{"id": "a"}])
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
        with pytest.raises(StoreError, match=r"predictions\.jsonl.*disk is full.*kept"):
            record.append_predictions([{"id": "bcdefgh"}])
    monkeypatch.undo()
    assert (record.path / "state.json").read_bytes() == before
    assert record.predictions.read_bytes() == b'{"id": "a"}\n'
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


# ---- signs of life, failures and where they were


@pytest.fixture
def alive(record: JobRecord) -> JobRecord:
    """A job that somebody works on, as far as files tell."""
    record.path.mkdir(parents=True)
    record.begin(JOB, Engine())
    record.beat(3, 9, "loss 1.5")
    return record


def test_a_sign_of_life_says_how_far_it_is(alive: JobRecord) -> None:
    beat = alive.last_beat()
    assert beat is not None
    assert (beat["done"], beat["total"], beat["text"], beat["pid"]) == (3, 9, "loss 1.5", os.getpid())
    alive.beat(4, 9, "")
    assert (alive.last_beat() or {})["done"] == 4
    assert [path.name for path in alive.path.glob(".heartbeat*")] == []


@pytest.mark.parametrize("end", ["finish", "fail", "interrupt"])
def test_it_ends_with_the_attempt(end: str, alive: JobRecord) -> None:
    {"finish": lambda: alive.finish({}), "fail": lambda: alive.fail("boom"), "interrupt": alive.interrupt}[end]()
    assert (alive.last_beat(), alive.silence()) == (None, None)


def test_silence_is_told_by_the_clock_of_the_file_system(alive: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which all machines have the same; their own may be hours apart."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    silence = alive.silence()
    assert silence is not None
    assert silence < 20
    past = alive.heartbeat.stat().st_mtime - 100
    os.utime(alive.heartbeat, (past, past))
    assert 100 <= (alive.silence() or 0) < 120
    future = past + 4000
    os.utime(alive.heartbeat, (future, future))
    assert alive.silence() == 0


def test_who_may_not_write_asks_his_own_clock(alive: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("prism_sweeps.tracking.records.tempfile.TemporaryFile", refuse)
    now = alive.heartbeat.stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: now + 55)
    assert alive.silence() == 55


def test_a_sign_that_is_cut_off_or_gone_between_two_looks_is_none(
    alive: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive.heartbeat.write_text('{"done": 3')
    assert alive.last_beat() is None
    alive.heartbeat.unlink()
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert alive.last_beat() is None


def age(record: JobRecord, seconds: float) -> None:
    then = record.heartbeat.stat().st_mtime - seconds
    os.utime(record.heartbeat, (then, then))


def test_where_locks_are_kept_to_each_machine_a_living_job_is_not_taken(
    alive: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody here holds its lock. Another machine's signs of life tell, until they have stopped for a while."""
    host = alive.state()["host"]
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    with pytest.raises(JobBusy, match=rf"was alive on {host} \d+ s ago"), alive.claim():
        pass
    age(alive, 29)
    with pytest.raises(JobBusy), alive.claim():
        pass
    age(alive, 2)
    with alive.claim():
        pass


def test_on_its_own_machine_the_lock_is_believed(alive: JobRecord) -> None:
    with alive.claim():
        pass


def test_an_attempt_that_ended_in_order_is_taken_up_anywhere(alive: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    alive.interrupt()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    with alive.claim():
        pass


def test_failures_count_with_their_nodes(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("n1", "n2", "n1"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        with record.claim():
            record.begin(JOB, Engine())
            record.fail("boom")
    state = record.state()
    assert state["failures"] == 3
    assert [host for host, _ in state["failed_on"]] == ["n1", "n2", "n1"]
    assert [when for _, when in state["failed_on"]] == sorted(when for _, when in state["failed_on"])


def test_a_failure_elsewhere_counts_there(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("n2", "", None):
        monkeypatch.setattr("socket.gethostname", lambda: "n1")
        with record.claim():
            record.begin(JOB, Engine())
            record.fail("boom", host=host)
    assert [host for host, _ in record.state()["failed_on"]] == ["n2", "", "n1"]


def test_what_another_process_puts_down_tells_its_node(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    with record.claim():
        record.begin(JOB, Engine())
        assert record.failure_of_others() is None
        monkeypatch.setattr("socket.gethostname", lambda: "n2")
        record.put_down_failure(3, "process 3 of 4: boom\nin two lines")
        assert record.failure_of_others() == ("process 3 of 4: boom\nin two lines", "n2")
        record.begin(JOB, Engine())
        assert record.failure_of_others() is None


def test_a_job_can_fail_before_it_began(record: JobRecord) -> None:
    """Its node died under it."""
    with record.claim():
        record.fail("its node failed")
    state = record.state()
    assert (state["status"], state["failures"], state["attempts"], state["host"]) == ("failed", 1, 0, None)


def test_forgiven_it_has_all_its_tries_again_and_its_history(record: JobRecord) -> None:
    for _ in range(2):
        with record.claim():
            record.begin(JOB, Engine())
            record.fail("boom", final=True)
    record.forgive()
    state = record.state()
    assert (state["status"], state["failures"], state["final"], state["error"]) == ("failed", 0, False, "boom")
    assert len(state["failed_on"]) == 2


def test_forgiving_a_job_without_failures_writes_nothing(record: JobRecord) -> None:
    record.forgive()
    assert not record.path.exists()


def test_a_mark_changes_when_the_job_gets_further_for_good(record: JobRecord) -> None:
    marks = [record.mark()]
    (record.checkpoints / "step-00000005").mkdir(parents=True)
    marks.append(record.mark())
    (record.checkpoints / "step-00000010").mkdir()
    marks.append(record.mark())
    record.append_predictions([{"id": "1"}])
    marks.append(record.mark())
    assert len(set(marks)) == 4
    record.append_metrics({"step": 11, "loss": 1.0})
    assert record.mark() == marks[-1]
    assert marks[0].startswith("no checkpoint")


def test_stalls_in_a_row(record: JobRecord) -> None:
    with record.claim():
        record.begin(JOB, Engine())
        record.interrupt()
    assert [record.count_stall(mark) for mark in ("a", "a", "b", "b", "b", "a")] == [1, 2, 1, 2, 3, 1]
    with record.claim():
        record.begin(JOB, Engine())
        record.interrupt()
    assert record.count_stall("a") == 2
