"""The code as it is when a sweep is submitted, kept in the store for its jobs to run however the tree changes later."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import prism_sweeps.conf
from prism_sweeps.tracking.files import UMASK, explained, make_folder, sync_folder
from prism_sweeps.tracking.provenance import COMMIT, source_commit
from prism_sweeps.tracking.records import Store

PACKAGE = Path(prism_sweeps.__file__).parent
CONF = Path(next(iter(prism_sweeps.conf.__path__)))
DIFF = "changes.diff"
LEFT_OUT = ("__pycache__", ".mypy_cache", ".ruff_cache")


def snapshot(store: Store) -> Path:
    """A folder of the store for PYTHONPATH that holds this package; the same one for as long as the code is the same.

    Beside it lie the git commit and, where files differ from it, the difference.
    """
    files = dict(_files())
    snapshots = store.root / "snapshots"
    target = snapshots / digest(files)
    if target.is_dir():
        return target
    with explained("write", target, "nothing was submitted; make room and sweep again"):
        temporary = Path(tempfile.mkdtemp(dir=make_folder(snapshots), prefix=".new-"))
        try:
            _write(files, temporary)
            # Somebody may have saved a file since it was looked at.
            target = snapshots / digest({name: temporary / name for name in files})
            temporary.chmod(0o777 & ~UMASK)
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # or somebody else was as fast
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(snapshots)
    return target


def _files() -> Iterator[tuple[str, Path]]:
    """Place in the snapshot -> file."""
    for root, inside in ((PACKAGE, Path("prism_sweeps")), (CONF, Path("prism_sweeps/conf"))):
        for file in sorted(root.rglob("*")):
            if file.is_file() and not any(part in LEFT_OUT for part in file.parts):
                yield str(inside / file.relative_to(root)), file


def digest(files: dict[str, Path]) -> str:
    """A hash of names and contents."""
    found = hashlib.sha256()
    for name, file in files.items():
        found.update(f"{name}\0{file.stat().st_size}\0".encode())
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _write(files: dict[str, Path], folder: Path) -> None:
    for name, file in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    if commit := source_commit():
        (folder / COMMIT).write_text(f"{commit}\n")
        (folder / DIFF).write_bytes(_difference())


def _difference() -> bytes:
    """What the package's files differ by from the commit; empty where they do not, or git does not tell."""
    command = ["git", "-C", str(PACKAGE), "diff", "HEAD", "--", str(PACKAGE), str(CONF)]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_PAGER": "cat"}
    try:
        return subprocess.run(command, capture_output=True, env=environment, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return b""
