"""A training job's curve in MLflow while it runs, where studies name a tracking server.

    python -m prism_sweeps.tracking.live STORE FINGERPRINT ATTEMPT STUDY...

`start` begins this process beside the job and forgets it: nothing the server does is felt by training. It reads the
record, sends what the importer would send, to the same runs, and ends when the attempt has; whatever it could not
send is the importer's. An embedded SQLite file is never written live: there many writers wait for each other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import StoreError
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.mlflow_client import Point, StoredRun, client_for, is_server
from prism_sweeps.tracking.mlflow_import import first_line, one_importer
from prism_sweeps.tracking.mlflow_runs import Curve, Run, cell_run, milliseconds, stage_run
from prism_sweeps.tracking.mlflow_writing import (
    CELL,
    SENT,
    Experiment,
    current_run,
    describe,
    open_experiment,
    send_curve,
    stored_runs,
    write_run,
)
from prism_sweeps.tracking.records import JobRecord, Store

LOG = logging.getLogger(__name__)

LINE = "%(asctime)s %(levelname)s: %(message)s"
SECONDS = 3.0
"""Between two looks at the record."""
LONGEST_WAIT = 30.0
"""Of those that double while the server does not answer."""
LAST_SECONDS = 120.0
"""How long it goes on trying after the attempt has ended."""
NICE = 10
"""Training gets ten times as much of a processor that both want. With more, runs would be long in the making, and with
them the lock that others wait for."""
LIVE_CELLS = 16
"""A stage that more cells share is shown live in so many of them."""
BYTES = 1 << 20
"""Of rows, sent before more are read: what waits for a server that is away waits on the disk."""
REQUEST_SECONDS = 10.0


def start(store: Store, fingerprint: str) -> None:
    """Begins to follow the attempt that has begun, if a study wants that. A warning in the log where that fails."""
    record = store.job(fingerprint)
    try:
        studies = live_studies(store, fingerprint)
        if not studies:
            return
        attempt = record.state()["attempts"]
        command = [sys.executable, "-m", __name__, str(store.root), fingerprint, str(attempt), *studies]
        with (record.path / "live.log").open("wb") as log:
            # Not in the job's session: what stops the job lets this send what is left. Nor with its stdout: who reads
            # that would wait for this, too.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except (StoreError, OSError) as error:
        LOG.warning("the curve is not shown live: %s", error)
        return
    threading.Thread(target=process.wait, name="live", daemon=True).start()  # leaves no zombie


def live_studies(store: Store, fingerprint: str) -> list[str]:
    """Names of the studies that have this job and a tracking server."""
    found = []
    for name in store.studies():
        text = (store.study(name).path / "plan.json").read_bytes()
        # Plans of a thousand cells take long to parse.
        if fingerprint.encode() in text:
            plan = store.study(name).plan()
            tracking = plan.get("tracking", {})
            if fingerprint in plan["jobs"] and tracking.get("mlflow") and is_server(tracking.get("uri")):
                found.append(name)
    return found


def part_of(plan: dict[str, Any], fingerprint: str) -> Plan:
    """The plan of nothing but the first cells that train this job."""
    cells = [cell for cell in plan["cells"] if fingerprint in cell["train"]][:LIVE_CELLS]
    names = {name for cell in cells for name in (*cell["train"], *cell["evaluate"])}
    jobs = {name: job for name, job in plan["jobs"].items() if name in names}
    return Plan.from_plain({**plan, "cells": cells, "jobs": jobs})


@dataclass
class Tail:
    """The rows of a record from where the last reading ended, as points; `count` were read before."""

    record: JobRecord
    curve: Curve
    rewinds: int
    offset: int = 0
    count: int = 0

    def read(self) -> list[Point] | None:
        """Some of the next points, [] when there are none yet; None when the curve has been begun anew."""
        rows: list[dict[str, Any]] = []
        if self.record.metrics.exists():
            with self.record.metrics.open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read(BYTES)
            whole = data[: data.rfind(b"\n") + 1]
            rows = [json.loads(line) for line in whole.splitlines()]
            self.offset += len(whole)
        # What was read belongs to the count before only if that still stands.
        return self.curve.points(rows) if self.record.state()["rewinds"] == self.rewinds else None


@dataclass
class Feed:
    """One study's runs of the job, fed from its record."""

    store: Store
    study: str
    fingerprint: str
    experiment: Experiment | None = None
    tail: Tail | None = None
    sent: dict[str, int] = field(default_factory=dict)
    """Run -> points of the curve it has."""
    complete: bool = False
    failures: int = 0
    again: float = 0.0
    said: str = ""

    def turn(self, over: bool) -> None:
        """Sends what is new, unless the server is being left alone; `over`: nothing more will come."""
        if time.monotonic() < self.again:
            return
        try:
            self.send()
            if over and self.tail is not None:
                self.close()
        except Exception as error:  # MLflow raises what its backends raise; all of it may pass
            self.failed(error)
        else:
            self.failures, self.said = 0, ""

    def failed(self, error: Exception) -> None:
        """Leaves the server alone for a while; what it has by then it will be asked."""
        self.tail = None
        self.failures += 1
        wait = min(LONGEST_WAIT, SECONDS * 2 ** min(self.failures - 1, 10))
        self.again = time.monotonic() + wait * random.uniform(0.5, 1.0)
        text = f"{type(error).__name__}: {first_line(error)}"
        if text != self.said:
            LOG.warning("study %s: %s", self.study, text)
            self.said = text

    def send(self) -> None:
        """Everything there is now."""
        if self.tail is None:
            self.tail = self.open()
        assert self.experiment is not None
        while points := self.tail.read():
            for run, sent in self.sent.items():
                self.sent[run] = send_curve(self.experiment.client, run, points, sent, self.tail.count)
            self.tail.count += len(points)
        if points is None:
            self.tail = None  # the next turn finds, or makes, the runs of the new curve

    def open(self) -> Tail:
        """Finds or creates the runs of the curve as it is now."""
        record = self.store.job(self.fingerprint)
        with one_importer(self.store, LAST_SECONDS):
            state = record.state()
            self.sent = {}
            for experiment, child, stored, parent in self.children(state):
                run = current_run(experiment, child, stored, parent)
                describe(experiment.client, child, run, parent)
                self.sent[run.id] = int(run.tags.get(SENT, 0))
                self.experiment = experiment
        return Tail(record, Curve(milliseconds(state["started"])), state["rewinds"])

    def close(self) -> None:
        """Leaves the runs as an import would."""
        with one_importer(self.store, LAST_SECONDS):
            for experiment, child, stored, parent in self.children(self.store.job(self.fingerprint).state()):
                write_run(experiment, child, stored, parent)
        self.complete = True

    def children(self, state: dict[str, Any]) -> Iterator[tuple[Experiment, Run, StoredRun | None, str]]:
        """The job's run in each of its cells, what is stored of it, and the run of the cell, which is written.

        `state` is the job's.
        """
        plan = part_of(self.store.study(self.study).plan(), self.fingerprint)
        uri = str(plan.tracking.uri)
        experiment = open_experiment(client_for(uri, REQUEST_SECONDS, 1), self.store, self.study, uri)
        states = {name: self.store.job(name).state() for name in plan.jobs} | {self.fingerprint: state}
        for cell in plan.cells:
            stored = stored_runs(experiment, f"tags.`{CELL}` = '{cell.id}'")
            run = cell_run(cell, plan, states)
            parent, _ = write_run(experiment, run, stored.get(run.key), None)
            child = stage_run(cell, plan.jobs[self.fingerprint], state, self.store.job(self.fingerprint))
            yield experiment, child, stored.get(child.key), parent


