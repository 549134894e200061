"""prism compare on a store whose scores are made up."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prism_sweeps import cli
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, Job
from prism_sweeps.evaluation.results import score_and_error
from prism_sweeps.planning.plan import Plan, PlannedCell, make_plan
from prism_sweeps.tracking.records import Store

INSTRUCT = ("instruct.captions", "instruct.instruct", "instruct.language")
MODEL = "hf:someone/model"
SPLITS = ("random", "random", "random", "popular", "adversarial")


def answers(seed: int, kind: str, right: float) -> list[dict[str, Any]]:
    """60 questions about 20 images, three each, with splits of different sizes; soft scores where `kind` has such."""
    rng, scores = np.random.default_rng(seed), (0.0, 0.6, 1.0) if kind == "vqav2" else (0.0, 1.0)
    low = (1 - right) / (len(scores) - 1)
    return [
        {
            "id": f"{kind}-{index}",
            "image": f"{index // 3}.png",
            "answer": "Yes",
            "gold": "yes",
            "score": float(rng.choice(scores, p=[low] * (len(scores) - 1) + [right])),
            "tags": {"split": SPLITS[index % 5]},
        }
        for index in range(60)
    ]


@dataclasses.dataclass
class Scored:
    """Two scored cells, and somebody who compares."""

    store: Store
    plan: Plan
    capture: pytest.CaptureFixture[str]

    def prism(self, *arguments: str) -> tuple[int, str, str]:
        self.capture.readouterr()
        code = cli.main([*arguments, "--store", str(self.store.root)])
        return (code, *self.capture.readouterr())

    def compare(self, a: str, b: str) -> Any:
        code, out, err = self.prism("compare", a, b, "--json")
        assert code == 0, err
        return json.loads(out)

    @property
    def cells(self) -> list[PlannedCell]:
        return self.plan.cells

    def job(self, cell: int, benchmark: str, condition: str = "real") -> Job:
        jobs = (self.plan.jobs[name] for name in self.cells[cell].evaluate)
        return next(job for job in jobs if told(job) == (benchmark, condition))

    def rows(self, cell: int, benchmark: str, condition: str = "real") -> list[dict[str, Any]]:
        return self.store.job(self.job(cell, benchmark, condition).fingerprint).read_predictions()

    def put(self, job: Job, rows: list[dict[str, Any]]) -> None:
        record = self.store.job(job.fingerprint)
        record.write_predictions(rows)
        record.finish({"score": 0.0, "standard_error": None, "n": len(rows), "metrics": {}, "groups": {}})

    def other_model(self, **changes: Any) -> None:
        """A finished model on nano-pope, with `changes` to the benchmark and the answers of the second cell."""
        ours = self.job(0, "nano-pope").spec
        assert isinstance(ours, EvaluationSpec)
        benchmark = dataclasses.replace(ours.benchmark, **changes)
        self.keep(BaselineSpec(MODEL, "commit", benchmark, "real", scorer_version=ours.scorer_version))

    def keep(self, spec: BaselineSpec) -> None:
        job = Job("0123456789abcdef", f"nano-pope: {MODEL}", spec)
        self.store.job(job.fingerprint).begin(job, Engine(name="cpu"))
        self.put(job, self.rows(1, "nano-pope"))
        cell = PlannedCell("feedbeef", {"model": MODEL}, {"model": MODEL}, 0, True, {}, [], [job.fingerprint])
        plan = dataclasses.replace(self.plan, study="baseline/model", cells=[cell], jobs={job.fingerprint: job})
        self.store.study(plan.study).write_plan(plan.to_plain())


def told(job: Job) -> tuple[str, str]:
    assert isinstance(job.spec, EvaluationSpec)
    return job.spec.benchmark.name, job.spec.condition


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scored:
    monkeypatch.delenv("PRISM_STORE", raising=False)
    plan = make_plan(["nano/tiny", "stages=nano-one-stage", "suite=small-nano"])
    found = Scored(Store.open(tmp_path / "store"), plan, capsys)
    found.store.study(plan.study).write_plan(plan.to_plain())
    for place, cell in enumerate(plan.cells):
        for name in cell.evaluate:
            benchmark, condition = told(plan.jobs[name])
            right = 0.5 if condition == "shuffled" else (0.9, 0.4)[place]
            found.put(plan.jobs[name], answers(len(benchmark) + 10 * place, benchmark.removeprefix("nano-"), right))
    return found


def test_every_benchmark_and_condition_of_two_cells_is_compared(scored: Scored) -> None:
    a, b = scored.cells
    found = scored.compare(a.id, b.id)
    assert [(row["condition"], row["benchmark"]) for row in found["rows"]] == [
        ("real", "nano-vqav2"), ("real", "nano-pope"), ("shuffled", "nano-vqav2"), ("shuffled", "nano-pope"),
    ]  # fmt: skip
    assert (found["a"]["cell"], found["b"]["label"]) == (a.id, "backbone=nano-in1k")
    soft, pope = found["rows"][:2]
    assert (soft["mcnemar"], soft["test"], pope["test"]) == (None, "sign flips", "sign flips")
    rows = [scored.rows(place, "nano-pope") for place in (0, 1)]
    official = [score_and_error(each, [row["tags"]["split"] for row in each])[0] for each in rows]
    assert pope["score_a"] == pytest.approx(official[0])
    assert pope["difference"] == pytest.approx(official[0] - official[1])
    assert pope["low"] < pope["difference"] < pope["high"]
    assert (pope["examples"], pope["images"]) == (60, 20)


def test_p_values_are_corrected_for_the_benchmarks_under_one_condition(scored: Scored) -> None:
    found = scored.compare(*(cell.id for cell in scored.cells))["rows"]
    for condition in ("real", "shuffled"):
        small, large = sorted((r for r in found if r["condition"] == condition), key=lambda row: row["p"])
        assert small["p_holm"] == pytest.approx(min(1, 2 * small["p"]))
        assert large["p_holm"] == pytest.approx(min(1, max(large["p"], 2 * small["p"])))


def test_overrides_and_prefixes_name_cells(scored: Scored) -> None:
    a, b = scored.cells
    overrides = ["stages=nano-one-stage", "suite=small-nano", "schedule.max_steps=3", "suite.examples=4"]
    overrides += [f"data_mix.{mix}.dataset=nano-world-64" for mix in ("align.captions", *INSTRUCT)]
    found = scored.compare(" ".join(["backbone=nano-clip", *overrides]), b.id[:5])
    assert (found["a"]["cell"], found["b"]["cell"]) == (a.id, b.id)


def test_the_table_says_what_it_is(scored: Scored) -> None:
    a, b = scored.cells
    code, out, _ = scored.prism("compare", a.id, b.id)
    assert code == 0
    assert f"A: cell {a.id} (baseline, seed 1)" in out
    (line,) = [line for line in out.splitlines() if line.startswith("nano-pope") and "real" in line]
    row = scored.compare(a.id, b.id)["rows"][1]
    assert line.split()[2:8] == [
        "60", f"{row['score_a']:.2f}", f"{row['score_b']:.2f}", f"{row['difference']:+.2f}", "±",
        f"{row['standard_error']:.2f}",
    ]  # fmt: skip
    assert "about these two trained models" in out


def test_a_finished_model_is_one_side(scored: Scored) -> None:
    scored.other_model()
    found = scored.compare(scored.cells[0].id, MODEL)
    (row,) = found["rows"]
    assert row["benchmark"] == "nano-pope"
    same = scored.compare(scored.cells[0].id, scored.cells[1].id)["rows"][1]
    assert row["difference"] == same["difference"]
    assert found["b"]["model"] == "hf:commit"
    assert "nano-vqav2 (real): only A was scored on it" in found["remarks"]
    assert scored.compare(scored.cells[0].id, f"model={MODEL}")["rows"] == [row]


def test_examples_that_one_side_lacks_are_counted(scored: Scored) -> None:
    scored.put(scored.job(1, "nano-pope"), scored.rows(1, "nano-pope")[:-6])
    found = scored.compare(*(cell.id for cell in scored.cells))
    (row,) = [r for r in found["rows"] if (r["benchmark"], r["condition"]) == ("nano-pope", "real")]
    assert (row["examples"], row["only_a"], row["only_b"]) == (54, 6, 0)
    assert "nano-pope (real): 6 examples that only A has left out" in found["remarks"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("version", "2", "version is '1' on side A, '2' on side B: the questions are not the same"),
        ("index", "elsewhere", "index is 'nano-benchmarks/nano-pope' on side A, 'elsewhere' on side B"),
        ("scorer", "choice", "scorer is 'pope' on side A, 'choice' on side B: the scores are not of one kind"),
    ],
)
def test_other_data_or_another_scorer_is_refused(scored: Scored, field: str, value: str, reason: str) -> None:
    scored.other_model(**{field: value})
    code, _, err = scored.prism("compare", scored.cells[0].id, MODEL)
    assert code == 2
    assert f"nano-pope (real) is refused: {reason}" in err


def test_another_version_of_the_scorer_is_refused(scored: Scored) -> None:
    ours = scored.job(0, "nano-pope").spec
    assert isinstance(ours, EvaluationSpec)
    scored.keep(BaselineSpec(MODEL, "commit", ours.benchmark, "real", scorer_version=ours.scorer_version + 1))
    code, _, err = scored.prism("compare", MODEL, scored.cells[0].id)
    assert code == 2
    assert "of the scorer on side A" in err


def test_refusing_one_benchmark_leaves_the_others(scored: Scored) -> None:
    rows = scored.rows(1, "nano-pope")
    rows[7]["gold"] = "no"
    scored.put(scored.job(1, "nano-pope"), rows)
    found = scored.compare(*(cell.id for cell in scored.cells))
    assert [row["benchmark"] for row in found["rows"]] == ["nano-vqav2", "nano-vqav2", "nano-pope"]
    (refused,) = found["refused"]
    assert refused["reason"] == "example 'pope-7' has gold 'yes' on one side, 'no' on the other"


def test_another_prompt_is_told(scored: Scored) -> None:
    scored.other_model(prompt="{question} Yes or no?")
    remarks = scored.compare(scored.cells[0].id, MODEL)["remarks"]
    assert any(line.startswith("nano-pope (real): prompt is ") for line in remarks)


def test_errors_say_what_would_be_right(scored: Scored) -> None:
    a, b = (cell.id for cell in scored.cells)
    assert "both sides are cell" in scored.prism("compare", a, a[:6])[2]
    assert "no evaluation that is done" in scored.prism("compare", a, "hf:x/y")[2]
    scored.other_model()
    assert f"did you mean '{MODEL}'" in scored.prism("compare", a, MODEL[:-1])[2]
    for name in scored.cells[1].evaluate:
        scored.store.job(name).fail("out of memory")
    code, _, err = scored.prism("compare", a, b)
    assert code == 2
    assert f"cell {b} (backbone=nano-in1k, seed 1) has no evaluation that is done" in err


def test_it_needs_no_torch(scored: Scored) -> None:
    a, b = (cell.id for cell in scored.cells)
    code = (
        "import sys; from prism_sweeps import cli\n"
        f"cli.main(['compare', '{a}', '{b}', *sys.argv[1:]])\n"
        "cli.main(['evaluate', '--power', 'pope', *sys.argv[1:]])\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "--store", str(scored.store.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nano-pope" in done.stdout
    assert done.stderr.splitlines()[-1] == "False"
