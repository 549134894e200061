"""The recipes against what was published, and what is refused of those that a user writes."""

import pytest

from prism_sweeps.config.checks import check_cell
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Stage, Tuning

COMMON = {"max_grad_norm": 1.0, "warmup_ratio": 0.03, "beta1": 0.9, "beta2": 0.999, "vision_blocks": None}
ALIGN = {**COMMON, "trains": ["projector"], "data": "align", "epochs": 1.0, "global_batch": 256, "learning_rate": 1e-3}
TUNE = {**COMMON, "data": "instruct", "epochs": None, "global_batch": 128, "learning_rate": 2e-5}
PUBLISHED = {
    "align": {**ALIGN, "weight_decay": 0.0},
    "finetune": {**TUNE, "trains": ["projector", "llm"]},
    "full-finetune": {**TUNE, "trains": ["vision", "projector", "llm"]},
}
"""prismatic-vlms' conf/models.py ; the last stage's epochs are the schedule's."""


def stages(name: str) -> dict[str, Stage]:
    return compose_cell(["suite=easy-vqa", f"stages={name}"])[0].stages.chain


@pytest.mark.parametrize(("suffix", "decay"), [("", 0.0), ("-decayed", 0.1)], ids=["as it ran", "as configured"])
@pytest.mark.parametrize(
    ("name", "chain"),
    [
        ("one-stage", ["finetune"]),
        ("two-stage", ["align", "finetune"]),
        ("full-finetune-one-stage", ["full-finetune"]),
        ("full-finetune-two-stage", ["align", "full-finetune"]),
    ],
)
def test_stages_are_the_published_ones(name: str, chain: list[str], suffix: str, decay: float) -> None:
    found = stages(name + suffix)
    assert list(found) == chain
    for stage, recipe in found.items():
        for key, value in {"weight_decay": decay, **PUBLISHED[stage]}.items():
            assert getattr(recipe, key) == value, f"{stage}: {key}"


def test_adapters_have_llavas_rates() -> None:
    """LLaVA-1.5, finetune_lora.sh: rank 128, alpha 256, 2e-4, 2e-5 for the projector; dropout is its default."""
    for name in ("one-stage-lora", "two-stage-lora"):
        recipe = stages(name)["finetune"]
        assert (recipe.learning_rate, recipe.projector_learning_rate) == (2e-4, 2e-5)
        assert (recipe.global_batch, recipe.warmup_ratio, recipe.weight_decay) == (128, 0.03, 0.0)
    tuning = compose_cell(["suite=easy-vqa", "tuning=lora-llava"])[0].tuning
    assert tuning == Tuning("lora-llava", "lora", rank=128, alpha=256.0, dropout=0.05)


def test_partial_finetuning_is_full_finetuning_of_the_last_blocks() -> None:
    full, partial = stages("full-finetune-one-stage")["full-finetune"], stages("partial-finetune-one-stage")
    assert vars(partial["partial-finetune"]) == {**vars(full), "vision_blocks": 4}
    assert list(stages("partial-finetune-two-stage")) == ["align", "partial-finetune"]


def check(*overrides: str) -> None:
    check_cell(*compose_cell(["suite=easy-vqa", *overrides]))


FULL = ("stages=nano-full-finetune",)


@pytest.mark.parametrize(
    "overrides",
    [
        ("tuning=lora",),
        ("tuning=lora-llava", "stages=two-stage-lora", "data_mix=easy-vqa"),
        ("tuning=lora", "tuning.targets=[q_proj,down_proj]"),
        # Names of an architecture that is not known here are checked when the model is loaded.
        ("tuning=lora", "tuning.targets=[Wqkv]", "llm.architecture=mpt"),
        # Adapters' numbers mean nothing where there are none.
        ("tuning.rank=0",),
        (*FULL, "stages.chain.full-finetune.vision_blocks=3"),
        ("stages=nano-partial-finetune-two-stage",),
        ("projector=mlp-paper",),
        ("projector=fused-mlp-4096", "projector.hidden=512"),
    ],
)
def test_recipes_that_can_work_pass(overrides: tuple[str, ...]) -> None:
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("tuning.method=lorra",), "tuning=full: method is 'lorra'; did you mean 'lora'"),
        (("tuning=lora", "tuning.rank=0"), "tuning=lora: rank is 0; it must be positive"),
        (("tuning=lora", "tuning.alpha=-1"), "tuning=lora: alpha is -1.0"),
        (("tuning=lora", "tuning.dropout=1"), "dropout is 1.0; it must be at least 0 and below 1"),
        (
            ("tuning=lora", "tuning.targets=[q_prj]"),
            "tuning=lora: a target in llm=nano-base is 'q_prj'; did you mean 'q_proj'? valid: down_proj, gate_proj, "
            "k_proj, o_proj, q_proj, up_proj, v_proj",
        ),
        (("tuning=lora", "llm=phi-2", "tuning.targets=[o_proj]"), "valid: dense, fc1, fc2, k_proj, q_proj, v_proj"),
        (
            ("tuning=lora", "stages.chain.finetune.trains=[projector]"),
            "no stage of stages=nano-one-stage trains the llm; take tuning=full or other stages",
        ),
        (
            ("stages.chain.finetune.vision_blocks=2",),
            "stage 'finetune': vision_blocks is 2, but the stage trains projector, llm: add vision to trains",
        ),
        ((*FULL, "stages.chain.full-finetune.vision_blocks=0"), "vision_blocks is 0; it must be positive"),
        (
            (*FULL, "stages.chain.full-finetune.vision_blocks=4"),
            "vision_blocks is 4, but of tower 'clip' 3 blocks run; give at most as many",
        ),
        (("projector=linear", "projector.hidden=9"), "projector=linear: hidden is 9, but a linear one has no hidden"),
        (("projector.hidden=-1",), "projector=mlp: hidden is -1; it must be positive"),
        (("projector.drawn_from=vision-with",), "did you mean 'vision-width'"),
    ],
)
def test_a_recipe_that_cannot_work_says_what_would(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(*overrides)
    assert told in str(caught.value)
