"""Downloads from a server on this machine: interrupted, changed, wrong, missing."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from official_files import CASES, put, put_zip

from prism_sweeps import cli
from prism_sweeps.config.compose import design_space
from prism_sweeps.config.errors import DataError
from prism_sweeps.config.suite import OfficialFile
from prism_sweeps.data import downloading
from prism_sweeps.data.downloading import fetch
from prism_sweeps.data.indexes.finding import Place, bring
from prism_sweeps.evaluation.benchmarks import read_index

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Files in memory; `cut` are the numbers of bytes after which the next connections break."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/file": BODY}
        self.cut: list[int] = []
        self.tag: str | None = '"1"'
        self.kind, self.ranges, self.busy = "application/octet-stream", True, 0
        self.elsewhere, self.length = "", ""
        self.shift = 0
        """How far the parts it sends are from those it was asked for."""
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str = "/file") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        body = server.files.get(self.path.partition("?")[0])
        if server.elsewhere:
            self.send_response(302)
            self.send_header("Location", server.elsewhere)
            self.end_headers()
            return
        if server.busy or body is None:
            server.busy = max(0, server.busy - 1)
            self.send_error(503 if body is not None else 404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if self.headers.get("If-Range") != server.tag:
            start = 0
        if start >= len(body) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        start += server.shift if start else 0
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", server.length or str(len(body) - start))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        part = body[start:]
        if server.cut:
            part = part[: server.cut.pop(0)]
            self.close_connection = True
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading, "PAUSE_SECONDS", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def quiet(done: int, total: int, note: str) -> None:
    pass


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_its_progress_told(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    server.files["/file"] = bytes(3 << 20)
    target = tmp_path / "deep/file.bin"
    assert fetch(server.url(), target, lambda *each: told.append(each)) == target
    assert target.read_bytes() == bytes(3 << 20)
    assert told[-1] == (3, 3, "MiB of file.bin")
    fetch(server.url(), target, quiet)
    assert len(server.asked) == 1
    assert left_in(target.parent) == ["file.bin"]


def test_a_connection_that_breaks_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.cut = [1000, 0, 200]
    fetch(server.url(), tmp_path / "f", quiet, SHA256)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", "bytes=1000-", "bytes=1200-"]
    assert (tmp_path / "f").read_bytes() == BODY
    assert left_in(tmp_path) == ["f"]


def test_a_part_that_was_not_asked_for_is_not_put_to_the_rest(server: Server, tmp_path: Path) -> None:
    server.cut, server.shift = [1000], 5
    fetch(server.url(), tmp_path / "f", quiet, SHA256)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", None]
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.cut = [700] + [0] * 10
    with pytest.raises(DataError, match=r"the connection broke 4 times .*700 bytes are kept, and the same command"):
        fetch(server.url(), tmp_path / "f", quiet)
    assert not (tmp_path / "f").exists()
    server.cut, server.asked = [], []
    fetch(server.url(), tmp_path / "f", quiet, SHA256)
    assert server.asked == [("/file", "bytes=700-")]


def test_two_versions_of_a_file_are_never_put_together(server: Server, tmp_path: Path) -> None:
    server.cut = [700] + [0] * 10
    with pytest.raises(DataError, match="broke"):
        fetch(server.url(), tmp_path / "f", quiet)
    server.cut, server.tag, server.files["/file"] = [], '"2"', BODY[::-1]
    fetch(server.url(), tmp_path / "f", quiet)
    assert (tmp_path / "f").read_bytes() == BODY[::-1]


@pytest.mark.parametrize("able", [{"tag": None}, {"ranges": False}])
def test_a_server_that_cannot_go_on_begins_anew(server: Server, tmp_path: Path, able: dict[str, Any]) -> None:
    for name, value in able.items():
        setattr(server, name, value)
    server.cut = [1000]
    fetch(server.url(), tmp_path / "f", quiet, SHA256)
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_part_longer_than_the_file_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY * 2)
    (tmp_path / "f.part.tag").write_text('"1"')
    fetch(server.url(), tmp_path / "f", quiet, SHA256)
    assert [wanted for _, wanted in server.asked] == [f"bytes={2 * len(BODY)}-", None]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = 2
    fetch(server.url(), tmp_path / "f", quiet, SHA256)
    server.busy = 9
    with pytest.raises(DataError, match=r"broke 4 times \(the server says 503"):
        fetch(server.url(), tmp_path / "g", quiet)


def test_a_file_with_another_hash_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"its sha256 is {SHA256}, it should be {'0' * 64}"):
        fetch(server.url(), tmp_path / "f", quiet, "0" * 64)
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "f.part").exists()


def test_no_such_file_no_server_no_web_address(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/none cannot be fetched: the server says 404 Not Found$"):
        fetch(server.url("/none"), tmp_path / "f", quiet)
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DataError, match="gives a web page instead of f: open it in a browser"):
        fetch(server.url(), tmp_path / "f", quiet)
    with pytest.raises(DataError, match=r"Connection refused \(no network\?\)"):
        fetch("http://127.0.0.1:9/f", tmp_path / "f", quiet)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        with pytest.raises(DataError, match="only http and https"):
            fetch(url, tmp_path / "f", quiet)
    assert left_in(tmp_path) == []


def test_a_server_that_leads_into_this_machine_is_not_followed(server: Server, tmp_path: Path) -> None:
    server.elsewhere = "file:///etc/passwd"
    with pytest.raises(DataError, match=r"cannot be fetched: the server says 302 .*file:///etc/passwd"):
        fetch(server.url(), tmp_path / "f", quiet)
    assert left_in(tmp_path) == []


def test_a_length_that_is_none_is_no_length(server: Server, tmp_path: Path) -> None:
    server.length, server.cut = "many", [len(BODY)]
    assert fetch(server.url(), tmp_path / "f", quiet, SHA256).read_bytes() == BODY


def test_those_that_ask_together_fetch_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server.url(), tmp_path / "f", quiet, SHA256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1


# ---- through the command


def declared(at: Path, server: Server, name: str) -> list[str]:
    """The command for `name` with this server's addresses, and the counts of its case."""
    case = CASES[name]
    origin = design_space().files.load("benchmark", name).benchmark.origin
    here = {
        kind: {key: {"url": server.url(f"/{file.archive or file.path}")} for key, file in origin[kind].items()}
        for kind in ("files", "images")
    }
    content = {"defaults": [name, "_self_"], "name": f"my-{name}", "index": f"my-{name}"}
    put(at, f"conf/benchmark/my-{name}.yaml", content | {"origin": {"counts": case.counts} | here})
    design_space.cache_clear()
    return [
        "data", "prepare", f"my-{name}", "--store", str(at / "store"), "--config-dir", str(at / "conf"),
    ]  # fmt: skip


