"""Run records: what ran, how far it got and what came out, as plain files that are true after any crash.

    <root>/store.json             {"version": 1}
    <root>/jobs/<fingerprint>/    config.yaml state.json metrics.jsonl predictions.jsonl checkpoints/ weights/ log lock
                                  heartbeat, while somebody works on it; answers, see tracking/answers.py
    <root>/studies/<name>/        plan.json

Whoever works on a job holds an exclusive `flock` on its `lock`; the kernel lets go of it when the process dies, so a
record that says running while nobody holds the lock is one that was killed, and is read as interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.config.names import NAME, check_study_name
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job
from prism_sweeps.tracking.files import (
    UMASK,
    append_rows,
    clock_of,
    explained,
    make_folder,
    read_json,
    read_rows,
    sync_folder,
    try_lock,
    write_atomic,
)
from prism_sweeps.tracking.provenance import config_text, source_commit
from prism_sweeps.tracking.studies import StudyRecord

STORE_VERSION = 1
SILENT_SECONDS = 30.0
"""Without a sign of life, after which a process on another machine counts as gone."""
LEFTOVERS = ("weights.tmp-*", ".*.tmp", "failure-*")
"""Of attempts that a crash ended."""
NEW_STATE: dict[str, Any] = {
    "status": "new",
    "attempts": 0,
    "started": None,
    "finished": None,
    "seconds": 0.0,
    "cpu_seconds": 0.0,
    "gpu_seconds": 0.0,
    "host": None,
    "pid": None,
    "commit": None,
    "error": None,
    "final": False,
    "failures": 0,
    "failed_on": [],
    "result": None,
    "rewinds": 0,
}

Report = Callable[[int, int, str], None]
"""Progress of a job: (units done, units in total, note such as `loss 1.23`)."""


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """A job was asked to stop, wrote its checkpoint and can be gone on with."""


class JobBusy(StoreError):  # noqa: N818 - it is a state of affairs, not an error
    """Another live process is working on this job."""


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of records; `data` is where prepared data live."""

    root: Path
    data: Path

    @classmethod
    def open(cls, root: Path, data: Path | None = None) -> Store:
        """The store in `root`, created on first use. Raises StoreError for one that a newer version wrote."""
        root = Path(root).expanduser().absolute()
        stamp = root / "store.json"
        if stamp.exists():
            check_version(stamp)
        else:
            make_folder(root)
            write_atomic(stamp, json.dumps({"version": STORE_VERSION}) + "\n")
        return cls(root, root / "data" if data is None else Path(data).expanduser().absolute())

    def job(self, fingerprint: str) -> JobRecord:
        """The record of one job, whether it exists yet or not."""
        if not NAME.fullmatch(fingerprint):
            raise ConfigError(f"'{fingerprint}' is not a job fingerprint (16 hexadecimal digits)")
        return JobRecord(self.root / "jobs" / fingerprint)

    def study(self, name: str) -> StudyRecord:
        """The record of one study. Raises ConfigError when `name` could lead out of the store."""
        check_study_name(name)
        return StudyRecord(name, self.root / "studies" / name)

    def studies(self) -> list[str]:
        """Names of the studies that have a plan here."""
        folder = self.root / "studies"
        return sorted(plan.parent.relative_to(folder).as_posix() for plan in folder.rglob("plan.json"))


def check_version(stamp: Path) -> None:
    """Raises StoreError when the store was written by a version whose records this one cannot read."""
    version = read_json(stamp, "restore it, or use another folder as the store").get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise StoreError(f"{stamp} has no version number; it should be {json.dumps({'version': STORE_VERSION})}")
    if version > STORE_VERSION:
        raise StoreError(
            f"the store {stamp.parent} has version {version}, this prism-sweeps reads up to version {STORE_VERSION}; "
            "upgrade prism-sweeps, or use another store (--store FOLDER)"
        )


