"""Files over HTTP: whole, checked and in place, or not at all; what an interruption leaves is gone on from.

A file that is being fetched is TARGET.part, and TARGET.part.tag holds what the server calls this version of it (ETag or
Last-Modified), so that two versions are never put together.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.prepare import Progress, locked

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60.0
ATTEMPTS = 4
PAUSE_SECONDS = 2.0
MIB = 1 << 20
BROKEN = (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
"""What ends a connection that may be made once more."""
BUSY = (429, 500, 502, 503, 504)


def fetch(url: str, target: Path, progress: Progress, sha256: str | None = None) -> Path:
    """The file at `url` as `target`, fetched now if it is not there.

    Of several processes that ask at a time one fetches. A connection that breaks is made again, a few times, and goes
    on where it was, as does a later call. Raises DataError: no network, no such file, a web page instead of the file,
    a file that is not the one `sha256` names (nothing of it is kept), a full disk.
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url}: only http and https addresses are fetched")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            part = target.with_name(f"{target.name}.part")
            try:
                receive(url, part, lambda done, total: progress(done // MIB, total // MIB, f"MiB of {target.name}"))
            except urllib.error.URLError as error:
                raise DataError(f"{url} cannot be fetched: {reason_of(error)}") from error
            except OSError as error:
                raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
            check_new(part, sha256, url)
            part.replace(target)
            tag_of(part).unlink(missing_ok=True)
    return target


def receive(url: str, part: Path, told: Callable[[int, int], None]) -> None:
    """All of the file into `part`, over as many connections as it takes, up to ATTEMPTS without a byte more."""
    failures = 0
    while True:
        before = size_of(part)
        try:
            go_on(url, part, told)
            return
        except BROKEN as error:
            failures = 0 if size_of(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise DataError(
                    f"{url}: the connection broke {failures} times ({error or type(error).__name__}); "
                    f"{size_of(part):,} bytes are kept, and the same command goes on from there"
                ) from error
            time.sleep(PAUSE_SECONDS * failures)


def go_on(url: str, part: Path, told: Callable[[int, int], None]) -> None:
    """One connection, which adds what is missing to `part`, or begins it anew where the server has another version."""
    had, tag = size_of(part), tag_of(part)
    request = urllib.request.Request(url, headers={"User-Agent": "prism-sweeps", "Accept-Encoding": "identity"})
    if had and tag.exists():
        request.add_header("Range", f"bytes={had}-")
        request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code in BUSY:
            raise ConnectionError(reason_of(error)) from error
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink(missing_ok=True)  # of no use to this server: once more, from the start
        raise ConnectionError("the server has no such part") from error
    with answer:
        refuse_page(answer, url, part)
        goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if goes_on and not (answer.headers.get("Content-Range") or f"bytes {had}-").startswith(f"bytes {had}-"):
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another part than was asked for")
        start = had if goes_on else 0
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        tag.unlink(missing_ok=True)
        if version and not version.startswith("W/"):
            tag.write_text(version, encoding="utf-8")
        copy(answer, part, start, None if answer.length is None else start + answer.length, told)


def copy(
    answer: http.client.HTTPResponse, part: Path, start: int, total: int | None, told: Callable[[int, int], None]
) -> None:
    """What the server sends, from byte `start` of the file on. Raises ConnectionError where it stops too early."""
    done = start
    with part.open("ab" if start else "wb") as stream:
        while chunk := answer.read(CHUNK):
            stream.write(chunk)
            done += len(chunk)
            told(done, total or done)
    if total is not None and done != total:
        raise ConnectionError(f"{done:,} of {total:,} bytes came")


def refuse_page(answer: http.client.HTTPResponse, url: str, part: Path) -> None:
    """Raises DataError for a web page, which is what a file's host sends instead where it wants to be asked by hand."""
    if answer.headers.get_content_type() == "text/html":
        name = part.name.removesuffix(".part")
        raise DataError(
            f"{url} gives a web page instead of {name}: open it in a browser, save the file, and give its folder: "
            "--from FOLDER"
        )


def reason_of(error: urllib.error.URLError) -> str:
    """Why, in words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    return f"{getattr(error.reason, 'strerror', None) or error.reason} (no network?)"


def check_sha256(path: Path, sha256: str | None, name: str) -> None:
    """Raises DataError for a file that is not the one `sha256` names, and for a folder, which has none."""
    if sha256 and path.is_dir():
        raise DataError(f"{name} is a folder; `sha256` can be declared of a file alone")
    found = sha256 and digest(path)
    if sha256 and found != sha256.lower():
        raise DataError(
            f"{name} is not the file that was declared: its sha256 is {found}, it should be {sha256}. Either it was "
            "changed where it is published, or on the way here"
        )


def check_new(path: Path, sha256: str | None, name: str) -> None:
    """The same for a file that has just come; a wrong one is not kept."""
    try:
        check_sha256(path, sha256, name)
    except DataError:
        path.unlink()
        raise


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """In bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def tag_of(part: Path) -> Path:
    """Where the server's name of this version is kept."""
    return part.with_name(f"{part.name}.tag")
