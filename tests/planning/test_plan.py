import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prism_sweeps.config.compose import cell_from_plain
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.planning.plan import Plan, make_plan, summary

SMALL = "suite=easy-vqa"


def write(folder: Path, name: str, text: str) -> None:
    path = folder / f"study/{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def axes() -> Plan:
    return make_plan(["nano/every-axis"])


def test_one_at_a_time_study(axes: Plan) -> None:
    baseline, *others = axes.cells
    assert (baseline.baseline, baseline.overrides) == (True, {})
    assert all(len(cell.overrides) == 1 and not cell.baseline for cell in others)
    assert len(axes.cells) == 1 + sum(len(values) - 1 for values in axes.axes.values())
    assert len(axes.axes) == 8
    assert all(values[0] == baseline.choices[axis] for axis, values in axes.axes.items())
    assert len({cell.id for cell in axes.cells}) == len(axes.cells)
    assert all(len(cell.id) == 8 for cell in axes.cells)


def test_cells_share_their_align_stage() -> None:
    plan = make_plan([SMALL, "stages=nano-two-stage,nano-full-finetune-two-stage"])
    first, second = (cell.train for cell in plan.cells)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert set(plan.jobs) == {fp for cell in plan.cells for fp in (*cell.train, *cell.evaluate)}


def test_a_plan_round_trips_through_json(axes: Plan) -> None:
    again = Plan.from_plain(json.loads(json.dumps(axes.to_plain())))
    assert again == axes
    assert cell_from_plain(again.cells[0].config).resize.strategy == "naive"


def test_a_plan_repeats_itself(axes: Plan) -> None:
    assert make_plan(["nano/every-axis"]).to_plain() == axes.to_plain()


def test_an_adhoc_grid_is_a_product_with_seeds() -> None:
    plan = make_plan([SMALL, "resize=naive,letterbox", "schedule.epochs=1,2.5", "seed=1,2"])
    assert [cell.seed for cell in plan.cells] == [1, 2] * 4
    assert [cell.overrides for cell in plan.cells[::2]] == [
        {},
        {"schedule.epochs": 2.5},
        {"resize": "letterbox"},
        {"resize": "letterbox", "schedule.epochs": 2.5},
    ]
    assert [cell.baseline for cell in plan.cells] == [True, True] + [False] * 6
    assert plan.axes == {"resize": ["naive", "letterbox"], "schedule.epochs": ["1.0", "2.5"]}
    assert plan.description == f"{SMALL} resize=naive,letterbox schedule.epochs=1,2.5 seed=1,2"


def test_names() -> None:
    first = make_plan([SMALL, "resize=naive,crop"]).study
    assert len(first) == len("adhoc-") + 8
    assert make_plan([SMALL, "resize=naive,crop", "engine.workers=3", "store.root=/x"]).study == first
    assert make_plan([SMALL, "resize=naive,letterbox"]).study != first
    assert make_plan([SMALL, "resize=naive"], name="mine").study == "mine"
    assert make_plan(["small/easy-vqa", "seed=3"]).study == "small/easy-vqa"


def test_ways_of_tuning_share_their_align_stage() -> None:
    plan = make_plan([SMALL, "stages=nano-two-stage", "tuning=full,lora"])
    full, lora = plan.cells
    assert (plan.axes, full.overrides, lora.overrides) == ({"tuning": ["full", "lora"]}, {}, {"tuning": "lora"})
    assert full.train[0] == lora.train[0]
    assert full.train[1] != lora.train[1]
    assert len([job for job in plan.jobs.values() if job.kind == "train"]) == 3
    trained = {row["fingerprint"]: row["trainable"] for row in summary(plan, {})["jobs"]}
    assert trained[lora.train[1]] < trained[full.train[1]]


def test_what_runs_it_is_the_base_cells() -> None:
    plan = make_plan([SMALL, "engine.workers=3", "store.root=/x", "tracking=none"])
    assert (plan.engine.workers, plan.store.root, plan.tracking.mlflow) == (3, "/x", False)


def test_equal_cells_of_different_blocks_are_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        "twice",
        """
base: {suite: easy-vqa}
grid:
- {axes: {resize: [letterbox, naive]}}
- {vary: together, axes: {resize: [naive, crop], resolution: [64, 96]}}
- {vary: one-at-a-time, axes: {schedule.epochs: [1, 1.0]}}
""",
    )
    plan = make_plan(["twice"], config_dir=tmp_path)
    assert [cell.overrides for cell in plan.cells] == [{}, {"resize": "naive"}, {"resize": "crop", "resolution": "96"}]
    assert plan.axes == {"resize": ["letterbox", "naive", "crop"], "resolution": ["64", "96"]}


