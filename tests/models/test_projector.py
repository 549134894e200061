import pytest
import torch
from torch import nn

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Projector
from prism_sweeps.models.projector import build_projector, projector_seed
from prism_sweeps.models.weights import private_seed


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


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [("mlp", [(7, 6), (10, 7)]), ("fused-mlp", [(7, 6), (10, 7), (10, 10)])],
)
def test_a_hidden_width_is_that_of_the_first_layer(kind, shapes):
    projector = build_projector(Projector(kind, kind, hidden=7), 6, 10)
    assert [tuple(p.shape) for p in projector.parameters() if p.ndim == 2] == shapes
    assert [type(layer).__name__ for layer in projector] == ["Linear"] + ["GELU", "Linear"] * (len(shapes) - 1)


def test_a_linear_projector_has_no_hidden_width():
    with pytest.raises(ConfigError, match="projector=mine: hidden is 7, but a linear one has no hidden layer"):
        build_projector(Projector("mine", "linear", hidden=7), 6, 10)


def by_hand(kind: str) -> nn.Sequential:
    """The reference: torch seeded with the vision width, then its default layers."""
    torch.manual_seed(6)
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 10))
    if kind == "mlp":
        return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 10))
    return nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 10), nn.GELU(), nn.Linear(10, 10))


@pytest.mark.parametrize("kind", ["linear", "mlp", "fused-mlp"])
def test_drawn_from_the_vision_width_it_is_the_references(kind):
    expected = by_hand(kind).state_dict()
    projector = Projector("x", kind, drawn_from="vision-width")
    for seed in (1, 2):
        with private_seed(projector_seed(projector, 6, seed)):
            built = build_projector(projector, 6, 10).state_dict()
        assert built.keys() == expected.keys()
        assert all(torch.equal(built[name], expected[name]) for name in built)
    assert projector_seed(Projector("x", kind), 6, 2) == 2


def test_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fused-mlp'"):
        build_projector(Projector("x", "fused-gelu-mlp"), 4, 4)
