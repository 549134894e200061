"""The code as it was when a sweep was submitted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prism_sweeps.config.errors import StoreError
from prism_sweeps.launching import snapshot as module
from prism_sweeps.launching.snapshot import digest, snapshot
from prism_sweeps.tracking.provenance import source_commit
from prism_sweeps.tracking.records import Store


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in the place of the real one."""
    package, conf = tmp_path / "tree" / "src" / "prism_sweeps", tmp_path / "tree" / "conf"
    for path, text in {
        package / "__init__.py": "VALUE = 1\n",
        package / "models" / "zoo" / "a.safetensors": "weights",
        package / "__pycache__" / "x.pyc": "bytes",
        conf / "study" / "a.yaml": "seeds: [1]\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(module, "PACKAGE", package)
    monkeypatch.setattr(module, "CONF", conf)
    monkeypatch.setattr(module, "source_commit", lambda: None)
    return tmp_path / "tree"


def held(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_holds_package_and_configuration(tree: Path, store: Store) -> None:
    folder = snapshot(store)
    assert folder.parent == store.root / "snapshots"
    assert held(folder) == {
        "prism_sweeps/__init__.py", "prism_sweeps/models/zoo/a.safetensors", "prism_sweeps/conf/study/a.yaml",
    }  # fmt: skip
    assert held(store.root / "snapshots") == {f"{folder.name}/{name}" for name in held(folder)}
    assert folder.stat().st_mode & 0o555 == 0o555


def test_the_same_code_has_the_same_snapshot_and_other_code_another(tree: Path, store: Store) -> None:
    first = snapshot(store)
    stamp = (first / "prism_sweeps/__init__.py").stat()
    assert snapshot(store) == first
    assert (first / "prism_sweeps/__init__.py").stat().st_ino == stamp.st_ino
    (tree / "src/prism_sweeps/__pycache__/x.pyc").write_text("others")
    assert snapshot(store) == first
    (tree / "src/prism_sweeps/__init__.py").write_text("VALUE = 2\n")
    second = snapshot(store)
    (tree / "conf/study/a.yaml").write_text("seeds: [2]\n")
    third = snapshot(store)
    assert len({first, second, third}) == 3
    assert (first / "prism_sweeps/__init__.py").read_text() == "VALUE = 1\n"
    (tree / "src/prism_sweeps/__init__.py").write_text("VALUE = 1\n")
    (tree / "conf/study/a.yaml").write_text("seeds: [1]\n")
    assert snapshot(store) == first


def test_names_count_as_contents_do(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert digest({"x": tmp_path / "a", "y": tmp_path / "b"}) != digest({"x": tmp_path / "b", "y": tmp_path / "a"})
    assert digest({"x": tmp_path / "a"}) != digest({"y": tmp_path / "a"})


def test_two_at_once_make_one(tree: Path, store: Store) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(snapshot(store))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [path.name for path in (store.root / "snapshots").iterdir()] == [found[0].name]


def test_one_that_is_cut_off_leaves_nothing_that_counts(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(StoreError, match="the disk is full; nothing was submitted; make room and sweep again"):
            snapshot(store)
    assert list((store.root / "snapshots").iterdir()) == []
    assert held(snapshot(store))


def test_a_file_that_is_written_anew_during_the_copy_is_not_called_by_the_old_content(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor saves between the hash and the copy."""
    real = module._write

    def meanwhile(files: dict[str, Path], folder: Path) -> None:
        (tree / "src/prism_sweeps/__init__.py").write_text("VALUE = 9\n")
        real(files, folder)

    monkeypatch.setattr(module, "_write", meanwhile)
    folder = snapshot(store)
    assert (folder / "prism_sweeps/__init__.py").read_text() == "VALUE = 9\n"
    monkeypatch.setattr(module, "_write", real)
    assert snapshot(store) == folder
    (tree / "src/prism_sweeps/__init__.py").write_text("VALUE = 1\n")
    assert (snapshot(store) / "prism_sweeps/__init__.py").read_text() == "VALUE = 1\n"


def test_commit_and_difference_lie_beside_it(tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "src", "conf"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", tree, *command], check=True)
    monkeypatch.setattr(module, "source_commit", lambda: "abc-dirty")
    folder = snapshot(store)
    assert (folder / "COMMIT").read_text() == "abc-dirty\n"
    assert (folder / "changes.diff").read_bytes() == b""
    (tree / "conf/study/a.yaml").write_text("seeds: [2]\n")
    assert b"+seeds: [2]" in (snapshot(store) / "changes.diff").read_bytes()


def test_a_jobs_python_imports_from_it(store: Store) -> None:
    """Also where the package is installed so that the tree is what is imported; and it knows its commit."""
    folder = snapshot(store)
    code = (
        "import prism_sweeps, prism_sweeps.launching.slurm.after, prism_sweeps.conf\n"
        "from prism_sweeps.tracking.provenance import source_commit\n"
        "print(prism_sweeps.__file__, *prism_sweeps.conf.__path__, prism_sweeps.launching.slurm.after.__file__)\n"
        "print(source_commit())"
    )
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    files, commit = done.stdout.splitlines()
    assert [name.startswith(f"{folder}/") for name in files.split()] == [True] * 3
    assert commit == str(source_commit())
