import pytest
import tiny_training as tiny
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from prism_sweeps.config.schema import Stage
from prism_sweeps.models.vlm import build_vlm
from prism_sweeps.training.optimiser import build_optimiser, parameter_groups, schedule, set_learning_rate


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.ModuleDict({"proj": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
        self.llm = nn.ModuleDict(
            {"embed": nn.Embedding(5, 3), "input_layernorm": nn.LayerNorm(3), "head": nn.Linear(3, 5)}
        )
        self.llm.head.weight = self.llm.embed.weight
        self.projector = nn.Linear(3, 3)


def groups(stage: Stage, frozen: str = "projector") -> dict[str, tuple[float, float]]:
    """Name of each trained parameter -> (peak, weight decay)."""
    model = Model()
    model.get_submodule(frozen).requires_grad_(False)
    named = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    return {
        names[id(parameter)]: (group["peak"], group["weight_decay"])
        for group in build_optimiser(parameter_groups(model, stage), named, stage).param_groups
        for parameter in group["params"]
    }


def test_weight_decay_falls_on_matrices_only():
    found = groups(Stage(learning_rate=0.1, weight_decay=0.2))
    assert found == {
        "vision.proj.weight": (0.1, 0.2),
        "vision.proj.bias": (0.1, 0.0),
        "vision.norm.weight": (0.1, 0.0),
        "vision.norm.bias": (0.1, 0.0),
        "llm.embed.weight": (0.1, 0.2),
        "llm.input_layernorm.weight": (0.1, 0.0),
        "llm.input_layernorm.bias": (0.1, 0.0),
        "llm.head.bias": (0.1, 0.0),
    }


@pytest.mark.parametrize("trains", [["projector"], ["projector", "llm"], ["vision", "projector", "llm"]])
def test_weight_decay_reaches_every_matrix_that_is_trained_and_nothing_else(trains: list[str]):
    vlm = build_vlm(tiny.model(), 1)
    vlm.train_only(trains)
    found: dict[float, set[str]] = {0.0: set(), 0.1: set()}
    for group in parameter_groups(vlm, Stage(learning_rate=2e-5, weight_decay=0.1)):
        found[group.weight_decay] |= set(group.names)
    parameters = {name: p for name, p in vlm.named_parameters() if name.partition(".")[0] in trains}
    assert found[0.1] == {name for name, parameter in parameters.items() if parameter.ndim > 1}
    assert found[0.0] == {name for name, parameter in parameters.items() if parameter.ndim == 1}
    assert all(name.endswith("bias") or "norm" in name for name in found[0.0])


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_a_part_may_have_its_own_learning_rate(part: str):
    own = {f"{part}_learning_rate": 0.01}
    found = groups(Stage(learning_rate=0.1, weight_decay=0.2, **own), frozen="llm")
    rates = {name: peak for name, (peak, _) in found.items()}
    assert {peak for name, peak in rates.items() if name.startswith(f"{part}.")} == {0.01}
    assert {peak for name, peak in rates.items() if not name.startswith(f"{part}.")} == {0.1}


@pytest.mark.parametrize(("steps", "ratio"), [(100, 0.03), (7, 0.5), (1, 0.03), (40, 0.0), (520, 0.03)])
def test_schedule_is_that_of_transformers_one_step_on(steps: int, ratio: float):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimiser, int(steps * ratio), steps + 1)
    for step in range(steps):
        optimiser.step()
        theirs.step()
        assert schedule(step, steps, ratio) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)


def test_every_step_moves_and_the_peak_is_reached():
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.001


def test_all_groups_follow_the_schedule():
    model, stage = Model(), Stage(learning_rate=0.1, weight_decay=0.2, vision_learning_rate=0.01)
    optimiser = build_optimiser(parameter_groups(model, stage), dict(model.named_parameters()), stage)
    assert set_learning_rate(optimiser, 0.5) == pytest.approx(0.05)
    assert {round(group["lr"] / group["peak"], 6) for group in optimiser.param_groups} == {0.5}
