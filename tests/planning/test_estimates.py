"""Times and memory worked out by hand from a few measured rows."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prism_sweeps.cli import main
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job, StageSpec
from prism_sweeps.planning.cost import job_cost
from prism_sweeps.planning.estimates import Estimate, Place, estimate
from prism_sweeps.planning.jobs import jobs_of
from prism_sweeps.planning.measured import Measured, measured_row, model_key
from prism_sweeps.planning.memory import Devices, training_memory
from prism_sweeps.planning.plan import make_plan, summary
from prism_sweeps.tracking import throughput

GPU, OTHER = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
ENGINE = Engine(name="gpu", precision="bf16", device="cuda")
ON_GPU = ("engine=gpu", "engine.micro_batch=0", "suite=easy-vqa", "data_mix=easy-vqa")


def job(*overrides: str) -> Job:
    return jobs_of(compose_cell([*ON_GPU, *overrides])[0])[0][-1]


def spec(*overrides: str) -> StageSpec:
    found = job(*overrides).spec
    assert isinstance(found, StageSpec)
    return found


def row(*overrides: str, engine: Engine = ENGINE, **changed: Any) -> Measured:
    """10 seconds of 1000 tokens, 4 examples and 5 GFLOP each, on one GPU that could do 50 GFLOP/s."""
    result = {
        "tokens": 10_000, "examples": 40, "seconds": 10.0, "steps": 20, "flops": 50e9, "ranks": 1, "device": GPU,
        "device_type": "cuda", "peak_flops": 50e9, "peak_memory": 3_000_000,
    }  # fmt: skip
    return measured_row(spec(*overrides), engine, {**result, **changed})


def of(measured: list[Measured], *overrides: str, engine: Engine = ENGINE) -> Estimate:
    wanted = job(*overrides)
    return estimate(wanted, job_cost(wanted), Place(engine), measured)


def test_a_row_holds_rates_and_what_ran() -> None:
    found = row(ranks=2)
    assert (found.tokens_per_second, found.examples_per_second, found.steps) == (1000.0, 4.0, 20)
    assert (found.flops_per_second, found.mfu) == (2.5e9, 0.05)
    assert (found.stage, found.settings.compile, found.settings.precision) == ("finetune", True, "bf16")
    assert row(peak_flops=None).mfu is None
    assert row(device_type="cpu").settings.compile is False


def test_the_same_model_tells_tokens_a_second_by_the_median() -> None:
    tokens = job_cost(job()).tokens
    assert tokens is not None
    found = of([row(), row(tokens=30_000, peak_memory=5_000_000), row(tokens=20_000)])
    assert found.seconds == pytest.approx(tokens / 2000)
    assert found.gpu_hours == pytest.approx(tokens / 2000 / 3600)
    assert found.peak_memory == 5_000_000
    assert found.basis == f"tokens/s of 3 runs of this model on {GPU}"


def test_another_model_tells_operations_a_second() -> None:
    cost = job_cost(job("llm=nano-instruct", "backbone=nano-dinosiglip"))
    assert cost.flops is not None
    measured = [row(), row(flops=150e9), row(flops=100e9)]
    found = of(measured, "llm=nano-instruct", "backbone=nano-dinosiglip")
    assert found.seconds == pytest.approx(cost.flops / 10e9)
    other = spec("llm=nano-instruct", "backbone=nano-dinosiglip")
    assert found.peak_memory == training_memory(other, ENGINE, Devices(), on_gpu=True).total
    assert found.basis == f"FLOP/s of 3 runs on {GPU}; memory from shapes"


def test_several_devices_share_the_time_and_not_the_hours() -> None:
    cost = job_cost(job("backbone=nano-dinosiglip"))
    assert cost.tokens is not None
    assert cost.flops is not None
    same = of([row("backbone=nano-dinosiglip", ranks=8)], "backbone=nano-dinosiglip")
    assert (same.seconds, same.gpu_hours) == pytest.approx((cost.tokens / 1000, cost.tokens / 1000 * 8 / 3600))
    other = of([row(ranks=8)], "backbone=nano-dinosiglip")
    assert other.seconds == pytest.approx(cost.flops / (50e9 / 10))
    assert other.gpu_hours == pytest.approx(8 * (other.seconds or 0) / 3600)
    assert f"on 8 x {GPU}" in other.basis


def test_the_newest_place_counts_and_what_was_measured_elsewhere_does_not() -> None:
    tokens = job_cost(job()).tokens
    assert tokens is not None
    assert of([row(), row(device=OTHER, tokens=5_000)]).seconds == pytest.approx(tokens / 500)
    assert of([row(device=OTHER, tokens=5_000), row()]).seconds == pytest.approx(tokens / 1000)
    # The newest row of this model, though another was measured since on another device.
    found = of([row(), row("backbone=nano-dinosiglip", device=OTHER)])
    assert found.basis == f"tokens/s of 1 run of this model on {GPU}"


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": replace(ENGINE, micro_batch=4)},
        {"engine": replace(ENGINE, activation_checkpointing="full")},
        {"engine": replace(ENGINE, compile=False)},
        {"engine": replace(ENGINE, sharding="grad-only")},
    ],
)
def test_other_settings_are_another_speed(changed: dict[str, Engine]) -> None:
    assert "FLOP/s" in of([row(**changed)]).basis


def test_another_precision_or_type_of_device_tells_nothing() -> None:
    unknown = "no run measured yet; memory from shapes"
    assert of([row("engine.precision=fp32")]).basis == unknown
    assert of([row(device_type="cpu")]).basis == unknown
    assert of([row()], engine=replace(ENGINE, device="cpu")).basis == unknown
    assert of([]).basis == unknown
    on_cpu = of([row(device_type="cpu")], engine=replace(ENGINE, device="auto"))
    assert on_cpu.seconds is not None
    assert on_cpu.gpu_hours == 0.0


def test_without_a_number_of_examples_there_is_no_time() -> None:
    elsewhere = ["data_mix.instruct.easy-vqa.dataset=elsewhere", "data_mix.instruct.easy-vqa.examples=null"]
    found = of([row()], *elsewhere)
    assert (found.seconds, found.gpu_hours, found.peak_memory) == (None, None, 3_000_000)
    assert found.basis == "how many examples there are is not known"


def test_the_key_is_of_what_costs_and_of_nothing_else() -> None:
    key = model_key(spec())
    same = ["seed=7", "backbone=nano-siglip", "llm=nano-instruct", "resize=crop", "schedule=160-steps"]
    assert {model_key(spec(each)) for each in same} == {key}
    renamed = copy.deepcopy(spec())  # its parts are those that every composition shares
    renamed.model.backbone.name, renamed.model.llm.name, renamed.model.llm.weights = "a", "b", "zoo:c"
    assert model_key(renamed) == key
    other = [
        "resolution=96",
        "backbone=nano-dinosiglip",
        "projector=linear",
        "tuning=lora",
        "stages.chain.finetune.trains=[llm]",
        "llm.depth=5",
        "llm.vocabulary=2048",
    ]
    assert len({model_key(spec(each)) for each in other} | {key}) == len(other) + 1


def test_a_summary_has_times_in_rows_and_totals() -> None:
    plan = make_plan([*ON_GPU, "seed=1,2"])
    fingerprints = [cell.train[0] for cell in plan.cells]
    told = summary(plan, {fingerprints[0]: "done"}, [row()])
    jobs = {each["fingerprint"]: each for each in told["jobs"]}
    one = jobs[fingerprints[0]]["seconds"]
    assert one == pytest.approx(jobs[fingerprints[0]]["tokens"] / 1000)
    totals = told["totals"]
    assert (totals["all"]["seconds"], totals["to_run"]["seconds"]) == pytest.approx((2 * one, one))
    assert totals["all"]["gpu_hours"] == pytest.approx(2 * one / 3600)
    assert totals["all"]["peak_memory"] == 3_000_000
    evaluations = [each for each in told["jobs"] if each["kind"] == "evaluate"]
    assert {each["seconds"] for each in evaluations} == {None}
    assert totals["all"]["not_timed"] == totals["all"]["not_priced"] == len(evaluations)
    unknown = summary(plan, {})["totals"]["all"]
    assert (unknown["seconds"], unknown["gpu_hours"], unknown["not_timed"]) == (0, 0, 2 + len(evaluations))


def test_prism_plan_tells_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", *ON_GPU, "llm=nano-base,nano-instruct", "resolution=64,96", "--store", str(tmp_path / "store")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "time and memory: no run measured yet; memory from shapes" in shown
    assert "GPU-hours" not in shown
    assert not (tmp_path / "store").exists()
    throughput.add(tmp_path / "store", row(tokens=1_000))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"tokens/s of 1 run of this model on {GPU}" in shown
    assert f"FLOP/s of 1 run on {GPU}" in shown
    assert "for 4 of 12 jobs, one after another" in shown
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    timed = [each for each in told["jobs"] if each["kind"] == "train"]
    assert told["totals"]["to_run"]["gpu_hours"] == pytest.approx(sum(each["gpu_hours"] for each in timed))
    assert {each["fingerprint"] for each in timed if "tokens/s" in each["basis"]} == {
        each["train"][0] for each in told["cells"] if each["choices"]["resolution"] == "64"
    }


def test_a_thousand_jobs_by_a_thousand_rows_take_no_while() -> None:
    plan = make_plan([*ON_GPU, "seed=range(1,1001)"])
    rows = [row(), row(engine=replace(ENGINE, micro_batch=4))] * 500
    started = time.process_time()
    summary(plan, {}, rows)
    assert time.process_time() - started < 5
