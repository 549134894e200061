"""What a stage trains of the modules it names: adapters of the language model, the last blocks of a tower."""

from dataclasses import replace

import pytest
import tiny_training as tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Tuning
from prism_sweeps.config.specs import StageSpec
from prism_sweeps.models.vlm import VLM, build_vlm
from prism_sweeps.planning.cost import job_cost
from prism_sweeps.planning.jobs import jobs_of
from prism_sweeps.tracking.records import Interrupted, JobRecord, Store
from prism_sweeps.training.checkpoint_files import numbered
from prism_sweeps.training.corpus import read_corpus, training_data
from prism_sweeps.training.optimiser import schedule
from prism_sweeps.training.stage import build_model, build_trainer
from prism_sweeps.training.world import ALONE, World

JOB = "a" * 16
HERE = World(ALONE, torch.device("cpu"))
LORA = Tuning("lora", "lora", rank=4, alpha=8.0, dropout=0.1)
PLAIN = Tuning("lora", "lora", rank=4, alpha=8.0)


def weights(record: JobRecord, module: str) -> dict[str, Tensor]:
    return load_file(record.weights / f"{module}.safetensors")


class ByHand(nn.Module):
    """A linear layer with plain A and B beside it."""

    def __init__(self, base: nn.Linear, a_RI: Tensor, scale: float) -> None:
        super().__init__()
        self.weight = base.weight.detach()
        self.a_RI = nn.Parameter(a_RI.clone())
        self.b_OR = nn.Parameter(torch.zeros(len(self.weight), len(a_RI)))
        self.scale = scale

    def forward(self, x_BTI: Tensor) -> Tensor:
        return F.linear(x_BTI, self.weight) + self.scale * (x_BTI @ self.a_RI.T @ self.b_OR.T)


def with_plain_matrices(vlm: VLM, like: VLM) -> None:
    """Puts in `vlm`, beside each layer that has an adapter in `like`, matrices that start from the same numbers."""
    starts = like.llm.state_dict()
    for name, module in list(vlm.llm.named_modules()):
        if f"{name}.lora_A.default.weight" in starts:
            adapted = ByHand(module, starts[f"{name}.lora_A.default.weight"], PLAIN.alpha / PLAIN.rank)
            vlm.llm.set_submodule(name, adapted)


def test_steps_are_those_of_plain_matrices(store: Store):
    """Four steps of AdamW: clipped gradient, decay on matrices."""
    spec = tiny.stage_spec(tuning=PLAIN, learning_rate=1e-2)
    ours, hand = build_model(spec, store), build_model(spec, store)
    trainer = build_trainer(spec, ours, 12, tiny.ENGINE, HERE)
    hand.requires_grad_(False)
    hand.projector.requires_grad_(True)
    with_plain_matrices(hand, like=ours)
    trained = {name: parameter for name, parameter in hand.named_parameters() if parameter.requires_grad}
    groups = [[p for p in trained.values() if (p.ndim == 2) is matrix] for matrix in (True, False)]
    adamw = torch.optim.AdamW(
        [{"params": params, "weight_decay": decay} for params, decay in zip(groups, (0.1, 0.0), strict=True)]
    )
    corpus = read_corpus(spec, store, tiny.ENGINE, tiny.quiet)
    make = training_data(spec, corpus, tiny.ENGINE, 12, HERE, compiled=False, features=None)
    for step in range(4):
        data = make(step)
        found = trainer.step(step, data)
        loss, _ = hand.loss(data.passes[0])
        loss.backward()
        assert found.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        norm = nn.utils.clip_grad_norm_(trained.values(), 1.0)
        assert found.grad_norm.item() == pytest.approx(float(norm), rel=1e-4)
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * schedule(step, 12, 0.03)
        adamw.step()
        adamw.zero_grad()
    mine = ours.state_dict()
    theirs = {
        name.replace("a_RI", "lora_A.default.weight").replace("b_OR", "lora_B.default.weight"): parameter
        for name, parameter in trained.items()
    }
    assert theirs.keys() == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    for name, parameter in theirs.items():
        assert torch.allclose(mine[name], parameter, rtol=1e-3, atol=2e-5), name


