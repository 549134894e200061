"""Sweeps on a real SLURM: the graph of a study, a model over several nodes, two people at once, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from lab import Lab

from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

CONF = Path(__file__).parent / "conf"
SLURM = ["cluster=slurm", "cluster.cpus_per_task=16", "cluster.memory=6G", "cluster.time=60", "tracking=none"]
SLURM += ["cluster.overrides.report.cpus_per_task=1"]
ALWAYS = ["nano/tiny", "backbone=nano-clip", "stages=nano-one-stage", "suite.conditions=[real]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, for all stores here."""
    return tmp_path_factory.mktemp("data")


def prism(*arguments: str, data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prism_sweeps.cli", *arguments, f"store.data={data}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def submitted(*arguments: str, store: Path, data: Path) -> dict[str, object]:
    done = prism("sweep", *arguments, "--config-dir", str(CONF), "--store", str(store), "--json", data=data)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def wait_until_empty(lab: Lab, seconds: float) -> None:
    """Until SLURM has none of our jobs left."""
    end = time.monotonic() + seconds
    while True:
        text = lab.slurm("squeue", "--noheader", "--format=%i|%j|%T|%r")
        ours = [line for line in text.splitlines() if "|prism-" in line]
        if not ours:
            return
        assert time.monotonic() < end, ours
        time.sleep(1)


def test_a_study_of_24_cells_runs_each_shared_stage_once_and_sweeping_again_submits_nothing(
    cluster: Lab, data: Path, tmp_path: Path
):
    first = submitted("many", *SLURM, store=tmp_path, data=data)
    store = Store.open(tmp_path, data)
    plan = Plan.from_plain(store.study("many").plan())
    assert len(plan.cells) == 24
    assert Counter(len(plan.jobs[name].parents) for name in first["submitted"]) == {0: 6, 1: 24 + 24 * 2}
    assert first["allocations"] == 6 + 24 + 24
    again = submitted("many", *SLURM, store=tmp_path, data=data)
    assert (again["submitted"], again["allocations"], again["report_job"]) == ([], 0, None)
    wait_until_empty(cluster, 1500)
    states = {name: store.job(name).state() for name in plan.jobs}
    assert Counter(state["status"] for state in states.values()) == {"done": len(plan.jobs)}
    assert {state["attempts"] for state in states.values()} == {1}
    for name, job in plan.jobs.items():
        for parent in job.parents:
            assert states[parent]["finished"] <= states[name]["started"]
    assert submitted("many", *SLURM, store=tmp_path, data=data)["submitted"] == []
    assert (store.study("many").path / "report" / "index.html").exists()
    assert {state["commit"] for state in states.values()} != {None}


def test_two_nodes_with_two_tasks_each_train_as_one_process_does(cluster: Lab, data: Path, tmp_path: Path):
    here = prism("sweep", *ALWAYS, "suite.examples=2", "tracking=none", "--store", str(tmp_path / "here"), data=data)
    assert here.returncode == 0, here.stderr
    shape = ["nodes=2", "tasks_per_node=2", "cpus_per_task=4", "memory=8G"]
    wanted = [f"cluster.overrides.train.{each}" for each in shape]
    submitted(*ALWAYS, "suite.examples=2", *SLURM, *wanted, store=tmp_path / "there", data=data)
    wait_until_empty(cluster, 600)
    plan = Plan.from_plain(Store.open(tmp_path / "there").study("nano/tiny").plan())
    (name,) = plan.cells[0].train
    one, four = (Store.open(tmp_path / place).job(name) for place in ("here", "there"))
    assert four.state()["status"] == "done", four.state()
    assert (one.state()["result"]["ranks"], four.state()["result"]["ranks"]) == (1, 4)
    losses = [[row["loss"] for row in record.read_metrics()] for record in (one, four)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(losses[1]) == 3


@pytest.mark.parametrize("number", range(int(os.environ.get("PRISM_RACES", "3"))))
def test_two_people_who_sweep_overlapping_studies_at_once_submit_each_job_once(
    cluster: Lab, data: Path, tmp_path: Path, number: int
):
    # They never start, so that nothing but the submissions takes place.
    held = ["cluster.options.begin=now+2hours", "cluster.report=false", *SLURM]
    common = [*ALWAYS[3:], "schedule.max_steps=2", "suite.examples=2", "stages=nano-two-stage"]
    grids = {"one": "llm=nano-base,nano-instruct", "other": "schedule=one-epoch,80-steps"}
    command = [sys.executable, "-m", "prism_sweeps.cli", "sweep", *common, *held, f"store.data={data}"]
    prism("data", "prepare", "nano-world-1200", "nano-benchmarks", "--store", str(tmp_path), data=data)
    runs = [
        subprocess.Popen([*command, grid, "--name", name, "--store", str(tmp_path)], stderr=subprocess.PIPE)
        for name, grid in grids.items()
    ]
    try:
        for run in runs:
            _, said = run.communicate(timeout=240)
            assert run.returncode == 0, said
        journal = submissions.read(tmp_path)
        given = Counter(name for allotted in journal.allotted for name in allotted.jobs)
        plans = [Plan.from_plain(Store.open(tmp_path).study(name).plan()) for name in grids]
        assert set(given) == {name for plan in plans for name in plan.jobs}
        assert set(given.values()) == {1}
        shared = set(plans[0].jobs) & set(plans[1].jobs)
        assert shared
        queued = cluster.slurm("squeue", "--noheader", "--array", "--format=%i|%k")
        marks = {f"prism-{allotted.batch}" for allotted in journal.allotted}
        ids = {line.split("|")[0] for line in queued.splitlines() if line.split("|")[1].strip() in marks}
        assert ids == {allotted.slurm_id for allotted in journal.allotted}
    finally:
        ids = {allotted.slurm_id.partition("_")[0] for allotted in submissions.read(tmp_path).allotted}
        subprocess.run(["scancel", *ids], check=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.partition=mian", "no partition 'mian'; did you mean 'main'"),
        ("cluster.time=1-00:00:00 cluster.partition=short", "partition short allows at most 00:10:00"),
        ("cluster.nodes=9", "cluster.nodes is 9, but partition main has 4"),
        ("cluster.gpus_per_node=9", "cluster.gpus_per_node is 9, but partition main has 8"),
        ("cluster.cpus_per_task=99", "99 CPUs a node"),
        ("cluster.options.nonsense=1", "nonsense"),
        ("cluster.constraint=quantum", "SLURM refuses what cluster.* asks for"),
        ("cluster.memory=9000G", "SLURM refuses what cluster.* asks for"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_before_anything_is_submitted(
    cluster: Lab, data: Path, tmp_path: Path, override: str, said: str
):
    base = ["nano/tiny", "cluster=slurm", *override.split()]
    refused = prism("sweep", *base, "--store", str(tmp_path), data=data)
    assert refused.returncode == 2, refused.stdout
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()[-1:]) == 1
    assert not (tmp_path / submissions.FILE).exists()


def test_a_store_that_cannot_be_written_is_told_before_anything_is_submitted(cluster: Lab, data: Path, tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    before = cluster.slurm("squeue", "--noheader", "--states=all", "--format=%i")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(store)], check=True)
    try:
        refused = prism("sweep", "nano/tiny", "cluster=slurm", "--store", str(store), data=data)
    finally:
        subprocess.run(["umount", str(store)], check=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"prism: cannot write {store}")
    assert "Read-only file system" in refused.stderr
    assert cluster.slurm("squeue", "--noheader", "--states=all", "--format=%i") == before


def test_without_slurm_on_path_it_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    refused = prism("sweep", "nano/tiny", "cluster=slurm", "--store", str(tmp_path), data=data)
    assert refused.returncode == 2
    assert "no sbatch on PATH" in refused.stderr
