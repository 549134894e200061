import pytest

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.schema import Tuning
from prism_sweeps.config.specs import EvaluationSpec, Job, StageSpec
from prism_sweeps.planning.jobs import jobs_of

TWO = "stages=nano-two-stage"


def train(*overrides: str) -> list[Job]:
    return jobs_of(compose_cell(["suite=easy-vqa", *overrides])[0])[0]


def stage(job: Job) -> StageSpec:
    assert isinstance(job.spec, StageSpec)
    return job.spec


def test_a_chain_hands_its_weights_on() -> None:
    align, finetune = train(TWO, "schedule=two-epochs", "seed=4", "stages.chain.align.epochs=0.5")
    assert align.parents == []
    assert finetune.parents == [align.fingerprint] == [stage(finetune).parent]
    assert (stage(align).name, stage(align).stage.epochs, list(stage(align).sources)) == ("align", 0.5, ["captions"])
    assert (stage(finetune).stage.epochs, stage(finetune).seed) == (2.0, 4)
    assert sorted(stage(finetune).sources) == ["captions", "instruct", "language"]


@pytest.mark.parametrize(
    "override",
    [
        "schedule=three-epochs",
        "schedule.max_steps=3",
        "data_mix=nano-lrv",
        "stages=nano-full-finetune-two-stage",
        "stages.chain.finetune.learning_rate=0.5",
        "suite.conditions=[real]",
        "engine=cpu",
        "engine.micro_batch=2",
        "store.root=/else",
    ],
)
def test_what_an_align_stage_does_not_use_leaves_it_shared(override: str) -> None:
    base, other = train(TWO), train(*([TWO] if "stages=" not in override else []), override)
    assert other[0].fingerprint == base[0].fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "resize=crop",
        "projector=linear",
        "backbone=nano-siglip",
        "resolution=96",
        "llm=nano-instruct",
        "stages.chain.align.epochs=0.75",
        "data_mix.align.captions.examples=5",
        "engine.precision=bf16",
    ],
)
def test_what_an_align_stage_uses_changes_the_whole_chain(override: str) -> None:
    base, other = train(TWO), train(TWO, override)
    assert all(a.fingerprint != b.fingerprint for a, b in zip(base, other, strict=True))


def test_tuning_changes_the_stages_that_train_the_language_model_alone() -> None:
    base, lora = train(TWO), train(TWO, "tuning=lora")
    assert lora[0].fingerprint == base[0].fingerprint
    assert lora[1].fingerprint != base[1].fingerprint
    assert (stage(lora[0]).tuning, stage(lora[1]).tuning.method) == (Tuning(), "lora")
    assert " lora " in lora[1].title
    assert " lora " not in base[1].title


def test_what_a_way_of_tuning_does_not_use_means_nothing() -> None:
    assert train("tuning.rank=5")[0].fingerprint == train()[0].fingerprint
    one = train("tuning=lora", "tuning.targets=[q_proj,v_proj]")
    other = train("tuning=lora", "tuning.targets=[v_proj,q_proj,v_proj]")
    assert one[0].fingerprint == other[0].fingerprint
    assert len({train("tuning=lora", f"tuning.rank={rank}")[0].fingerprint for rank in (16, 32)}) == 2


@pytest.mark.parametrize(
    "override",
    ["projector=mlp-paper", "projector.hidden=200", "stages=nano-partial-finetune-two-stage"],
)
def test_the_recipes_fields_are_part_of_a_job(override: str) -> None:
    whole = "stages=nano-full-finetune-two-stage"
    base, other = train(whole), train(whole, override) if "stages" not in override else train(override)
    assert other[-1].fingerprint != base[-1].fingerprint
    assert (other[0].fingerprint == base[0].fingerprint) == ("stages" in override)


def test_a_stage_after_another_is_not_the_stage_alone() -> None:
    alone, after = train()[-1], train(TWO)[-1]
    assert alone.fingerprint != after.fingerprint
    assert alone.title != after.title


def test_the_order_of_trained_modules_and_sources_means_nothing() -> None:
    a, b = train("stages.chain.finetune.trains=[llm,projector]"), train()
    assert a[0].fingerprint == b[0].fingerprint
    assert list(stage(train("data_mix=nano-lvis4v-lrv")[0]).sources) == [
        "captions",
        "instruct",
        "language",
        "lrv",
        "lvis4v",
    ]


def test_one_evaluation_for_each_benchmark_and_condition() -> None:
    cell, _ = compose_cell(["suite=nano", "suite.examples=7"])
    training, evaluations = jobs_of(cell)
    specs = [job.spec for job in evaluations if isinstance(job.spec, EvaluationSpec)]
    assert len(specs) == len({job.fingerprint for job in evaluations}) == 13 * 2
    assert {spec.condition for spec in specs} == {"real", "blank"}
    assert {spec.parent for spec in specs} == {training[-1].fingerprint}
    assert {spec.benchmark.examples for spec in specs} == {7}
    assert cell.suite.benchmarks["nano-gqa"].examples is None
