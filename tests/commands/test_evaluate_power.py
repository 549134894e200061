"""prism evaluate --power: sizes, what the store tells of models, and what is assumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prism_sweeps import cli
from prism_sweeps.config.specs import EvaluationSpec
from prism_sweeps.planning.plan import make_plan
from prism_sweeps.tracking.records import Store

Prism = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prism(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prism:
    monkeypatch.delenv("PRISM_STORE", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["evaluate", *arguments, "--store", str(tmp_path / "store")])
        return (code, *capsys.readouterr())

    return run


def told(prism: Prism, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = prism("--power", *arguments, "--json")
    assert code == 0, err
    rows: list[dict[str, Any]] = json.loads(out)["rows"]
    return rows


def score(root: Path) -> None:
    """Two cells on nano-vsr: 200 questions, two per image, answered alike; one is right on every tenth image more."""
    store = Store.open(root)
    plan = make_plan(["backbone=nano-clip,nano-in1k", "suite.conditions=[real]", "suite.examples=200"])
    store.study(plan.study).write_plan(plan.to_plain())
    for better, cell in enumerate(plan.cells):
        for name in cell.evaluate:
            spec, record = plan.jobs[name].spec, store.job(name)
            assert isinstance(spec, EvaluationSpec)
            if spec.benchmark.name == "nano-vsr":
                images = [index // 2 for index in range(200)]
                right = [image % 2 == 0 or (better and image % 10 == 1) for image in images]
                record.write_predictions(
                    [
                        {"id": str(i), "image": str(image), "score": float(yes), "gold": "true", "tags": {}}
                        for i, (image, yes) in enumerate(zip(images, right, strict=True))
                    ]
                )
                record.finish({"score": 50.0, "standard_error": 1.0, "n": 200, "metrics": {}, "groups": {}})


def test_the_whole_of_a_benchmark_and_what_a_suite_takes_of_it(prism: Prism) -> None:
    rows = told(prism, "suite=paper,paper-slim")
    of_gqa = [(row["part"], row["examples"]) for row in rows if row["benchmark"] == "gqa"]
    assert of_gqa == [("whole", 12_578), ("paper-slim", 1_024)]
    assert [row["part"] for row in rows if row["benchmark"] == "vsr"] == ["whole"]
    assert len({row["benchmark"] for row in rows}) == 13


def test_what_is_assumed_is_said(prism: Prism) -> None:
    (row,) = told(prism, "vsr")
    assert row["assumed"] == ["accuracy", "spread", "discordance", "design_effect"]
    assert (row["accuracy"], row["discordance"], row["models"]) == (70, 0.2, 0)
    assert row["standard_error"] == pytest.approx(100 * (0.7 * 0.3 / 1222) ** 0.5)
    assert "assumed: accuracy, discordance, design effect" in prism("--power", "vsr")[1]


def test_arguments_come_before_what_is_assumed(prism: Prism) -> None:
    (row,) = told(prism, "vsr", "--accuracy", "50", "--discordance", "0.45", "--difference", "15")
    assert row["needed"] == 155  # clinicaltrials-tools, for Connor 1987
    assert row["accuracy"] == 50
    (strict,) = told(prism, "vsr", "--alpha", "0.001", "--power-target", "0.99", "--discordance", "0.45")
    (usual,) = told(prism, "vsr", "--discordance", "0.45")
    assert strict["detectable"] > 1.5 * usual["detectable"]


def test_the_store_tells_what_its_models_are_like(prism: Prism, tmp_path: Path) -> None:
    score(tmp_path / "store")
    (row,) = told(prism, "nano-vsr")
    assert (row["models"], row["assumed"]) == (2, [])
    assert row["discordance"] == pytest.approx(0.1)
    assert row["accuracy"] == pytest.approx(55)
    assert row["design_effect"] == pytest.approx(2 * 100 / 99)  # both questions of an image are one
    other = {row["benchmark"]: row for row in told(prism)}
    assert other["nano-pope"]["models"] == 0
    (given,) = told(prism, "nano-vsr", "--discordance", "0.3")
    assert given["discordance"] == 0.3
    assert given["design_effect"] == row["design_effect"]


def test_the_default_suite_is_that_of_every_cell_and_can_be_changed(prism: Prism) -> None:
    rows = told(prism, "suite.examples=77")
    assert {(row["part"], row["examples"]) for row in rows} == {("whole", 1000), ("nano", 77)}


def test_a_difference_that_no_set_shows_is_none(prism: Prism) -> None:
    (row,) = told(prism, "vsr", "--discordance", "0.004")
    assert row["detectable"] is None
    assert row["needed"] is None
    (line,) = [line for line in prism("--power", "vsr", "--discordance", "0.004")[1].splitlines() if "vsr" in line]
    assert "none" in line
    assert "none does" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--alpha", "0.1", "seed=1"], "--alpha belongs to --power"),
        (["--power", "--alpha", "5"], "--alpha 5: it lies between 0 and 1"),
        (["--power", "gqaa"], "no benchmark 'gqaa'; did you mean 'gqa'"),
        (["--power", "suite=papers"], "did you mean 'paper'"),
        (["--power", "llm=nano-base"], "give suite=NAME, or names of benchmarks"),
    ],
)
def test_errors_say_what_would_be_right(prism: Prism, arguments: list[str], said: str) -> None:
    code, _, err = prism(*arguments)
    assert code == 2
    assert said in err
