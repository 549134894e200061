"""A whole small study through the command line, nothing faked: towers, training, evaluation, MLflow, report."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prism_sweeps.data.nano_world.prepare import prepare_benchmarks, prepare_training
from prism_sweeps.tracking.records import Store

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("end to end")]

SUITE = """\
defaults:
  - /benchmark@benchmarks.nano-pope: nano-pope
  - /benchmark@benchmarks.nano-gqa: nano-gqa
  - /benchmark@benchmarks.nano-refcoco: nano-refcoco
  - _self_
name: three
conditions: [real, blank]
examples: 3
"""
MIX = """\
name: small
align:
  captions: {dataset: small-world, file: align/chat.json}
instruct:
  instruct: {dataset: small-world, file: instruct/chat.json}
"""
# Random weights: the test is about the machinery, and does not change when the zoo is rebuilt.
LANGUAGE = """\
name: random
weights: random:1
prompt: in-out
width: 32
depth: 2
heads: 2
kv_heads: 2
mlp_width: 64
vocabulary: 258
context: 2048
tied_embeddings: true
"""
TOWER = """\
name: random
model: vit_tiny_patch16_224
kwargs: {patch_size: 16, embed_dim: 32, depth: 2, num_heads: 2, class_token: false, global_pool: avg}
weights: {64: random:2}
width: 32
depth: 2
heads: 2
patch: 16
"""
# `PRISM_KILLS=10 pytest tests/test_end_to_end.py` kills more often.
KILLS = int(os.environ.get("PRISM_KILLS", "1"))
STUDY = """\
description: One stage or two.
base: {backbone: random, llm: random, data_mix: small, suite: three, schedule.max_steps: 2}
grid:
  - vary: product
    axes: {stages: [nano-one-stage, nano-two-stage]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with choices of their own, and a store with small data sets in it."""
    folder = tmp_path_factory.mktemp("user")
    files = {
        "suite/three.yaml": SUITE,
        "data_mix/small.yaml": MIX,
        "llm/random.yaml": LANGUAGE,
        "tower/random.yaml": TOWER,
        "backbone/random.yaml": "defaults: [{/tower@towers.random: random}, _self_]\nname: random\n",
        "study/small.yaml": STUDY,
    }
    for name, text in files.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "conf" / name).write_text(text)
    data = Store.open(folder / "store").data
    for name, prepare, size in (("small-world", prepare_training, 40), ("nano-benchmarks", prepare_benchmarks, 3)):
        (data / name).mkdir(parents=True)
        prepare(data / name, size, 1, None)
    return folder


def command(place: Path, *words: str) -> list[str]:
    common = ["--config-dir", str(place / "conf"), "--store", str(place / "store")]
    return [sys.executable, "-m", "prism_sweeps.cli", *words, *common]


def prism(place: Path, *words: str) -> str:
    done = subprocess.run(command(place, *words), capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def scores(store: Path) -> dict[str, object]:
    """Results of all evaluations, by fingerprint."""
    found = {}
    for state in sorted(store.glob("jobs/*/state.json")):
        result = json.loads(state.read_text())["result"]
        if "score" in result:
            found[state.parent.name] = result
    return found


@pytest.fixture(scope="module")
def swept(place: Path) -> Path:
    """The same after an undisturbed sweep."""
    prism(place, "sweep", "small")
    return place


def test_a_study_is_swept_reported_and_asked(swept: Path) -> None:
    place = swept
    plan = json.loads(prism(place, "plan", "small", "--json"))
    assert len(plan["cells"]) == 2
    assert len(scores(place / "store")) == 2 * 3 * 2
    state = prism(place, "status", "small", "--json")
    assert "failed" not in json.dumps(json.loads(state)["cells"])

    began = time.time()
    prism(place, "sweep", "small")
    assert all(path.stat().st_mtime < began for path in (place / "store").glob("jobs/*/state.json"))

    page = Path(json.loads(prism(place, "report", "small", "--json"))["report"])
    assert "nano-refcoco" in page.read_text()
    assert "stages" in (page.parent / "tables.md").read_text()
    assert (place / "store" / "mlflow.db").is_file()
    made = page.stat().st_mtime_ns
    assert "nano-refcoco" in prism(place, "report", "small")
    assert page.stat().st_mtime_ns == made, "nothing has changed, so the report should have been kept"
    jobs = list((place / "store").glob("jobs/*/predictions.jsonl"))
    state = json.loads((jobs[0].parent / "state.json").read_text())
    (jobs[0].parent / "state.json").write_text(json.dumps(state | {"attempts": 2}))
    prism(place, "report", "small")
    assert page.stat().st_mtime_ns > made

    cell = plan["cells"][0]["id"]
    image = next((place / "store").glob("data/nano-benchmarks/nano-pope/**/*.png"))
    answer = json.loads(prism(place, "ask", str(image), "how many dogs are there?", "--cell", cell, "--json"))
    assert isinstance(answer["answer"], str)


def rows_written(store: Path) -> int:
    """Metrics rows and answers of all jobs so far."""
    files = [*store.glob("jobs/*/metrics.jsonl"), *store.glob("jobs/*/predictions.jsonl")]
    return sum(file.read_bytes().count(b"\n") for file in files)


def killed_at(place: Path, rows: int, seconds: float) -> None:
    """Sweeps until so many rows are there and a moment longer, then kill -9 of the sweep with all its workers."""
    sweep = subprocess.Popen(
        command(place, "sweep", "small", "engine.checkpoint_seconds=0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while rows_written(place / "store") < rows and sweep.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(sweep.pid, signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL, "the sweep ended by itself before it was killed"


def test_a_sweep_killed_again_and_again_ends_in_the_same_results(swept: Path, tmp_path: Path) -> None:
    Store.open(tmp_path / "store")
    (tmp_path / "store" / "data").symlink_to(swept / "store" / "data")
    (tmp_path / "conf").symlink_to(swept / "conf")
    moments = random.Random(1)
    in_all = rows_written(swept / "store")
    for rows in sorted(moments.randrange(1, in_all) for _ in range(KILLS)):
        killed_at(tmp_path, rows, seconds=0.2 * moments.random())
    prism(tmp_path, "sweep", "small")
    assert scores(tmp_path / "store") == scores(swept / "store")
    assert losses(tmp_path / "store") == losses(swept / "store")


def losses(store: Path) -> dict[str, list[float]]:
    """The loss of every step of every training job, by fingerprint."""
    return {
        file.parent.name: [json.loads(line)["loss"] for line in file.read_text().splitlines()]
        for file in sorted(store.glob("jobs/*/metrics.jsonl"))
    }
