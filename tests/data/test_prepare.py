import fcntl
import json
import multiprocessing
import time
from pathlib import Path

import pytest

from prism_sweeps.config.errors import DataError
from prism_sweeps.data import prepare
from prism_sweeps.data.prepare import ensure_dataset


def quiet(done: int, total: int, note: str) -> None:
    pass


def slow_recipe(folder: Path, workers: int, progress: prepare.Progress) -> None:
    time.sleep(0.3)
    (folder / "made").write_text("whole")
    with (folder.parent / "count").open("a") as stream:
        stream.write("x")


def ask(root: Path) -> None:
    prepare.prepare_easy_vqa = slow_recipe
    assert (ensure_dataset("easy-vqa", root, 1, quiet) / "made").read_text() == "whole"


def test_processes_that_ask_together_prepare_once(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=ask, args=(tmp_path / "data",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "data" / "count").read_text() == "x"


def test_failure_leaves_nothing_and_the_next_attempt_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(folder: Path, workers: int, progress: prepare.Progress) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    abandoned = tmp_path / ".easy-vqa.tmp-killed"
    abandoned.mkdir()
    monkeypatch.setattr(prepare, "prepare_easy_vqa", failing)
    with pytest.raises(DataError, match=r"easy-vqa.*No space left"):
        ensure_dataset("easy-vqa", tmp_path, 1, quiet)
    assert [path.name for path in tmp_path.iterdir()] == [".easy-vqa.lock"]
    monkeypatch.setattr(prepare, "prepare_easy_vqa", slow_recipe)
    assert (ensure_dataset("easy-vqa", tmp_path, 1, quiet) / "made").exists()


def test_ready_dataset_needs_no_lock(tmp_path: Path):
    (tmp_path / "easy-vqa").mkdir()
    with (tmp_path / ".easy-vqa.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert ensure_dataset("easy-vqa", tmp_path, 1, quiet) == tmp_path / "easy-vqa"


def test_no_number_of_workers_is_one_per_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(prepare, "prepare_easy_vqa", lambda folder, workers, progress: asked.append(workers))
    monkeypatch.setattr(prepare.os, "sched_getaffinity", lambda process: {0, 1, 2})
    ensure_dataset("easy-vqa", tmp_path, 0, quiet)
    assert asked == [3]


def test_names_carry_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(prepare, "prepare_training", lambda *args: asked.append(args[1:]))
    monkeypatch.setattr(prepare, "prepare_benchmarks", lambda *args: asked.append(args[1:]))
    ensure_dataset("nano-world-120", tmp_path, 3, quiet)
    ensure_dataset("nano-benchmarks", tmp_path, 2, quiet)
    ensure_dataset("nano-benchmarks-30", tmp_path, 2, quiet)
    assert asked == [(120, 3, quiet), (1000, 2, quiet), (30, 2, quiet)]


@pytest.mark.parametrize("name", ["nano-wold-6000", "nano-world-0", "nano-world-", "nano-world-6000x"])
def test_unknown_name_gets_the_nearest(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=r"did you mean 'nano-world-6000'.*your own .*prism data prepare BENCHMARK"):
        ensure_dataset(name, tmp_path, 1, quiet)


def test_folder_of_the_users_own_is_taken_as_it_is(tmp_path: Path):
    (tmp_path / "my-chats").mkdir()
    (tmp_path / "my-chats" / "chat.json").write_text(json.dumps([]))
    assert ensure_dataset("my-chats", tmp_path, 1, quiet) == tmp_path / "my-chats"


def test_nano_world_of_another_recipe_is_refused(tmp_path: Path):
    (tmp_path / "nano-world-6").mkdir()
    (tmp_path / "nano-world-6" / "manifest.json").write_text(json.dumps({"version": "1", "files": {}}))
    with pytest.raises(DataError, match=r"nano-world-6 was drawn by version 1 .*move the folder away"):
        ensure_dataset("nano-world-6", tmp_path, 1, quiet)
