"""One file or one folder out of a zip or tar archive, whole or not at all, and nothing outside of its place."""

from __future__ import annotations

import contextlib
import glob
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.prepare import Progress

SPARE_BYTES = 1 << 28
"""Left free on the disk."""
LARGEST_RATIO = 300
"""Unpacked to packed; text packs to a tenth or so, and nothing honest to less than a three-hundredth."""
SMALL_BYTES = 1 << 26
"""Unpacked, up to which the ratio does not matter."""
TELL_EVERY = 500
SHADOWS = "__MACOSX"


class Member(NamedTuple):
    """A file in an archive."""

    path: PurePosixPath
    size: int
    plain: bool
    """Neither a link nor a device."""
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, wanted: PurePosixPath, target: Path, progress: Progress) -> Path:
    """The file or folder `wanted` of `archive` as `target`, which is not there yet.

    Its place in the archive is where the last parts of a path are `wanted` (or its last part alone). Call it with a
    lock on `target` held: what an unpacking left that was killed goes. Raises DataError: no archive, nothing of that
    name, a path that leads outside or occurs twice, a link, more than the disk holds, a bomb.
    """
    try:
        with opened(archive) as members:
            chosen = under(check(members, archive), wanted)
            if not chosen:
                raise DataError(f"{archive} has no '{wanted}' in it: is it the right file?")
            check_size(archive, sum(member.size for member, _ in chosen), target.parent)
            place(chosen, target, progress, f"files of {archive.name}")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DataError(f"{archive} is damaged, or no zip or tar file: {error}; fetch it again") from error
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked to {target}: {error.strerror or error}") from error
    return target


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[list[Member]]:
    """What an archive has in it, folders left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            yield [zipped(content, info) for info in content.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as content:
            yield [tarred(content, info) for info in content.getmembers() if not info.isdir()]


def zipped(content: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = (info.external_attr >> 16) & 0o170000
    return Member(PurePosixPath(info.filename), info.file_size, kind in (0, 0o100000), lambda: content.open(info))


def tarred(content: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    def read() -> IO[bytes]:
        stream = content.extractfile(info)
        assert stream is not None  # of a plain file there is one
        return stream

    return Member(PurePosixPath(info.name), info.size, info.isreg(), read)


def check(members: list[Member], archive: Path) -> list[Member]:
    """Raises DataError for a path that leads outside, whatever is wanted of the archive: it is not an honest one."""
    for member in members:
        if member.path.is_absolute() or ".." in member.path.parts or "\\" in str(member.path):
            raise DataError(f"{archive} has a file called '{member.path}', which would lie outside; nothing was taken")
    return members


def under(members: list[Member], wanted: PurePosixPath) -> list[tuple[Member, PurePosixPath]]:
    """The members that are `wanted`, or inside of it, each with its path from there on; the outermost of that name."""
    for parts in (wanted.parts, wanted.parts[-1:]):
        found = [(member, end) for member in members if (end := end_of(member.path.parts, parts))]
        if found:
            outermost = min(found, key=lambda each: each[1])
            base = outermost[0].path.parts[: outermost[1]]
            inside = [member for member, end in found if member.path.parts[:end] == base]
            check_files(inside)
            return [(member, PurePosixPath(*member.path.parts[len(base) :])) for member in inside]
    return []


def end_of(path: tuple[str, ...], parts: tuple[str, ...]) -> int:
    """Where the first occurrence of `parts` in a path ends; 0 where there is none. macOS' shadow files do not count."""
    starts = range(0 if SHADOWS in path else len(path) - len(parts) + 1)
    return next((start + len(parts) for start in starts if path[start : start + len(parts)] == parts), 0)


def check_files(members: list[Member]) -> None:
    """Raises DataError for a link, a device, or two files of one name."""
    seen: set[PurePosixPath] = set()
    for member in members:
        if not member.plain:
            raise DataError(f"'{member.path}' in the archive is a link or a device, no file; nothing was taken")
        if member.path in seen:
            raise DataError(f"'{member.path}' is in the archive twice: which one is meant? nothing was taken")
        seen.add(member.path)


def check_size(archive: Path, total: int, folder: Path) -> None:
    """Raises DataError for more than the disk holds, and for what no honest archive unpacks to."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > max(SMALL_BYTES, LARGEST_RATIO * archive.stat().st_size):
        raise DataError(f"{archive} would unpack to {total:,} bytes, {LARGEST_RATIO} times its size: it is no data set")
    if total + SPARE_BYTES > free:
        raise DataError(f"{archive} unpacks to {total:,} bytes, and {folder} has {free:,} left")


def place(chosen: list[tuple[Member, PurePosixPath]], target: Path, progress: Progress, note: str) -> None:
    """Writes them beside `target`, and moves them there when they are whole."""
    for abandoned in target.parent.glob(f".{glob.escape(target.name)}.tmp-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
    try:
        for done, (member, rest) in enumerate(chosen):
            file = temporary / "unpacked" / rest
            file.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as packed, file.open("xb") as stream:
                shutil.copyfileobj(packed, stream)
            if done % TELL_EVERY == 0:
                progress(done, len(chosen), note)
        progress(len(chosen), len(chosen), note)
        (temporary / "unpacked").rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