@dataclasses.dataclass
class JobRecord:
    """One job's folder. One process writes at a time (inside `claim`); anyone may read."""

    path: Path
    _attempt: tuple[float, float] | None = dataclasses.field(default=None, repr=False)
    """Wall clock and CPU seconds at the start of this process's attempt."""

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def answers(self) -> Path:
        """Of an evaluation: where its answers are kept, see `tracking.answers`."""
        return self.path / "answers"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def heartbeat(self) -> Path:
        return self.path / "heartbeat"

    # ---- state

    def state(self) -> dict[str, Any]:
        """Status and times of the job: status new | running | done | failed | interrupted. Raises StoreError."""
        state = self._written_state()
        if state["status"] == "running" and not self.busy():
            # Its process may have finished between the two looks.
            state = self._written_state()
            if state["status"] == "running":
                state["status"] = "interrupted"
        return state

    def _written_state(self) -> dict[str, Any]:
        path = self.path / "state.json"
        if not path.exists():
            return dict(NEW_STATE)
        return NEW_STATE | read_json(path, f"remove {path} to run the job again")

    def _write_state(self, state: dict[str, Any]) -> None:
        write_atomic(self.path / "state.json", json.dumps(state, indent=1, ensure_ascii=False) + "\n")

    def begin(self, job: Job, engine: Engine) -> None:
        """Starts an attempt: writes the config, clears what a crash left, and marks the job running."""
        self._clear_leftovers()
        write_atomic(self.config, config_text(job, engine))
        before = self._written_state()
        if before["status"] == "running":
            before["seconds"] += self._seconds_of_killed(before)
            # Its last rows may have been seen without having reached the disk, see truncate_metrics.
            before["rewinds"] |= 1
        self._attempt = (time.time(), cpu_clock())
        self._write_state(
            before
            | {
                "status": "running",
                "attempts": before["attempts"] + 1,
                "started": before["started"] or self._attempt[0],
                "attempt_started": self._attempt[0],
                "finished": None,
                "error": None,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "commit": source_commit(),
                "kind": job.kind,
                "title": job.title,
            }
        )

    def finish(self, result: dict[str, Any]) -> None:
        """Ends the attempt well; `result` is what the job found (JSON-able)."""
        self._end("done", result=result, error=None)

    def fail(self, error: str, final: bool = False, host: str | None = None) -> None:
        """Ends the attempt badly; the last checkpoint stays. `final`: trying again cannot help.

        `host`: the node it failed on, where that is not the first process's; "" where nobody knows which of several.
        """
        make_folder(self.path)
        state = self._written_state()
        where = [*state["failed_on"], [state["host"] if host is None else host, time.time()]]
        self._end("failed", error=error, final=final, failures=state["failures"] + 1, failed_on=where)

    def mark(self) -> str:
        """How far the job is, as text that changes when it gets further for good."""
        newest = max((path.name for path in self.checkpoints.glob("step-*")), default="no checkpoint")
        answers = sum(file.stat().st_size for file in self.answers.glob("*.jsonl"))
        return f"{newest}, {answers} bytes of answers"

    def count_stall(self, mark: str) -> int:
        """Notes that an attempt ended at this mark; returns how many in a row have."""
        state = self._written_state()
        before = state.get("stalled") or ["", 0]
        count = before[1] + 1 if before[0] == mark else 1
        self._write_state(state | {"stalled": [mark, count]})
        return count

    def forgive(self) -> None:
        """Forgets failures, for somebody who wants it tried again."""
        state = self._written_state()
        if state["failures"] or state["final"]:
            self._write_state(state | {"failures": 0, "final": False})

    def interrupt(self) -> None:
        """Ends the attempt half-way; the next one goes on from the last checkpoint."""
        self._end("interrupted")

    def put_down_failure(self, rank: int, text: str) -> None:
        """Keeps why a process other than the first, which writes the record, has failed."""
        write_atomic(self.path / f"failure-{rank}", f"{socket.gethostname()}\n{text}")

    def failure_of_others(self) -> tuple[str, str] | None:
        """What such a process has put down in this attempt, and its node."""
        found = sorted(self.path.glob("failure-*"))
        if not found:
            return None
        host, _, text = found[0].read_text(encoding="utf-8").partition("\n")
        return text, host

    def _end(self, status: str, **fields: Any) -> None:
        self.sync_metrics()
        state = self._written_state()
        now = time.time()
        if self._attempt is not None:
            state["seconds"] += max(0.0, now - self._attempt[0])
            state["gpu_seconds"] += max(0.0, now - self._attempt[0]) if on_gpu() else 0.0
            state["cpu_seconds"] += max(0.0, cpu_clock() - self._attempt[1])
            self._attempt = None
        self._write_state(state | {"status": status, "finished": now} | fields)
        self.heartbeat.unlink(missing_ok=True)

    def _seconds_of_killed(self, state: dict[str, Any]) -> float:
        """How long an attempt that never ended was seen alive: from its start to its last write."""
        files = (self.log, self.metrics, self.predictions, self.heartbeat)
        written = [path.stat().st_mtime for path in files if path.exists()]
        return max(0.0, max(written, default=0.0) - (state.get("attempt_started") or float("inf")))

    def _clear_leftovers(self) -> None:
        for leftover in chain(*map(self.path.glob, LEFTOVERS)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    # ---- ownership

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Makes this process the only one that works on the job. Raises JobBusy when another live one does."""
        make_folder(self.path)
        with explained("lock", self.path / "lock", "nothing was changed"):
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # `busy` holds the lock, shared, for an instant: a first refusal may come from a reader.
            if not any(try_lock(descriptor, fcntl.LOCK_EX, pause) for pause in (0.0, 0.01, 0.05, 0.1)):
                state = self._written_state()
                raise JobBusy(f"job {self.fingerprint} is being worked on by process {state['pid']} on {state['host']}")
            self._refuse_while_it_beats()
            yield
        finally:
            os.close(descriptor)

    def _refuse_while_it_beats(self) -> None:
        """Some shared file systems keep locks to each machine; there a heartbeat tells of a process on another one."""
        state = self._written_state()
        if state["status"] == "running" and state["host"] != socket.gethostname():
            age = self.silence()
            if age is not None and age < SILENT_SECONDS:
                raise JobBusy(f"job {self.fingerprint} was alive on {state['host']} {age:.0f} s ago")

    def beat(self, done: int, total: int, text: str, still: float = 0.0) -> None:
        """Leaves a sign of life that says how far the job is, and for how many seconds it has been there.

        Losing one in a crash does no harm.
        """
        temporary = self.heartbeat.with_name(f".heartbeat.{os.getpid()}.tmp")
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        content = {"done": done, "total": total, "text": text, "still": round(still), **who}
        with explained("write", self.heartbeat, "the job goes on"):
            temporary.write_text(json.dumps(content), encoding="utf-8")
            temporary.replace(self.heartbeat)

    def last_beat(self) -> dict[str, Any] | None:
        """done, total, text, host and pid of the last sign of life; None where nobody works on the job."""
        try:
            return read_json(self.heartbeat, "it is written anew in a moment") if self.heartbeat.exists() else None
        except StoreError:  # replaced or removed between two looks
            return None

    def silence(self, now: float | None = None) -> float | None:
        """Seconds since the last sign of life, by the clock of the file system: those of machines may differ.

        `now`: what it shows, where that is known already.
        """
        try:
            return max(0.0, (clock_of(self.path) if now is None else now) - self.heartbeat.stat().st_mtime)
        except FileNotFoundError:
            return None

    def busy(self) -> bool:
        """Whether a live process holds the claim."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(descriptor, fcntl.LOCK_SH, 0.0)
        finally:
            os.close(descriptor)

    # ---- what it writes as it goes

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one row, which has a `step`, to the curves."""
        append_rows(self.metrics, [row], durable=False)

    def sync_metrics(self) -> None:
        """Makes all rows so far durable, before something that counts on them is."""
        if self.metrics.exists():
            with explained("write", self.metrics, "the rows already in it are kept"), self.metrics.open("rb") as stream:
                os.fsync(stream.fileno())

    def truncate_metrics(self, step: int) -> None:
        """Drops rows beyond `step`: they belong to work that is about to be done again.

        The state counts it, once before (or when an attempt begins after a killed one) and once after: while `rewinds`
        stays the same, rows are only ever added or, where it is odd, only dropped. So who copies the curve elsewhere
        knows when to begin anew, whatever has crashed.
        """
        rows = self.read_metrics()
        kept = [row for row in rows if row["step"] <= step]
        rewinds = self._written_state()["rewinds"]
        if len(kept) == len(rows) and rewinds % 2 == 0:
            return
        self._write_state(self._written_state() | {"rewinds": rewinds | 1})
        write_atomic(self.metrics, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        self._write_state(self._written_state() | {"rewinds": (rewinds | 1) + 1})

    def read_metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.metrics)

    def curve(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The state, and the rows there are at least in that state: all of them once it is done. Raises StoreError."""
        while True:
            state, rows = self.state(), self.read_metrics()
            if self._written_state()["rewinds"] == state["rewinds"]:
                return state, rows

    def write_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Puts down all scored answers at once."""
        write_atomic(self.predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def read_predictions(self) -> list[dict[str, Any]]:
        return read_rows(self.predictions)

    @contextlib.contextmanager
    def writing_weights(self) -> Iterator[Path]:
        """A folder to write weights into, which becomes `weights` when the block ends well and vanishes otherwise."""
        make_folder(self.path)
        folder = Path(tempfile.mkdtemp(dir=self.path, prefix="weights.tmp-"))
        try:
            with explained("write", self.weights, "checkpoints are kept; make room and run the job again"):
                yield folder
                folder.chmod(0o777 & ~UMASK)
                for file in folder.iterdir():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
                sync_folder(folder)
                if self.weights.exists():
                    # os.replace refuses a folder that is not empty; here an attempt died after this very step.
                    shutil.rmtree(self.weights)
                folder.replace(self.weights)
                sync_folder(self.path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def cpu_clock() -> float:
    """CPU seconds of this process, all threads and ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def on_gpu() -> bool:
    """Whether this process has used a CUDA device. A process that has not imported torch has not."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
