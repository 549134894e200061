"""The choices that use the small real weights, without the weights: shapes and sizes against the library's own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from prism_sweeps.config.checks import check_cell
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.small_weights import SMALL
from prism_sweeps.models.vision import build_vision
from prism_sweeps.planning.plan import make_plan

ARCHITECTURES = {"efficientnet-lite0": "tf_efficientnet_lite0", "saliency-dinov2-s": "vit_small_patch14_dinov2"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache whose towers are drawn at random, in the files and names that the real ones have."""
    root = tmp_path_factory.mktemp("cache")
    for name, model in ARCHITECTURES.items():
        folder = root / "prism-sweeps" / "small" / name
        folder.mkdir(parents=True)
        save_file(timm.create_model(model).state_dict(), folder / "model.safetensors")
        (folder / "card.json").write_text(json.dumps(SMALL[name].source))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root))
        yield root


@pytest.mark.parametrize(
    ("backbone", "pixels", "patches", "width"),
    [
        ("small-efficientnet-lite0", 128, 16, 1280),
        ("small-dinov2-s", 112, 64, 384),
        ("small-dinov2-s", 140, 100, 384),
    ],
)
def test_towers_give_what_they_state(cache: Path, backbone: str, pixels: int, patches: int, width: int) -> None:
    cell, choices = compose_cell([f"backbone={backbone}", f"resolution={pixels}", "llm=small-smollm2"])
    check_cell(cell, choices)
    vision = build_vision(cell.backbone, cell.resolution).eval()
    (name,) = cell.backbone.towers
    with torch.no_grad():
        features = vision({name: torch.randn(1, 3, pixels, pixels)})
    assert features.shape == (1, patches, width)
    assert features.isfinite().all()


def test_study_pairs_each_tower_with_its_size_and_trains_projectors_alone() -> None:
    plan = make_plan(["small/real"])
    assert len(plan.cells) == 4
    for cell in plan.cells:
        assert [plan.jobs[job].spec.stage.trains for job in cell.train] == [["projector"]] * 2


def test_two_stages_align_first() -> None:
    cell, choices = compose_cell(["stages=small-two-stage", "data_mix=small-nano", "llm=small-smollm2"])
    check_cell(cell, choices)
    assert [stage.data for stage in cell.stages.chain.values()] == ["align", "instruct"]