def follow(store: Store, fingerprint: str, attempt: int, studies: Sequence[str]) -> None:
    """Until the attempt has ended and MLflow has all of it, or has had its time."""
    record = store.job(fingerprint)
    feeds = [Feed(store, study, fingerprint) for study in studies]
    end = math.inf
    while True:
        over = not at_work(record, attempt)
        for feed in feeds:
            feed.turn(over)
        feeds = [feed for feed in feeds if not feed.complete]
        if not feeds:
            return
        end = min(end, time.monotonic() + LAST_SECONDS) if over else end
        if time.monotonic() > end:
            LOG.warning("%s: what is missing is brought by the next import", ", ".join(feed.study for feed in feeds))
            return
        time.sleep(SECONDS)


def at_work(record: JobRecord, attempt: int) -> bool:
    """Whether this very attempt is under way."""
    state = record.state()
    return bool(state["status"] == "running" and state["attempts"] == attempt)


def step_back() -> None:
    """Leaves processors to training."""
    os.nice(NICE)
    with contextlib.suppress(OSError):  # where sessions share processors as groups, nice counts within one alone
        Path("/proc/self/autogroup").write_text(str(NICE))


def main(arguments: list[str]) -> None:
    root, fingerprint, attempt, *studies = arguments
    step_back()
    logging.basicConfig(level=logging.INFO, format=LINE)
    follow(Store.open(Path(root)), fingerprint, int(attempt), studies)


if __name__ == "__main__":
    main(sys.argv[1:])
