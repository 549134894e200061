"""Evaluations that are killed again and again, and gone on with by other numbers of processes and sizes of batches."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import CONTEXT
from tiny_evaluation import PARENT, benchmark, model_spec, tiny_vlm, write_benchmark

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import EvaluationSpec, Job
from prism_sweeps.launching.run_job import run_job
from prism_sweeps.launching.together import follow, quiet
from prism_sweeps.models.trained import save_trained
from prism_sweeps.tracking.records import JobRecord, Store
from prism_sweeps.training.world import Place, World

pytestmark = pytest.mark.slow
IMAGES, EACH = 60, 5
KINDS = {
    "generate": {"answer": "generate", "scorer": "exact", "max_new_tokens": 12},
    "choice": {"answer": "choice", "scorer": "pope", "choices": ["A", "B", "C", "D", "E", "none of these"]},
}


@dataclass(frozen=True)
class Attempt:
    """One go at the job: so many processes, with batches of this size."""

    processes: int
    batch: int


def job_of(kind: str) -> Job:
    return Job("c" * 16, kind, EvaluationSpec(model_spec(), benchmark(**KINDS[kind]), "real", PARENT), [PARENT])


def process(rank: int, attempt: Attempt, meeting: Path, root: Path, kind: str) -> None:
    """What each process of an attempt does."""
    torch.set_num_threads(1)
    world, job, store = None, job_of(kind), Store.open(root)
    engine = Engine(device="cpu", eval_batch=attempt.batch)
    if attempt.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=attempt.processes)
        world = World(Place(rank, attempt.processes), torch.device("cpu"), dist.new_group(backend="gloo"))
    if rank:
        follow({job.fingerprint: job}, store, engine, world)
    run_job(job, store, engine, quiet, lambda: False, world)
    if world is not None:
        world.told_by_first(None)
    os._exit(0)


def start(attempt: Attempt, root: Path, kind: str) -> list:
    meeting = root / f"meeting-{os.urandom(4).hex()}"
    started = [
        CONTEXT.Process(target=process, args=(rank, attempt, meeting, root, kind)) for rank in range(attempt.processes)
    ]
    for each in started:
        each.start()
    return started


def answers_in(record: JobRecord) -> int:
    return sum(path.read_bytes().count(b"\n") for path in record.answers.glob("*.jsonl"))


def kill_at(count: int, delay: float, victims: list, started: list, record: JobRecord) -> None:
    """SIGKILL for the `victims` once so many answers are there; the rest go on for a while."""
    until = time.monotonic() + 100
    while answers_in(record) < count and any(each.is_alive() for each in started):
        assert time.monotonic() < until
        time.sleep(0.001)
    time.sleep(delay)
    for each in victims:
        each.kill()
    for each in started:
        each.join(0.05)
        each.kill()
        each.join()


def new_store(root: Path) -> Store:
    store = Store.open(root)
    write_benchmark(store.data / "colours", IMAGES, EACH)
    save_trained(tiny_vlm(), store.job(PARENT).weights, ["projector", "llm"])
    return store


def assert_same_outcome(one: Store, other: Store) -> None:
    """The same score file to the last byte, and the same result.

    But for areas under curves: likelihoods differ in their last bits with the batch, and where two examples are as good
    as tied, their order does.
    """
    records = [store.job("c" * 16) for store in (one, other)]
    assert records[0].predictions.read_bytes() == records[1].predictions.read_bytes()
    results = [record.state()["result"] for record in records]
    areas = [{name: each["metrics"].pop(name) for name in list(each["metrics"]) if "_auc" in name} for each in results]
    assert results[0] == results[1]
    assert areas[0] == pytest.approx(areas[1], abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_ten_moments_and_gone_on_with_otherwise(tmp_path: Path, kind: str) -> None:
    """Ten of each kind of answer: one process or all of one to three, between any two answers or within one."""
    whole = new_store(tmp_path / "whole")
    run_job(job_of(kind), whole, Engine(device="cpu", eval_batch=16), quiet, lambda: False)

    store, draw = new_store(tmp_path / "killed"), random.Random(f"kill {kind}")
    record = store.job("c" * 16)
    for number in range(10):
        before = answers_in(record)
        attempt = Attempt(1 + number % 3, draw.choice([1, 2, 3, 5, 7]))
        started = start(attempt, store.root, kind)
        victims = started if draw.random() < 0.5 else [draw.choice(started)]
        kill_at(before + draw.randint(0, 10), draw.random() * 0.01, victims, started, record)
        assert record.state()["status"] != "done", "nothing was left to kill"
        assert answers_in(record) >= before
        if draw.random() < 0.3:  # as when the machine dies: the last line of a file has not reached the disk whole
            cut(draw.choice(sorted(record.answers.glob("*.jsonl")) or [None]), draw)
    assert 0 < answers_in(record) < IMAGES * EACH
    for each in start(Attempt(2, 4), store.root, kind):
        each.join(60)
    assert_same_outcome(store, whole)
    kept = [json.loads(line) for path in record.answers.glob("*.jsonl") for line in whole_lines(path)]
    assert Counter(row["id"] for row in kept) == {f"{image}-{n}": 1 for image in range(IMAGES) for n in range(EACH)}
    assert record.state()["attempts"] >= 10


def cut(path: Path | None, draw: random.Random) -> None:
    if path is not None and path.stat().st_size:
        last = path.read_bytes().splitlines(keepends=True)[-1]
        os.truncate(path, path.stat().st_size - draw.randint(1, len(last)))


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_one_told_to_stop_all_do_and_keep_what_they_have(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    record = store.job("c" * 16)
    started = start(Attempt(2, 2), store.root, "generate")
    while answers_in(record) < 10:
        assert all(each.is_alive() for each in started)
        time.sleep(0.001)
    os.kill(started[1].pid, signal.SIGTERM)
    for each in started:
        each.join(60)
    assert record.state()["status"] == "interrupted"
    assert 10 <= answers_in(record) < IMAGES * EACH // 2  # the other one has not finished its half
    for each in start(Attempt(2, 16), store.root, "generate"):
        each.join(60)
    assert record.state()["status"] == "done"
