"""Images by what they hold: hashes of image files, each read once and remembered in a folder that all jobs share.

    FOLDER/images.jsonl    path, size, time and hash of a file
    FOLDER/lock            held by who adds to it, and so reads files: the next one finds their hashes there

JSON lines because they grow by appending: a kill costs the last line, not the list.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from prism_sweeps.config.errors import DataError
from prism_sweeps.tracking.files import append_rows, explained, make_folder
from prism_sweeps.tracking.records import Interrupted, Report

LIST = "images.jsonl"
READERS = 8
"""Threads that hash files: they wait for the disk more than they compute."""
PART = 1024
PAUSE = 0.5
"""Seconds between looks at a lock that another process holds."""
FRESH = 2 * 10**9
"""Nanoseconds for which a file is not remembered: it could change again within the resolution of its time."""
LOCKS = "use a store whose file system has locks, or switch engine.feature_cache off"

File = tuple[str, int, int]
"""Path, size in bytes and time of the last change in nanoseconds."""
Item = TypeVar("Item")
Stop = Callable[[], bool]
"""Whether the job was asked to stop."""


def silent(done: int, total: int, note: str) -> None:
    """A Report that tells nobody."""


def never() -> bool:
    """A Stop that is not asked for."""
    return False


def file_hash(path: Path | str) -> str:
    """32 hex digits: the first 128 bits of the sha256 of its bytes. Raises DataError."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error


def image_hashes(folder: Path, images: Iterable[Path], report: Report = silent, stop: Stop = never) -> dict[str, str]:
    """Path -> hash of each image. `folder` remembers those of files that have kept their size and time.

    Raises DataError for a file that cannot be read, and Interrupted.
    """
    make_folder(folder)
    paths = list(dict.fromkeys(map(os.fspath, images)))
    with ThreadPoolExecutor(READERS) as pool:
        files = list(chain.from_iterable(pool.map(_files, _parts(paths))))
        known = _remembered(folder, files)
        if len(known) < len(files):
            with held(folder / "lock", range(1), waiting_for("reads image files", len(files), report, stop)):
                known = _remembered(folder, files)
                known |= _read(pool, folder, [file for file in files if file not in known], report, stop)
    return {file[0]: known[file] for file in files}


def _parts(items: list[Item]) -> Iterator[list[Item]]:
    """A thousand at a time."""
    return (items[at : at + PART] for at in range(0, len(items), PART))


def _read(pool: ThreadPoolExecutor, folder: Path, files: list[File], report: Report, stop: Stop) -> dict[File, str]:
    """Hashes of `files`, remembered a thousand at a time."""
    found: dict[File, str] = {}
    for some in _parts(files):
        report(len(found), len(files), "image files read")
        if stop():
            raise Interrupted(f"stopped after {len(found)} of {len(files)} image files were read")
        hashes = pool.map(file_hash, [path for path, _, _ in some])
        found |= _remember(folder, dict(zip(some, hashes, strict=True)))
    return found


def _files(paths: list[str]) -> list[File]:
    return [_file(path) for path in paths]


def _file(path: str) -> File:
    try:
        told = os.stat(path)  # noqa: PTH116 - a Path of each of 600,000 takes longer than asking for it
    except OSError as error:
        raise DataError(f"image '{path}' cannot be read: {error.strerror or error}") from error
    return path, told.st_size, told.st_mtime_ns


def _remembered(folder: Path, files: list[File]) -> dict[File, str]:
    """The hashes of those of `files` that are on the list. A line that cannot be read costs one file read again."""
    try:
        stream = (folder / LIST).open("rb")
    except FileNotFoundError:
        return {}
    asked, known = set(files), {}
    with stream:
        for line in stream:
            try:
                row = json.loads(line)
                file = row["path"], row["size"], row["mtime_ns"]
            except (ValueError, KeyError, TypeError):
                continue
            if file in asked:
                known[file] = row["sha256"]
    return known


def _remember(folder: Path, found: dict[File, str]) -> dict[File, str]:
    """`found`, of which a relative path is not kept: elsewhere it is another file."""
    now = time.time_ns()
    rows = [
        {"path": path, "size": size, "mtime_ns": mtime_ns, "sha256": digest}
        for (path, size, mtime_ns), digest in found.items()
        if Path(path).is_absolute() and now - mtime_ns > FRESH
    ]
    append_rows(folder / LIST, rows, durable=True)
    return found


@contextmanager
def held(path: Path, bytes_of: range, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds these bytes of a lock file, and calls `waiting` now and then as long as another process has one of them.

    A POSIX lock: it ends with the process that took it, and processes forked from that do not hold it. (Closing the
    file anywhere in the process would end it, so a process opens it here alone.)
    """
    with explained("lock", path, LOCKS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not _try_lock(descriptor, path, bytes_of):
            waiting()
            time.sleep(PAUSE)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: Path, bytes_of: range) -> bool:
    with explained("lock", path, LOCKS):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, len(bytes_of), bytes_of.start)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return False
    return True


def waiting_for(what: str, total: int, report: Report, stop: Stop) -> Callable[[], None]:
    """For `held`: says so, and raises Interrupted when asked to stop."""

    def waiting() -> None:
        report(0, total, f"waits for another process that {what}")
        if stop():
            raise Interrupted(f"stopped while another process {what}")

    return waiting
