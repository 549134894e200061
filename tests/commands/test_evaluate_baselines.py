"""prism evaluate model=hf:FOLDER, whole: from the command line to scores, and what other commands make of them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from prism_sweeps.cli import main
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.mlflow_runs import cell_runs
from prism_sweeps.tracking.records import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
import tiny_hf

OFF = "tracking.mlflow=false"
BENCHMARKS = ("nano-vqav2", "nano-vsr", "nano-refcoco")
CONFIG = """\
defaults:
{benchmarks}
  - _self_
name: few
benchmarks:
{smaller}
conditions: [real, blank]
examples: 4
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A store, two models, and a suite of three benchmarks."""
    root = tmp_path_factory.mktemp("baselines")
    tiny_hf.llava(root / "llava", positions=400)
    tiny_hf.qwen2_vl(root / "qwen")
    (root / "conf" / "suite").mkdir(parents=True)
    listed = "\n".join(f"  - /benchmark@benchmarks.{name}: {name}" for name in BENCHMARKS)
    smaller = "\n".join(f"  {name}: {{index: nano-benchmarks-12/{name}}}" for name in BENCHMARKS)
    (root / "conf" / "suite" / "few.yaml").write_text(CONFIG.format(benchmarks=listed, smaller=smaller))
    return root


def run(capsys, place: Path, *arguments: str) -> tuple[int, str, str]:
    command, *rest = arguments
    code = main([command, "--store", str(place / "store"), "--config-dir", str(place / "conf"), *rest])
    told = capsys.readouterr()
    return code, told.out, told.err


def models(place: Path) -> str:
    return f"model=hf:{place}/llava,hf:{place}/qwen"


def test_two_models_are_scored_and_every_command_knows_them(capsys, place: Path):
    code, out, err = run(capsys, place, "evaluate", models(place), "suite=few", "--json", "engine.eval_batch=3", OFF)
    assert code == 0, err
    told = json.loads(out)
    assert told["study"] == "baseline/llava+qwen"
    assert told["errors"] == {}
    assert len(told["results"]) == 2 * 3 * 2
    for row in told["results"]:
        assert row["state"] == "done"
        assert 0 <= row["score"] <= 100
        assert row["n"] == 4
        assert row["standard_error"] is not None
    store = Store.open(place / "store")
    runs = cell_runs(Plan.from_plain(store.study(told["study"]).plan()), store)
    assert {run.params["model"] for run in runs} == {f"hf:{place}/llava", f"hf:{place}/qwen"}
    assert all(run.points for run in runs)
    vsr = next(row for row in told["results"] if row["benchmark"] == "nano-vsr" and "llava" in row["model"])
    rows = store.job(vsr["job"]).read_predictions()
    assert {row["answer"] for row in rows} <= {"True", "False"}
    assert vsr["score"] == pytest.approx(100 * sum(row["answer"] == row["gold"] for row in rows) / 4)

    cells = json.loads(run(capsys, place, "status", "baseline/llava+qwen", "--json")[1])["cells"]
    assert [cell["label"] for cell in cells] == [f"model=hf:{place}/{name}" for name in ("llava", "qwen")]
    for command in ("status", "plan", "retry", "logs"):
        assert run(capsys, place, command, "baseline/llava+qwen")[0] == 0
    code, out, _ = run(capsys, place, "logs", cells[0]["id"])
    assert "attempt 1 of nano-" in out
    code, _, err = run(capsys, place, "export", cells[0]["id"], "--to", str(place / "out"))
    assert code == 2
    assert "a finished model of others: it can be scored, no more" in err


def test_what_is_done_is_not_asked_again_whatever_the_study_and_batch(capsys, place: Path):
    first = json.loads(run(capsys, place, "evaluate", models(place), "suite=few", "--json")[1])
    attempts = {row["job"]: Store.open(place / "store").job(row["job"]).state()["attempts"] for row in first["results"]}
    only = f"model=hf:{place}/qwen"
    again = json.loads(
        run(capsys, place, "evaluate", only, "suite=few", "engine.eval_batch=2", "--name", "q", "--json")[1]
    )
    assert again["study"] == "q"
    assert {row["job"] for row in again["results"]} < set(attempts)
    for row in again["results"]:
        assert Store.open(place / "store").job(row["job"]).state()["attempts"] == attempts[row["job"]] == 1


def test_the_table_names_model_benchmark_and_condition(capsys, place: Path):
    code, out, _ = run(capsys, place, "evaluate", f"model=hf:{place}/qwen", "suite=few")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [f"hf:{place}/qwen", "nano-vsr", "blank", "done"] in [line[:4] for line in lines]
    assert "prism report baseline/qwen" in out


def test_a_report_compares_the_models(capsys, place: Path):
    run(capsys, place, "evaluate", models(place), "suite=few", OFF)
    code, out, err = run(capsys, place, "report", "baseline/llava+qwen")
    assert code == 0, err
    page = (place / "store" / "studies" / "baseline" / "llava+qwen" / "report" / "index.html").read_text()
    for name in BENCHMARKS:
        assert name in page
    assert f"model=hf:{place}/qwen" in page
    assert "Does it see?" in out


def test_a_sweep_of_its_study_goes_on_with_what_is_left(capsys, place: Path):
    arguments = (f"model=hf:{place}/llava", "suite=few", "suite.conditions=[blank]", "--name", "again", OFF)
    assert run(capsys, place, "evaluate", *arguments)[0] == 0
    store = Store.open(place / "store")
    jobs = list(Plan.from_plain(store.study("again").plan()).jobs)
    shutil.rmtree(store.job(jobs[0]).path)
    code, _, err = run(capsys, place, "sweep", "again")
    assert code == 0, err
    assert {store.job(name).state()["status"] for name in jobs} == {"done"}


def test_a_model_that_cannot_be_loaded_fails_its_jobs_with_the_reason_and_can_be_tried_again(capsys, place: Path):
    folder = tiny_hf.qwen2_vl(place / "broken")
    kept = {path: path.read_bytes() for path in folder.glob("*processor_config.json")}
    for path in kept:
        path.unlink()
    arguments = ("evaluate", f"model=hf:{folder}", "suite=few", "suite.conditions=[real]")
    code, out, err = run(capsys, place, *arguments)
    assert code == 1
    assert "save the processor beside the weights" in err
    assert "failed" in out
    for path, content in kept.items():
        path.write_bytes(content)
    assert run(capsys, place, *arguments)[0] == 0