def test_an_adapted_stage_learns_and_leaves_a_plain_language_model(store: Store):
    spec = tiny.stage_spec(tuning=LORA, learning_rate=1e-2)
    result = tiny.train(store, spec=spec)
    rows = store.job(JOB).read_metrics()
    assert result["loss"] < rows[0]["loss"]
    base, merged = build_vlm(spec.model, spec.seed).llm.state_dict(), weights(store.job(JOB), "llm")
    assert merged.keys() == base.keys()
    changed = {name.split(".")[-2] for name in merged if not torch.equal(merged[name], base[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    delta = merged["model.layers.0.mlp.up_proj.weight"] - base["model.layers.0.mlp.up_proj.weight"]
    values = torch.linalg.svdvals(delta)
    assert values[3] > 100 * values[4]  # of rank 4

    after = tiny.stage_spec(trains=["projector"], max_steps=1, parent=JOB)
    tiny.train(store, "b" * 16, after)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in weights(store.job("b" * 16), "llm").items())


def test_adapters_train_and_are_merged_in_bf16(store: Store):
    result = tiny.train(store, spec=tiny.stage_spec(tuning=PLAIN, learning_rate=1e-2, precision="bf16"))
    assert result["loss"] < store.job(JOB).read_metrics()[0]["loss"]
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights(store.job(JOB), "llm").values())


def test_only_the_targets_get_adapters(store: Store):
    tuning = Tuning("lora", "lora", rank=2, targets=["q_proj", "v_proj"])
    vlm = build_model(spec := tiny.stage_spec(tuning=tuning), store)
    build_trainer(spec, vlm, 1, tiny.ENGINE, HERE)
    trained = {name for name, parameter in vlm.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-4] for name in trained if name.startswith("llm.")} == {"q_proj", "v_proj"}
    assert {name for name in trained if not name.startswith("llm.")} == {
        f"projector.{layer}.{what}" for layer in (0, 2) for what in ("weight", "bias")
    }


def test_a_stage_that_does_not_train_the_language_model_gets_no_adapters(store: Store):
    vlm = build_model(spec := tiny.stage_spec(tuning=LORA, trains=["projector"]), store)
    build_trainer(spec, vlm, 1, tiny.ENGINE, HERE)
    assert not any("lora" in name for name, _ in vlm.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [{"tuning": LORA}, {"trains": ["vision", "projector", "llm"], "vision_blocks": 1, "tuning": LORA}],
    ids=["adapters", "adapters and a block"],
)
def test_stops_leave_no_trace(store: Store, changes: dict[str, object]):
    spec: StageSpec = tiny.stage_spec(**changes)
    tiny.train(store, spec=spec)
    for steps in (3, 5):
        asked = iter(range(steps))
        with pytest.raises(Interrupted):
            tiny.train(store, "b" * 16, spec, stop=lambda asked=asked: next(asked, None) is None)
    newest = next(numbered(store.job("b" * 16).checkpoints)[0].glob("*.safetensors"))
    held = {name for name in load_file(newest) if name.startswith("model.llm.")}
    assert held
    assert all("lora_" in name for name in held)
    tiny.train(store, "b" * 16, spec)
    for module in ("projector", *(["vision"] if "trains" in changes else []), "llm"):
        one, other = weights(store.job(JOB), module), weights(store.job("b" * 16), module)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_of_vision_only_the_last_blocks_learn(store: Store):
    spec = tiny.stage_spec(trains=["vision", "projector"], vision_blocks=1, max_steps=2)
    tiny.train(store, spec=spec)
    before, after = build_vlm(spec.model, spec.seed).vision.state_dict(), weights(store.job(JOB), "vision")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(".blocks.1." in name for name in changed)  # three blocks, of which the last is not run
    assert {name for name in after if ".blocks.1." in name and name.endswith("weight")} <= changed


def test_a_tower_with_fewer_blocks_is_told(store: Store):
    with pytest.raises(ConfigError, match=r"tower 'tiny': the last 3 blocks are to be trained, but 2 run"):
        tiny.train(store, spec=tiny.stage_spec(trains=["vision"], vision_blocks=3))


@pytest.mark.parametrize(
    "overrides",
    [
        ("tuning=lora",),
        ("tuning=lora", "tuning.targets=[k_proj,gate_proj]", "llm=nano-instruct", "projector.hidden=50"),
        ("stages=nano-partial-finetune-two-stage", "backbone=nano-dinosiglip", "projector=fused-mlp"),
        ("stages=nano-full-finetune", "tuning=lora"),
    ],
)
def test_a_plan_counts_what_is_trained(overrides: tuple[str, ...], store: Store):
    job = jobs_of(compose_cell(["suite=easy-vqa", *overrides])[0])[0][-1]
    spec = replace(job.spec, parent=None)
    vlm = build_model(spec, store)
    build_trainer(spec, vlm, 1, tiny.ENGINE, HERE)
    assert job_cost(job).trainable == sum(p.numel() for p in vlm.parameters() if p.requires_grad)


def test_last_blocks_have_the_vision_rate(store: Store):
    spec = tiny.stage_spec(
        trains=["vision", "projector", "llm"], vision_blocks=2, vision_learning_rate=1e-5, projector_learning_rate=1e-4
    )
    vlm = build_model(spec, store)
    trainer = build_trainer(spec, vlm, 1, tiny.ENGINE, HERE)
    names = {id(parameter): name for name, parameter in vlm.named_parameters()}
    for group in trainer.optimiser.param_groups:
        modules = {names[id(parameter)].partition(".")[0] for parameter in group["params"]}
        rates = {"vision": 1e-5, "projector": 1e-4, "llm": 1e-3}
        assert {rates[module] for module in modules} == {group["peak"]}
    vision = [name for name in names.values() if name.startswith("vision.")]
    trained = [name for name, p in vlm.named_parameters() if p.requires_grad and name.startswith("vision.")]
    assert trained == [name for name in vision if ".blocks." in name]
