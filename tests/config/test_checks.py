from pathlib import Path

import pytest

from prism_sweeps.config.checks import backbone_patches, check_cell
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError

SMALL = "suite=easy-vqa"
CONV = ("backbone=efficientnet-lite0", "resolution=128")
VISION_17 = ("stages=nano-full-finetune", "stages.chain.full-finetune.vision_blocks=17")


def check(*overrides: str, config_dir: Path | None = None) -> None:
    cell, choices = compose_cell([SMALL, *overrides], config_dir)
    check_cell(cell, choices, config_dir)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("backbone=nano-dinosiglip", "resolution=96", "projector=fused-mlp"),
        ("projector=fused-mlp",),
        ("backbone=dinosiglip-so400m", "resolution=384", "llm=vicuna-v15-7b"),
        ("stages=nano-full-finetune-two-stage", "data_mix=nano-lvis4v-lrv"),
        ("data_mix=easy-vqa",),
        ("llm.context=66",),
        CONV,
        ("backbone=convnext-clip-l", "resolution=320"),
    ],
)
def test_cells_that_can_work_pass(overrides: tuple[str, ...]) -> None:
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("resolution=224",), "backbone=nano-clip has no weights at 224 px"),
        (("resolution=224",), "it has them at: 64, 96;"),
        (("backbone=clip-vit-l", "resolution=384"), "have 384 px: dinosiglip-so400m, dinov2-vit-l, dinov3-vit-l, "),
        (("backbone=dinoclip-vit-l", "resolution=384"), "(tower 'clip'); it has them at: 224, 336"),
        (("backbone.towers.clip.patch=7",), "64 px are no multiple of the patch 7 of tower 'clip'; fit: (none)"),
        (("backbone=nano-dinosiglip", "backbone.towers.siglip.patch=16"), "'dinov2' 64, 'siglip' 16"),
        (("backbone.towers.clip.source=timmm",), "did you mean 'timm'"),
        (("backbone.towers.clip.kind=cnv",), "did you mean 'conv'"),
        (("backbone.towers.clip.heads=0",), "tower 'clip': heads is 0"),
        ((*CONV, "backbone.towers.efficientnet.heads=1"), "its heads and prefix_tokens must be 0"),
        ((*CONV, "backbone.towers.efficientnet.source=open_clip"), "kind conv and source open_clip"),
        ((*CONV, "backbone.towers.efficientnet.parameters=null"), "must state its parameters and flops_per_pixel"),
        ((*CONV, "backbone.towers.efficientnet.patch=48"), "128 px are no multiple of the patch 48"),
        (("backbone=siglip2-so400m", "resolution=256"), "it has them at: 224, 378, 384"),
        ((*CONV, *VISION_17), "of tower 'efficientnet' 16 blocks run"),
        (("resize.strategy=leterbox",), "resize=letterbox: strategy is 'leterbox'; did you mean 'letterbox'"),
        (("projector.kind=mpl",), "did you mean 'mlp'"),
        (("llm.prompt=chat-templat",), "did you mean 'chat-template'"),
        (("engine.precision=fp16",), "valid: bf16, bf16-true, fp32"),
        (("suite.conditions=[blnk]",), "did you mean 'blank'"),
        (("suite.conditions=[]",), "conditions are empty; list some of real, blank, shuffled"),
        (("suite.conditions=[real,blank,real]",), "conditions have 'real' twice"),
        (("suite.benchmarks.easy-vqa.choices=['yes','no','yes']",), "choices have 'yes' twice"),
        (("suite.benchmarks.easy-vqa.answer=generat",), "did you mean 'generate'"),
        (("suite.benchmarks.easy-vqa.answer=choice",), "list them under `choices`"),
        (("suite.benchmarks.easy-vqa.prompt='{qestion}'",), "did you mean 'question'"),
        (("suite.benchmarks.easy-vqa.max_new_tokens=0",), "max_new_tokens is 0"),
        (("suite.benchmarks.easy-vqa.iou_threshold=1.5",), "iou_threshold is 1.5"),
        (("suite.examples=-1",), "examples is -1"),
        (("stages.chain.finetune.trains=[]",), "trains nothing; valid: vision, projector, llm"),
        (("stages.chain.finetune.trains=[lm]",), "did you mean 'llm'"),
        (("stages.chain.finetune.data=instrct",), "did you mean 'instruct'"),
        (("stages.chain.finetune.global_batch=0",), "global_batch is 0"),
        (("stages.chain.finetune.learning_rate=-1e-3",), "learning_rate is -0.001"),
        (("stages.chain.finetune.learning_rate=nan",), "learning_rate is nan"),
        (("stages.chain.finetune.warmup_ratio=1",), "warmup_ratio is 1.0"),
        (("stages.chain.finetune.weight_decay=-1",), "weight_decay is -1.0"),
        (("stages.chain.finetune.epochs=2",), "set schedule.epochs"),
        (("stages=nano-two-stage", "stages.chain.align.epochs=null"), "give it epochs"),
        (("schedule.epochs=0",), "schedule=one-epoch: epochs is 0.0"),
        (("schedule.max_steps=0",), "max_steps is 0"),
        (("data_mix.instruct.language.examples=0",), "examples of instruct.language is 0"),
        (("llm.context=65",), "64 patch tokens, but llm=nano-base has a context of 65"),
    ],
)
def test_a_cell_that_cannot_work_says_what_would(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(*overrides)
    assert told in str(caught.value)


def test_the_default_cell_can_work() -> None:
    check_cell(*compose_cell([]))


def test_a_chain_or_backbone_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/none.yaml").write_text("name: none")
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone/blind.yaml").write_text("name: blind")
    with pytest.raises(ConfigError, match="stages=none has no stage"):
        check("stages=none", config_dir=tmp_path)
    with pytest.raises(ConfigError, match="backbone=blind has no towers"):
        check("backbone=blind", config_dir=tmp_path)


def test_a_mix_without_alignment_data_is_told_the_mixes_that_have_some(tmp_path: Path) -> None:
    """Those of the package and the user's own."""
    (tmp_path / "data_mix").mkdir()
    (tmp_path / "data_mix/bare.yaml").write_text("name: bare\ninstruct: {a: {dataset: d, file: f}}")
    (tmp_path / "data_mix/mine.yaml").write_text(
        "name: mine\nalign: {a: {dataset: d, file: f}}\ninstruct: {a: {dataset: d, file: f}}"
    )
    with pytest.raises(ConfigError, match=r"mixes that have it: easy-vqa, .*mine, nano, nano-lrv"):
        check("stages=nano-two-stage", "data_mix=bare", config_dir=tmp_path)
    check("stages=nano-one-stage", "data_mix=bare", config_dir=tmp_path)


@pytest.mark.parametrize(
    # Prismatic VLMs: patches of each published backbone
    ("backbone", "pixels", "patches"),
    [
        ("clip-vit-l", 224, 256),
        ("clip-vit-l", 336, 576),
        ("siglip-so400m", 224, 256),
        ("siglip-so400m", 384, 729),
        ("dinov2-vit-l", 224, 256),
        ("in1k-vit-l", 224, 196),
        ("dinoclip-vit-l", 336, 576),
        ("dinosiglip-so400m", 384, 729),
    ],
)
def test_patches_are_the_published_ones(backbone: str, pixels: int, patches: int) -> None:
    cell, _ = compose_cell([SMALL, f"backbone={backbone}", f"resolution={pixels}"])
    assert backbone_patches(cell.backbone, pixels) == patches
