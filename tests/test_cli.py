"""The command line: what it prints, what it returns, and that it starts fast. No model is trained here."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prism_sweeps import cli
from prism_sweeps.launching import run_job
from prism_sweeps.tracking.records import Store

CELL = ["backbone=nano-clip", "llm=nano-base"]
SMALL = [*CELL, "stages=nano-one-stage", "suite=nano"]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    monkeypatch.setenv("PRISM_STORE", str(root))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prism_sweeps.commands.status.bring_up", lambda *_: None)  # it takes seconds
    return root


def fake_train(spec: Any, record: Any, *_: object) -> dict[str, Any]:
    with record.writing_weights() as folder:
        (folder / "projector.safetensors").write_bytes(b"")
    speed = {"steps": 2, "seconds": 1.0, "examples": 16, "tokens": 320, "flops": 1e9, "peak_memory": 1 << 30}
    return {"loss": 0.5, **speed, "ranks": 1, "device": "fake", "device_type": "cpu", "peak_flops": None}


def fake_evaluate(spec: Any, *_: object) -> dict[str, Any]:
    if spec.benchmark.name == BROKEN:
        raise run_job.StoreError("its index is broken")
    score = 40.0 if spec.condition == "real" else 10.0
    return {"score": score, "standard_error": 2.0, "n": 10, "metrics": {}, "groups": {}}


BROKEN = ""


@pytest.fixture
def fake_work(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    """Training and evaluation that take no time, and data sets that are there."""
    monkeypatch.setattr(run_job, "work_of", lambda job: fake_train if job.kind == "train" else fake_evaluate)
    monkeypatch.setattr("prism_sweeps.launching.foreground.prepare_data", lambda *_: None)


def prism(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, prism_sweeps.cli as cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'mlflow', 'rich', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert "prism sweep nano/axes" in found.stdout


@pytest.mark.parametrize(
    "command",
    [
        "plan",
        "sweep",
        "train",
        "evaluate",
        "ask",
        "status",
        "logs",
        "cancel",
        "retry",
        "clean",
        "report",
        "studies",
        "data",
        "export",
        "import",
        "compare",
    ],
)
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        prism(command, "--help")
    assert exit_.value.code == 0
    assert f"  prism {command}" in capsys.readouterr().out


def test_overrides_may_stand_around_options() -> None:
    arguments = cli.parse(["plan", "nano/axes", "--json", "seed=1,2", "--name", "x", "resize=crop"])
    assert arguments.overrides == ["nano/axes", "seed=1,2", "resize=crop"]
    with pytest.raises(SystemExit):
        cli.parse(["plan", "nano/axes", "--jsn"])
    with pytest.raises(SystemExit):
        cli.parse(["status", "nano/axes", "seed=1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "which study?"),
        (["plan", "nano/axez"], "did you mean 'nano/axes'"),
        (["plan", "backbone=nano-clop"], "nano-clip"),
        (["plan", *CELL, "--name", "../mine"], "cannot be the name of a study"),
        (["train", "nano/axes"], "is no override"),
        (["train", "resize=naive,crop"], "one cell"),
        (["evaluate", *CELL], "is not trained"),
        (["status", "../../etc"], "cannot be the name of a study"),
        (["status", "nano/axes"], "no study 'nano/axes'"),
        (["cancel", "nano/axes"], "no study 'nano/axes'"),
        (["retry", "nano/axes"], "no study 'nano/axes'"),
        (["clean", "nano/axes"], "no study 'nano/axes'"),
        (["logs", "1a2b3c4d"], "'1a2b3c4d' is no study, cell, job or SLURM id"),
        (["logs", "nano/axes", "-n", "0"], "one line at least"),
        (["report", "nano/axes"], "no study 'nano/axes'"),
        (["ask", "no.png", "What?", "--cell", "1a2b3c4d"], "no.png: no such image"),
        (["data", "prepare"], "prepare what?"),
        (["data", "prepare", "nano-wrld-10"], "nano-world"),
    ],
)
def test_mistakes_are_told_in_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prism(*arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("prism: ")
    assert "Traceback" not in told


def test_the_command_that_trains_an_untrained_cell_is_told_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    where = ["--store", str(tmp_path / "other"), "--config-dir", "mine"]
    what = [*CELL, 'suite.benchmarks.nano-vqav2.prompt="{question} it\'s"']
    assert prism("evaluate", *where, *what) == 2
    told = shlex.split(capsys.readouterr().err.partition("train it: ")[2])
    assert told == ["prism", "train", *where, *what]


def test_plan_shows_cells_and_writes_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prism("plan", *SMALL, "resize=naive,crop", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [cell["choices"]["resize"] for cell in plan["cells"]] == ["naive", "crop"]
    assert plan["totals"]["to_run"]["train"] == 2
    assert not store.exists()
    assert prism("plan", *SMALL, "resize=naive,crop") == 0
    shown = capsys.readouterr().out
    assert plan["cells"][0]["id"] in shown
    assert "2 training" in shown


@pytest.mark.usefixtures("fake_work")
def test_train_evaluate_status_and_plan_agree(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prism("train", *SMALL, "--name", "mine") == 0
    assert "40.0" in capsys.readouterr().out
    assert prism("plan", *SMALL, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["totals"]["done"] == len(plan["jobs"])
    assert prism("status", "mine", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["cells"][0]["state"] == "done"
    assert status["cells"][0]["mean_score"] == 40.0
    assert prism("status") == 0
    assert "mine" in capsys.readouterr().out
    assert prism("evaluate", *SMALL, "suite.conditions=[blank]") == 0
    assert "blank" in capsys.readouterr().out
    attempts = [Store.open(store).job(path.name).state()["attempts"] for path in (store / "jobs").iterdir()]
    assert set(attempts) == {1}


@pytest.mark.usefixtures("fake_work")
def test_a_failed_job_is_exit_code_1_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(globals(), "BROKEN", "nano-pope")
    assert prism("train", *SMALL, "--name", "mine") == 1
    assert prism("status", "mine") == 0
    shown = capsys.readouterr().out
    assert "its index is broken" in shown
    assert "log: " in shown


@pytest.mark.usefixtures("fake_work")
def test_a_failing_mlflow_does_not_fail_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    import mlflow.store.db.utils

    from prism_sweeps.commands import sweep
    from prism_sweeps.launching.foreground import run_here

    monkeypatch.setattr(mlflow.store.db.utils, "MAX_RETRY_COUNT", 1)  # it tries ten times, which takes 100 seconds
    monkeypatch.setattr(
        sweep, "run_jobs", lambda jobs, store, engine, display, weights: run_here(jobs, store, engine, display)
    )
    store.mkdir()
    (store / "mlflow.db").mkdir()
    assert prism("sweep", *SMALL, "--name", "mine", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["mlflow"] is None
    assert found["counts"] == {"done": len(found["jobs"])}
    assert "prism report mine" in captured.err


@pytest.mark.usefixtures("fake_work")
def test_ask_finds_cells_by_id_and_by_overrides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from prism_sweeps.commands import ask

    assert prism("train", *SMALL, "--name", "mine", "--json") == 0
    cell = json.loads(capsys.readouterr().out)["cells"][0]["id"]
    for wanted in ([cell], [cell[:5]], SMALL):
        arguments = cli.parse(["ask", "x.png", "What?", "--cell", *wanted])
        assert ask.chosen(arguments)[1].id == cell
    (tmp_path / "x.png").write_bytes(b"no image")
    assert prism("ask", "x.png", "What?", "--cell", "00000000") == 2
    assert cell in capsys.readouterr().err