def test_archives_are_fetched_unpacked_and_removed(server: Server, tmp_path: Path) -> None:
    CASES["gqa"].write(tmp_path / "official")
    command = declared(tmp_path, server, "gqa")
    for name in ("questions1.2.zip", "images.zip"):
        server.files[f"/gqa/{name}"] = (tmp_path / "official/gqa" / name).read_bytes()
    assert cli.main(command) == 0
    rows = [json.loads(line) for line in (tmp_path / "store/data/my-gqa/index.jsonl").read_text().splitlines()]
    assert [{key: value for key, value in row.items() if key != "id"} for row in rows] == CASES["gqa"].rows
    downloads = tmp_path / "store/data/downloads/gqa"
    assert left_in(downloads) == ["images", "testdev_balanced_questions.json"]
    assert len(server.asked) == 2
    (tmp_path / "store/data/my-gqa/index.jsonl").unlink()
    assert cli.main(command) == 0  # from what was fetched before
    assert len(server.asked) == 2
    assert len(read_index(tmp_path / "store/data/my-gqa")) == 2


def test_what_another_process_has_unpacked_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    file = OfficialFile(path="coco/val2014", archive="coco/val2014.zip", url=server.url("/val2014.zip"))
    (tmp_path / "coco/val2014").mkdir(parents=True)  # since it was looked for
    assert bring(file, None, Place(tmp_path), quiet) == tmp_path / "coco/val2014"
    assert server.asked == []


def test_what_a_folder_lacks_is_fetched_if_asked(server: Server, tmp_path: Path) -> None:
    CASES["gqa"].write(tmp_path / "official")
    command = declared(tmp_path, server, "gqa")
    server.files["/gqa/questions1.2.zip"] = (tmp_path / "official/gqa/questions1.2.zip").read_bytes()
    (tmp_path / "official/gqa/questions1.2.zip").unlink()
    assert cli.main([*command, "--from", str(tmp_path / "official")]) == 2
    assert server.asked == []
    assert cli.main([*command, "--from", str(tmp_path / "official"), "--download"]) == 0
    assert [path for path, _ in server.asked] == ["/gqa/questions1.2.zip"]
    assert (tmp_path / "official/gqa/images.zip").exists()


def test_a_download_that_fails_says_how_to_do_without(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = declared(tmp_path, server, "gqa")
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert "the server says 404 Not Found" in told
    assert "images.zip" in told
    assert "prism data prepare my-gqa --from FOLDER" in told
    put_zip(tmp_path, "x.zip", {"../evil": b"", "testdev_balanced_questions.json": b"{}"})
    server.files["/gqa/questions1.2.zip"] = (tmp_path / "x.zip").read_bytes()
    assert cli.main(command) == 2
    assert "would lie outside" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "store/data/my-gqa").exists()
