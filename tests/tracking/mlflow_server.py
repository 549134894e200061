"""A real `mlflow server` on PostgreSQL, and a proxy before it that can fail in the ways servers and networks do.

PostgreSQL's programs are looked for in PATH and where Debian puts them (`make postgres` installs them).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

START_SECONDS = 180
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "20",
}


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def postgres(bin_folder: Path) -> Iterator[str]:
    """A new PostgreSQL; its SQLAlchemy address."""
    # Its socket's path has to be short, and its user to reach it; as root it does not run.
    folder = Path(tempfile.mkdtemp(prefix="prism-pg-", dir="/tmp"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    start = [bin_folder / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=120"
    quiet = {"stdout": subprocess.DEVNULL, "check": True, "cwd": folder}
    subprocess.run([*as_user, bin_folder / "initdb", "-D", data, "-U", "prism", "-A", "trust"], **quiet)
    subprocess.run([*as_user, *start, "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg2://prism@/postgres?host={folder}"
    finally:
        subprocess.run([*as_user, *start, "-m", "immediate", "stop"], **(quiet | {"check": False}))
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Server:
    """`mlflow server` on one port, as often as it is started."""

    backend: str
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend, "--workers", "2"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--artifacts-destination", str(self.folder)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                env=os.environ | ENVIRONMENT,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.3)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """To the server and all its workers."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target`, unless its `mode` says otherwise.

    pass; a number: answers with that status; hang: takes a request and never answers; lost: the server does what is
    asked, and its answer never arrives.
    """

    daemon_threads = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.mode, self.refused = target, "pass", 0
        self.released = threading.Event()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mode = self.server.mode
        if mode != "pass":
            self.server.refused += 1
        if mode == "hang":
            self.server.released.wait()
            self.close_connection = True
            return
        status, kind, content = (int(mode), "text/plain", b"no") if mode.isdigit() else self.passed_on(body)
        if mode == "lost":
            self.close_connection = True
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def passed_on(self, body: bytes) -> tuple[int, str, bytes]:
        there = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        try:
            there.request(self.command, self.path, body, dict(self.headers) | {"Connection": "close"})
            answer = there.getresponse()
            return answer.status, answer.headers.get("Content-Type", "application/json"), answer.read()
        except OSError:
            return 502, "text/plain", b"nobody there"
        finally:
            there.close()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """A proxy that is served by a thread."""
    with Proxy(target) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
