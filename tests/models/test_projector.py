import pytest
import torch

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Projector
from prism_sweeps.models.projector import build_projector


@pytest.mark.parametrize(
    ("kind", "vision_width", "llm_width", "millions"),
    [
        ("mlp", 1024, 4096, 20.98),
        ("mlp", 1152, 4096, 21.50),
        ("mlp", 1152, 5120, 32.12),
        ("fused-mlp", 2048, 4096, 67.13),
        ("fused-mlp", 2176, 4096, 71.39),
        ("fused-mlp", 2176, 5120, 89.74),
        ("linear", 1024, 4096, (1024 * 4096 + 4096) / 1e6),
    ],
)
def test_parameters_are_those_of_the_reference(kind, vision_width, llm_width, millions):
    """Counts of prismatic-vlms' projectors."""
    with torch.device("meta"):
        projector = build_projector(Projector(kind, kind), vision_width, llm_width)
    assert sum(p.numel() for p in projector.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("kind", ["linear", "mlp", "fused-mlp"])
def test_each_patch_is_projected_by_itself(kind):
    projector = build_projector(Projector(kind, kind), 6, 10)
    features_BPV = torch.randn(2, 3, 6)
    assert projector(features_BPV).shape == (2, 3, 10)
    assert torch.allclose(projector(features_BPV)[:, 1], projector(features_BPV[:, 1]), atol=1e-6)
    is_linear = torch.allclose(
        projector(2 * features_BPV) - projector(features_BPV),
        projector(features_BPV) - projector(0 * features_BPV),
        atol=1e-5,
    )
    assert is_linear == (kind == "linear")


def test_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fused-mlp'"):
        build_projector(Projector("x", "fused-gelu-mlp"), 4, 4)
