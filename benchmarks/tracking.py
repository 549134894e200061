"""What live logging costs training: the same nano stage with no server, a healthy one, and one that never answers.

    python benchmarks/tracking.py [--rounds 5] [--steps 300] [--server http://HOST:PORT]

Each round trains `nano/axes`' alignment three times, in turn, each in a process of its own, as `prism` does it; the
order changes with the round. Ratios are of the median seconds of a step, with a server / without, so 1 is free; then
of the seconds of all steps. Told besides: how long the process stays after its job is done, points that MLflow had when
the job was, and what a follower costs the machine. Without `--server` one is started on PostgreSQL, as in the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from prism_sweeps.planning.plan import Plan, make_plan
from prism_sweeps.tracking.records import JobRecord, Store

WARM = 10
"""Steps that are not counted."""
SIDES = ("none", "healthy", "hanging")
TESTS = Path(__file__).parent.parent / "tests" / "tracking"


def plan_of(name: str, steps: int, uri: str | None) -> Plan:
    """One cell of one stage, whose job has its own name: the same work for each."""
    plan = make_plan(["nano/axes"], name=name)
    cell, (first, *_) = plan.cells[0], plan.cells[0].train
    job = replace(plan.jobs[first], fingerprint=name, spec=replace(plan.jobs[first].spec, max_steps=steps))
    tracking = replace(plan.tracking, mlflow=uri is not None, uri=uri)
    return replace(plan, cells=[replace(cell, train=[name], evaluate=[])], jobs={name: job}, tracking=tracking, axes={})


def train(root: Path, data: Path, name: str) -> None:
    """The job of the study `name`, here."""
    from prism_sweeps.launching.run_job import run_job

    store = Store.open(root, data)
    plan = Plan.from_plain(store.study(name).plan())
    run_job(plan.jobs[name], store, plan.engine, lambda *_: None, lambda: False)


def trained(store: Store, plan: Plan) -> dict[str, Any]:
    """Median seconds of a step, seconds of all, and how long the process stayed after the end of its job."""
    store.study(plan.study).write_plan(plan.to_plain())
    command = [sys.executable, __file__, "--train", str(store.root), str(store.data), plan.study]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    ended = time.time()
    record = store.job(plan.study)
    seconds = [row["seconds"] for row in record.read_metrics()][WARM:]
    stayed = ended - record.state()["finished"]
    return {"step": statistics.median(seconds), "all": sum(seconds), "stayed": stayed, "shown": shown(store, plan)}


def shown(store: Store, plan: Plan) -> int | None:
    """Points of the curve that the server has at this moment."""
    from prism_sweeps.tracking.mlflow_client import client_for
    from prism_sweeps.tracking.mlflow_writing import SENT, open_experiment, stored_runs

    if plan.tracking.uri is None or not plan.study.startswith("healthy"):
        return None
    experiment = open_experiment(client_for(plan.tracking.uri, 60, 1), store, plan.study, plan.tracking.uri)
    return max((int(run.tags.get(SENT, 0)) for run in stored_runs(experiment).values()), default=0)


def follower_cost(record: JobRecord, store: Store) -> dict[str, float]:
    """CPU seconds and MB of a follower that sends the whole curve anew, from start to end."""
    code = (
        "import re, sys, time; from prism_sweeps.tracking import live; live.main(sys.argv[1:]);"
        "print(time.process_time(), re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    study = store.study(record.fingerprint).name
    command = [sys.executable, "-c", code, str(store.root), record.fingerprint, "1", study]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return {"cpu": float(found[0]), "megabytes": int(found[1]) / 1024}


@contextlib.contextmanager
def server_at(given: str | None, folder: Path) -> Iterator[str]:
    if given:
        yield given
        return
    sys.path.insert(0, str(TESTS))
    from mlflow_server import Server, postgres, programs

    found = programs()
    if found is None:
        sys.exit("PostgreSQL is not installed (make postgres); or give --server")
    with postgres(found) as backend:
        server = Server(backend, folder)
        server.start()
        try:
            yield server.uri
        finally:
            server.stop()


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def compared(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    from prism_sweeps.data.prepare import ensure_dataset

    store = Store.open(folder / "store", options.data)
    for source in next(iter(plan_of("once", 1, None).jobs.values())).spec.sources.values():
        ensure_dataset(source.dataset, store.data, 1, lambda *_: None)
    trained(store, plan_of("warm-up", options.steps, None))  # features of the tower are kept from now on
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with server_at(options.server, folder) as healthy, hanging() as silent:
        where = {"none": None, "healthy": healthy, "hanging": silent}
        for turn in range(options.rounds):
            for side in SIDES[turn % 3 :] + SIDES[: turn % 3]:
                one = trained(store, plan_of(f"{side}-{turn}-{os.getpid()}", options.steps, where[side]))
                found[side].append(one)
                load = os.getloadavg()[0]
                print(f"round {turn + 1} {side}: " + told(one) + f"; load {load:.1f}", flush=True)
        again = plan_of(f"healthy-0-{os.getpid()}", options.steps, healthy)
        cost = follower_cost(store.job(again.study), store)
        print(f"a follower: {cost['cpu']:.2f} CPU s from start to end, {cost['megabytes']:.0f} MB")
    return found


def told(one: dict[str, Any]) -> str:
    shown = "" if one["shown"] is None else f", {one['shown']} points in MLflow when it was done"
    return f"{1000 * one['step']:.2f} ms a step, {one['all']:.2f} s in all, {one['stayed']:.2f} s to leave{shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--server", help="a tracking server of yours")
    parser.add_argument("--data", type=Path, help="prepared data sets, kept; by default they are made anew")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        root, data, name = options.train
        train(Path(root), Path(data), name)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = compared(Path(folder), options)
    ratios = {}
    for side in SIDES[1:]:
        for part in ("step", "all"):
            pairs = [one[part] / none[part] for one, none in zip(found[side], found["none"], strict=True)]
            print(f"{part}, {side} / none: {statistics.median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})")
            ratios[f"{side}_{part}"] = round(statistics.median(pairs), 3)
    print(json.dumps({"benchmark": "tracking", "ratios": ratios}))


if __name__ == "__main__":
    main()