def test_a_key_of_another_choice_of_its_group_is_no_baseline(tmp_path: Path) -> None:
    write(
        tmp_path,
        "rates",
        """
base: {suite: easy-vqa, stages: nano-one-stage}
grid:
- {vary: together, axes: {stages: [one-stage], stages.chain.finetune.learning_rate: [1e-3]}}
""",
    )
    _, other = make_plan(["rates"], config_dir=tmp_path).cells
    assert other.overrides == {"stages": "one-stage", "stages.chain.finetune.learning_rate": 0.001}


def test_exclude_rules(tmp_path: Path) -> None:
    study = """
base: {suite: easy-vqa}
grid: [{axes: {backbone: [nano-clip, clip-vit-l], resolution: [64, 224]}}]
exclude: [{backbone: nano-clip, resolution: 224}, {backbone: clip-vit-l, resolution: 64}]
"""
    write(tmp_path, "pairs", study)
    plan = make_plan(["pairs"], config_dir=tmp_path)
    assert [cell.overrides for cell in plan.cells] == [{}, {"backbone": "clip-vit-l", "resolution": "224"}]
    write(tmp_path, "nothing", f"{study.strip()[:-1]}, {{backbone: nano-clip}}]")
    with pytest.raises(ConfigError, match="leaves out the baseline"):
        make_plan(["nothing"], config_dir=tmp_path)


def test_all_pairs_that_cannot_work_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan([SMALL, "backbone=nano-clip,clip-vit-l", "resolution=64,224"])
    first, *told = str(caught.value).splitlines()
    assert first.startswith("2 combinations cannot work")
    assert told[0].startswith("  resolution=224: backbone=nano-clip has no weights at 224 px")
    assert told[1].startswith("  backbone=clip-vit-l: backbone=clip-vit-l has no weights at 64 px")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nano/axis"], "did you mean 'nano/axes'"),
        (["nano/axes", "small/easy-vqa"], "write key=value"),
        (["nano/axes", "resize=naive", "resize=crop"], "given twice"),
        ([SMALL, "schedule.epoch=1,2"], "did you mean 'epochs'"),
        (["~resize"], "nothing can be removed"),
    ],
)
def test_what_cannot_be_planned_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_plan(arguments)


def test_a_broken_plan_is_told() -> None:
    content = make_plan([SMALL]).to_plain()
    with pytest.raises(ConfigError, match=r"plan\.cells\[0\]\.seed"):
        Plan.from_plain({**content, "cells": [{**content["cells"][0], "seed": "x"}]})
    with pytest.raises(ConfigError, match="did you mean 'cells'"):
        Plan.from_plain({**content, "cels": []})


def test_the_summary_counts_each_job_once_and_what_is_left() -> None:
    plan = make_plan([SMALL, "stages=nano-two-stage,nano-full-finetune-two-stage"])
    align = plan.cells[0].train[0]
    told = summary(plan, {align: "done"})
    totals = told["totals"]
    assert (totals["cells"], totals["done"]) == (2, 1)
    assert (totals["all"]["train"], totals["all"]["evaluate"]) == (3, 4)
    assert totals["to_run"]["train"] == 2
    assert totals["without_sharing"]["train"] == 4
    row = next(row for row in told["jobs"] if row["fingerprint"] == align)
    assert (row["status"], row["cells"], row["kind"]) == ("done", 2, "train")
    assert totals["without_sharing"]["flops"] - totals["all"]["flops"] == pytest.approx(row["flops"])
    assert totals["all"]["tokens"] - totals["to_run"]["tokens"] == row["tokens"]


def test_a_thousand_cells_are_planned_in_seconds() -> None:
    started = time.process_time()
    plan = make_plan([SMALL, "resize=glob(*)", "llm=nano-base,nano-instruct", "seed=range(1,171)"])
    assert len(plan.cells) == 1020
    assert len(plan.jobs) == 3060
    assert time.process_time() - started < 20


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys; from prism_sweeps.planning.plan import make_plan, summary; summary(make_plan(['nano/axes']), {});"
        "print([m for m in ('torch', 'transformers', 'timm', 'mlflow', 'submitit', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
