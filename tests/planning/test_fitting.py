"""Estimates without measurements, fits, budgets: by hand from the paper's sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prism_sweeps.cli import main
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.gpus import CARDS, GPUS, card_of, gpu_named
from prism_sweeps.config.specs import EvaluationSpec, Job
from prism_sweeps.planning.budget import check_budget
from prism_sweeps.planning.cost import job_cost
from prism_sweeps.planning.estimates import EVALUATION_SHARE, TRAINING_SHARE, Estimate, estimate, place_of
from prism_sweeps.planning.fitting import Setting, change_that_fits
from prism_sweeps.planning.jobs import jobs_of
from prism_sweeps.planning.measured import evaluated_row
from prism_sweeps.planning.plan import make_plan, summary

H100 = "NVIDIA H100 80GB HBM3"
BASE = ["engine=gpu", "suite=easy-vqa", "backbone=clip-vit-l", "resolution=336", "llm=vicuna-v15-7b"]
PAPER = [
    "engine=gpu", "suite=easy-vqa", "backbone=dinosiglip-so400m", "resolution=384", "resize=naive",
    "projector=fused-mlp-paper", "llm=llama2-7b", "stages=one-stage", "data_mix=llava-v15", "schedule=one-epoch",
]  # fmt: skip


def setting(*overrides: str, evaluation: bool = False) -> Setting:
    last = {text.partition("=")[0]: text for text in (*BASE, *overrides)}
    cell = compose_cell(list(last.values()))[0]
    train, evaluate = jobs_of(cell)
    return Setting(evaluate[0] if evaluation else train[-1], cell.engine, cell.cluster)


def told(*overrides: str, measured: Any = (), evaluation: bool = False) -> Estimate:
    asked = setting(*overrides, evaluation=evaluation)
    return estimate(asked.job, job_cost(asked.job), place_of(asked.job, asked.engine, asked.cluster), measured)


# ---- time by the GPU's name


def test_the_share_is_that_of_the_papers_nine_hours() -> None:
    cell = compose_cell([*PAPER, "cluster=slurm", "cluster.gpu=a100-80gb", "cluster.gpus_per_node=8"])[0]
    job = jobs_of(cell)[0][0]
    found = estimate(job, job_cost(job), place_of(job, cell.engine, cell.cluster), [])
    assert found.seconds == pytest.approx(9 * 3600, rel=0.02)
    assert found.gpu_hours == pytest.approx(72, rel=0.02)
    assert (found.devices, found.assumed) == (8, True)
    assert found.basis.startswith("assumption: 32% of the 312 TFLOP/s of 8 x a100-80gb, nothing measured")


def test_an_unmeasured_job_takes_its_operations_by_a_share_of_the_peak() -> None:
    cost = job_cost(setting().job)
    assert cost.flops is not None
    assert told().seconds is None
    one = told("cluster.gpu=h100-80gb")
    assert one.seconds == pytest.approx(cost.flops / (TRAINING_SHARE * 989.4e12))
    two = told("cluster.gpu=h100-80gb", "cluster.gpus_per_node=2", "cluster.nodes=2")
    assert (two.seconds, two.gpu_hours) == pytest.approx((one.seconds / 4, one.gpu_hours))
    assert two.devices == 4


def test_evaluations_are_shared_out_to_all_devices() -> None:
    cost = job_cost(setting(evaluation=True).job)
    assert cost.flops is not None
    found = told("cluster.gpu=a100-80gb", "cluster.gpus_per_node=8", evaluation=True)
    assert found.seconds == pytest.approx(cost.flops / (EVALUATION_SHARE * 312e12) / 8)
    apart = told(
        "cluster=slurm", "cluster.gpu=a100-80gb", "cluster.gpus_per_node=8",
        "cluster.overrides={evaluate: {gpus_per_node: 1}}", evaluation=True,
    )  # fmt: skip
    assert apart.gpu_hours == pytest.approx(found.gpu_hours or 0)


def test_jobs_side_by_side_have_a_gpu_each() -> None:
    found = told("cluster=slurm", "cluster.gpu=a100-80gb", "cluster.gpus_per_node=8", "cluster.jobs_per_allocation=8")
    assert (found.devices, found.gpu_hours) == (1, pytest.approx((found.seconds or 0) / 3600))


def test_what_was_measured_on_that_gpu_counts_before_an_assumption() -> None:
    spec = setting(evaluation=True).job.spec
    assert isinstance(spec, EvaluationSpec)
    engine = setting().engine
    rows = [evaluated_row(spec, engine, 1000, seconds, 1, H100, "cuda") for seconds in (50.0, 100.0, 40.0)]
    examples = job_cost(setting(evaluation=True).job).examples
    assert examples is not None
    found = told("cluster.gpu=h100-80gb", evaluation=True, measured=rows)
    assert found.seconds == pytest.approx(examples / 20)
    assert found.basis.startswith(f"examples/s of 3 runs of such a benchmark on {H100}")
    assert not found.assumed
    assert told("cluster.gpu=a100-80gb", evaluation=True, measured=rows).assumed
    assert told(evaluation=True, measured=rows).seconds == pytest.approx(examples / 20)
    two = [evaluated_row(spec, engine, 1000, 25.0, 2, H100, "cuda")]
    assert told("cluster.gpu=h100-80gb", evaluation=True, measured=two).seconds == pytest.approx(examples / 20)
    assert told(evaluation=True, measured=two).devices == 2
    # Others of the same kind tell operations a second.
    other = told("cluster.gpu=h100-80gb", "engine.eval_batch=8", evaluation=True, measured=rows)
    cost = job_cost(setting(evaluation=True).job)
    assert cost.flops is not None
    assert other.seconds == pytest.approx(cost.flops / rows[0].flops_per_second)
    assert other.basis.startswith(f"FLOP/s of 3 runs on {H100}")


def test_a_gpu_that_cannot_or_is_not_known_or_not_used() -> None:
    assert "does not compute in bfloat16" in told("cluster.gpu=v100-16gb").basis
    assert told("cluster.gpu=v100-16gb", "engine.precision=fp32").seconds is not None
    with pytest.raises(ConfigError, match=r"cluster.gpu=h100-80g: .*did you mean 'h100-80gb'"):
        gpu_named("h100-80g")
    with pytest.raises(ConfigError, match="engine=cpu computes on the CPU; take engine=gpu"):
        told("engine=cpu", "cluster.gpu=h100-80gb")


def test_names_of_gpus_are_those_of_their_cards() -> None:
    assert card_of(H100) is GPUS["h100-80gb"].card
    assert card_of("NVIDIA A100-SXM4-40GB") is GPUS["a100-40gb"].card is GPUS["a100-80gb"].card
    assert len(GPUS) == sum(len(card.memory) for card in CARDS)
    assert GPUS["a100-80gb"].memory == 80 << 30


# ---- what makes a job fit


def test_the_smallest_change_that_makes_it_fit() -> None:
    """Eight A100 hold the states of a 7B (14 GB each), and not what 8 rows of 2624 positions keep (91 GB)."""
    paper = ("data_mix=llava-v15", "stages=one-stage", "cluster.gpus_per_node=8")
    small, recomputed = (*paper, "cluster.gpu=a100-40gb"), "engine.activation_checkpointing=full"
    assert change_that_fits(setting(*paper, "cluster.gpu=a100-80gb")) == ["engine.activation_checkpointing=selective"]
    assert change_that_fits(setting(*small)) == [recomputed]
    assert setting(*small, recomputed).fits()
    assert change_that_fits(setting(*paper, recomputed, "cluster.gpu=rtx-3090")) == ["engine.micro_batch=4"]
    alone = setting(*paper[:2], recomputed, "engine.micro_batch=1", "cluster.gpu=a100-80gb")
    assert change_that_fits(alone) == ["cluster.gpus_per_node=2"]
    # Sixteen nodes would do as well, and are not what anybody would call a small change.
    many = setting(*paper, "cluster=slurm", "cluster.gpu=rtx-4090")
    assert change_that_fits(many) == ["engine.activation_checkpointing=full", "engine.micro_batch=4"]


@pytest.mark.parametrize(
    ("overrides", "evaluation"),
    [
        (("data_mix=llava-v15", "cluster.gpu=a100-80gb"), False),
        (("data_mix=llava-v15", "cluster.gpu=a100-40gb", "llm=vicuna-v15-13b"), False),
        (("data_mix=llava-v15", "cluster.gpu=rtx-4090", "cluster=slurm"), False),
        (("data_mix=llava-v15", "cluster.gpu=a100-40gb", "stages.chain.finetune.batching=packed"), False),
        (("cluster.gpu=rtx-4090", "cluster.gpus_per_node=8", "engine.sharding=grad-only"), False),
        (("cluster.gpu=rtx-4090",), True),
    ],
)
def test_with_the_change_it_fits_when_it_is_pasted(overrides: tuple[str, ...], evaluation: bool) -> None:
    before = setting(*overrides, evaluation=evaluation)
    assert not before.fits()
    change = change_that_fits(before)
    assert change
    assert setting(*overrides, *change, evaluation=evaluation).fits()


def test_what_makes_room_on_no_gpu_is_told_as_such() -> None:
    assert change_that_fits(setting("cluster.gpu=rtx-4090", "llm=vicuna-v15-13b", evaluation=True)) is None


def test_more_devices_are_asked_for_where_the_request_is_from() -> None:
    """The stage has a request of its own, which an override of the general one would not reach."""
    own = setting(
        "cluster=slurm", "cluster.gpu=a100-80gb", "engine.activation_checkpointing=full", "engine.micro_batch=1",
        "cluster.overrides={finetune: {gpus_per_node: 1, tasks_per_node: 1}}",
    )  # fmt: skip
    assert change_that_fits(own) == [
        "cluster.overrides.finetune.gpus_per_node=2",
        "cluster.overrides.finetune.tasks_per_node=2",
    ]


def test_devices_that_do_not_divide_the_batch_are_no_answer() -> None:
    odd = setting("data_mix=llava-v15", "cluster.gpu=a100-80gb", "stages.chain.finetune.global_batch=129")
    change = change_that_fits(odd)
    assert change is None or not any("gpus_per_node" in each for each in change)


def test_a_summary_says_what_fits_only_where_a_gpu_is_named() -> None:
    plain = summary(make_plan([*BASE]), {})
    assert {(row["fits"], row["fits_with"]) for row in plain["jobs"]} == {(None, None)}
    found = summary(make_plan([*BASE, "cluster.gpu=a100-40gb"]), {})
    train = next(row for row in found["jobs"] if row["kind"] == "train")
    assert train["fits"] is False
    assert train["fits_with"]
    assert found["totals"]["all"]["not_fitting"] >= 1
    assert found["totals"]["all"]["not_timed"] == 0


# ---- budgets


def test_a_budget_is_kept_or_refused_with_what_it_costs() -> None:
    plan = make_plan([*BASE, "cluster.gpu=a100-80gb", "seed=1,2"])
    found = summary(plan, {})
    cost = found["totals"]["all"]["gpu_hours"]
    check_budget(plan, found, None)
    check_budget(plan, found, cost + 1)
    with pytest.raises(
        ConfigError, match=r"costs [\d.,]+ GPU-hours, more than the budget of 0.1 GPU-hours; the largest cells: "
    ):
        check_budget(plan, found, 0.1)
    done = dict.fromkeys(plan.jobs, "done")
    check_budget(plan, summary(plan, done), 0.0)
    with pytest.raises(ConfigError, match="should be GPU-hours, 0 or more"):
        check_budget(plan, found, float("nan"))


def test_a_cost_that_is_not_known_is_within_no_budget() -> None:
    plan = make_plan([*BASE])
    with pytest.raises(ConfigError, match=r"the cost of 3 of the 3 jobs .* is not known .*cluster.gpu=h100-80gb"):
        check_budget(plan, summary(plan, {}), 1e9)
    on_cpu = make_plan(["suite=easy-vqa"])
    check_budget(on_cpu, summary(on_cpu, {}), 0.0)  # a CPU costs no GPU-hours, however long it takes


def test_prism_plan_refuses_after_it_has_shown(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", *BASE, "cluster.gpu=a100-40gb", "--store", str(tmp_path), "--budget"]
    assert main([*command, "1e6"]) == 0
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "would fit with engine." in shown
    assert "already done" in shown
    assert main([*command, "0.5", "--json"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["totals"]["to_run"]["gpu_hours"] > 0.5
    assert "more than the budget of 0.5 GPU-hours" in told.err


def test_prism_sweep_refuses_before_anything_runs(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    assert main(["sweep", *BASE, "cluster.gpu=a100-40gb", "--budget", "0.5", "--store", str(store)]) == 2
    assert "more than the budget of 0.5 GPU-hours" in capsys.readouterr().err
    assert not (store / "jobs").exists()
    assert not (store / "studies").exists()


def test_equal_jobs_cost_the_same_whether_or_not_they_share_parts() -> None:
    plan = make_plan([*BASE, "cluster.gpu=a100-40gb", "seed=1,2", "resize=letterbox,naive"])
    shared = {row["fingerprint"]: row for row in summary(plan, {})["jobs"]}
    apart = make_plan([*BASE, "cluster.gpu=a100-40gb", "seed=1,2", "resize=letterbox,naive"]).to_plain()
    read = summary(type(plan).from_plain(json.loads(json.dumps(apart))), {})
    assert {row["fingerprint"]: row for row in read["jobs"]} == shared
    one: Job = next(iter(plan.jobs.values()))
    assert shared[one.fingerprint]["flops"] == job_cost(one).flops
