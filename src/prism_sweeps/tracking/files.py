"""Files that survive a kill at any byte: replaced as a whole, or grown by whole lines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import StoreError

BLOCK = 1 << 16
UMASK = os.umask(0o077)
"""Which rights new files do not get, as whoever runs this wants it: with 002 a group shares a store. Temporary files,
which are made for their owner alone, are given theirs by it."""
os.umask(UMASK)


@contextlib.contextmanager
def explained(action: str, path: Path, kept: str) -> Iterator[None]:
    """Turns an OSError inside into a StoreError that names the file and says what is left of it."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise StoreError(f"cannot {action} {path}: {reason}; {kept}") from error


def make_folder(path: Path) -> Path:
    """`path`, created with its parents where missing. Raises StoreError."""
    with explained("create the folder", path, "nothing was changed"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, text: str) -> None:
    """Replaces `path` by `text`, durably: a reader or a crash sees all of the old or of the new. Raises StoreError."""
    with explained("write", path, "its previous contents are unchanged and no other record was touched"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fchmod(stream.fileno(), 0o666 & ~UMASK)
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises StoreError, which ends with `remedy`, when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} is not valid JSON ({error}); {remedy}") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds a {type(value).__name__}, not a JSON object; {remedy}")
    return value


def append_rows(path: Path, rows: Iterable[dict[str, Any]], durable: bool) -> None:
    """Adds one JSON line per row in one write, after cutting off a last line that a crash left incomplete.

    A write that fails half-way (full disk) is undone, so the file always holds whole rows. Raises StoreError.
    """
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with explained("append to", path, "the rows already in it are kept"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            end = whole_lines(descriptor)
            os.ftruncate(descriptor, end)
            try:
                write_all(descriptor, data, end)
                if durable:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Writes every byte of `data` at `offset`; a short write goes on until it is complete or raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def whole_lines(descriptor: int) -> int:
    """Size in bytes of the file up to and including its last newline."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without a last one that is cut off; [] when there is no file.

    Raises StoreError naming file and line when any other line is malformed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StoreError(f"{path}, line {number} is not valid JSON ({error}); remove that line") from error
        rows.append(row)
    return rows


def clock_of(folder: Path) -> float:
    """What time the file system of a folder believes it is: that of a file written just now, else this machine's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b".")
            probe.flush()
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def in_lines(content: dict[str, Any]) -> str:
    """JSON with a line for each entry of each entry, so that two plans can be compared line by line."""
    parts = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        elif isinstance(value, list) and value:
            inner = ",\n".join(f" {json.dumps(each, ensure_ascii=False)}" for each in value)
            parts.append(f"{json.dumps(key)}: [\n{inner}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def try_lock(descriptor: int, kind: int, pause: float) -> bool:
    """After `pause` seconds, whether the lock could be had without waiting."""
    if pause:  # even a sleep of nothing gives the core away
        time.sleep(pause)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def only_one(path: Path, kept: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock that one process has at a time, and calls `waiting` first where another has it.

    The kernel lets go of it when a process dies. Raises StoreError, ending with `kept`, where there are no locks.
    """
    with explained("lock", path, kept):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with explained("lock", path, kept):
            if not try_lock(descriptor, fcntl.LOCK_EX, 0.0):
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
