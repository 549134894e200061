"""A study whose jobs take no time, trainings of it in processes of their own, and what MLflow should hold of them."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from small_jobs import MODEL, STAGE

from prism_sweeps.config.schema import Engine, Source, Tracking
from prism_sweeps.config.schema import Store as StorePlace
from prism_sweeps.config.specs import EvaluationSpec, Job, StageSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking import live
from prism_sweeps.tracking.mlflow_writing import KEY
from prism_sweeps.tracking.records import JobRecord, Store

STEPS = 30
ALIGN = "a" * 16
DEADLINE = 400.0
"""Seconds, for what takes a few on an idle machine."""


def tune(letter: str) -> str:
    """The second stage of the cell of this letter."""
    return letter * 16


def a_plan(study: str = "nano/two", letters: str = "bc", uri: str | None = None) -> Plan:
    """Cells, named by letters, that share their align stage."""
    jobs: dict[str, Job] = {}
    cells = []
    jobs[ALIGN] = Job(ALIGN, "align: all", StageSpec("align", MODEL, STAGE, {"a": Source("x", "chat.json")}, seed=1))
    for letter in letters:
        resize = "naive" if letter == letters[0] else "crop"
        name = tune(letter)
        spec = StageSpec("finetune", MODEL, STAGE, {"a": Source("x", "chat.json")}, seed=1, parent=ALIGN)
        jobs[name] = Job(name, f"finetune: {resize}", spec, [ALIGN])
        scores = []
        for number, mark in enumerate(("pope", "refcoco+")):
            benchmark = Benchmark(mark, "marks/x", prompt="{question}", answer="generate", scorer="exact")
            job = Job(f"{letter}{number}".ljust(16, "0"), mark, EvaluationSpec(MODEL, benchmark, "real", name), [name])
            jobs[job.fingerprint] = job
            scores.append(job.fingerprint)
        config = {"resize": {"name": resize, "strategy": resize}, "seed": 1, "engine": {"precision": "fp32"}}
        overrides = {} if resize == "naive" else {"resize": resize}
        cells.append(
            PlannedCell(letter * 8, {"resize": resize}, overrides, 1, not overrides, config, [ALIGN, name], scores)
        )
    axes = {"resize": ["naive", "crop"]}
    return Plan(study, "small cells", axes, cells, jobs, Engine(), Tracking(uri=uri), StorePlace())


def planned(store: Store, plan: Plan) -> Plan:
    """The plan, written down."""
    store.study(plan.study).write_plan(plan.to_plain())
    return plan


def row(step: int, **more: float) -> dict[str, Any]:
    """Of a step, and of the time it happened to take."""
    return {"step": step, "loss": 4.0 / step, "seconds": random.uniform(0.1, 0.5), "grad_norm": math.nan, **more}


def run(store: Store, job: Job, result: dict[str, Any]) -> None:
    """The whole job, at once."""
    record = store.job(job.fingerprint)
    with record.claim():
        record.begin(job, Engine())
        if job.kind == "train":
            for step in range(1, STEPS + 1):
                record.append_metrics(row(step))
        record.finish(result)


def score(value: float) -> dict[str, Any]:
    return {"score": value, "standard_error": 1.5, "n": 40, "metrics": {"F1 (%)": 50.0}, "groups": {}}


def evaluate_all(store: Store, plan: Plan) -> None:
    for job in plan.jobs.values():
        if job.kind == "evaluate" and store.job(job.fingerprint).state()["status"] != "done":
            run(store, job, score(62.5))


def train(root: str, study: str, fingerprint: str, steps: int, pause: float) -> None:
    """A training followed live: half its steps, a wait for `<root>/go`, the other half."""
    store = Store.open(Path(root))
    job = Plan.from_plain(store.study(study).plan()).jobs[fingerprint]
    record = store.job(fingerprint)
    with record.claim():
        record.begin(job, Engine())
        live.start(store, fingerprint)
        for step in range(1, steps + 1):
            if step == steps // 2:
                wait_for(lambda: (store.root / "go").exists(), "go")
            record.append_metrics(row(step, accuracy=step / steps, **{"loss/other set": 1.0 / step}))
            time.sleep(pause)
        record.finish({"loss": 0.25})


def start_training(store: Store, plan: Plan, fingerprint: str, steps: int = 400) -> subprocess.Popen[bytes]:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, str(store.root), plan.study, fingerprint, str(steps), "0.001"]
    here = os.pathsep.join(sys.path)
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here})


def wait_for(ready: Callable[[], bool], what: str, training: subprocess.Popen[bytes] | None = None) -> None:
    """Raises TimeoutError on a machine where that will not come, and at once where the training has failed."""
    end = time.monotonic() + DEADLINE
    while not ready():
        if time.monotonic() > end or (training is not None and training.poll()):
            raise TimeoutError(what)
        time.sleep(0.1)


def followers(store: Store) -> list[int]:
    """Processes that follow jobs of this store."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if live.__name__ in words and str(store.root) in words:
            found.append(int(folder.name))
    return found


def stored(store: Store, study: str, uri: str) -> dict[str, Any]:
    """MLflow's runs of the study by key; a key with two runs is an error."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return {}
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = Counter(each.data.tags[KEY] for each in runs)
    assert set(keys.values()) <= {1}, keys
    return {each.data.tags[KEY]: each for each in runs}


def points(uri: str, run: Any) -> list[tuple[str, int, float, int]]:
    """All that MLflow holds of one run: metric, step, value, time."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    history = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    return sorted((point.key, point.step, point.value, point.timestamp) for point in history)


def curve_of(record: JobRecord) -> list[tuple[str, int, float]]:
    """What metrics.jsonl says, read without the code that is tested."""
    rows = [json.loads(line) for line in record.metrics.read_text().splitlines()] if record.metrics.exists() else []
    finite = [(key, each["step"], value) for each in rows for key, value in each.items() if math.isfinite(value)]
    return sorted(each for each in finite if each[0] != "step")


def assert_once(store: Store, plan: Plan, uri: str, whole: bool = True, fingerprints: Sequence[str] = ()) -> None:
    """Each point of each curve is in MLflow once, and nothing else is; not `whole`: it may lack the curve's end."""
    runs = stored(store, plan.study, uri)
    for cell in plan.cells:
        for name in fingerprints or cell.train:
            if name not in cell.train:
                continue
            found = [point for point in points(uri, runs[f"{cell.id}/{name}"]) if not point[0].startswith("total/")]
            steps = Counter(point[:2] for point in found)
            assert set(steps.values()) <= {1}, [each for each in steps.items() if each[1] > 1][:5]
            expected = curve_of(store.job(name))
            values = [point[:3] for point in found]
            assert values == expected if whole else set(values) <= set(expected)
    for run in runs.values():
        found = points(uri, run)
        assert len({point[:2] for point in found}) == len(found), run.data.tags[KEY]


def each_total(store: Store, plan: Plan, uri: str) -> Iterator[tuple[str, float]]:
    for key, run in stored(store, plan.study, uri).items():
        if "/" in key:
            yield key, run.data.metrics["total/loss"]


if __name__ == "__main__":
    place, named, job_name, count, between = sys.argv[1:]
    train(place, named, job_name, int(count), float(between))
