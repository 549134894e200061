"""One stage on one process, two and four: the same batches, the same losses, the same weights to rounding."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import tiny_training as tiny
import torch
import torch.distributed as dist
from ranks import run_ranks

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Engine, Tuning
from prism_sweeps.config.specs import StageSpec
from prism_sweeps.tracking.records import JobRecord, Store
from prism_sweeps.training.corpus import read_corpus, training_data
from prism_sweeps.training.world import Place, World

ALONE, TOGETHER = "a" * 16, "b" * 16


def assert_alike(one: JobRecord, other: JobRecord, losses: float = 1e-5, norms: float = 1e-4) -> None:
    """The same curve and, to what rounding makes of it, the same weights."""
    for mine, theirs in zip(one.read_metrics(), other.read_metrics(), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=losses)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=norms)
        for key in ("step", "examples", "tokens", "supervised_tokens", "learning_rate", "flops"):
            assert mine[key] == theirs[key], key
    mine, theirs = tiny.weights(one), tiny.weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        # Adam's first steps are those of a gradient's sign, which rounding decides where a gradient is next to nothing.
        far = (tensor - theirs[name]).abs() > 1e-4
        assert far.float().mean() < 0.01, name


def run(store: Store, ranks: int, spec: StageSpec, engine: Engine, local_size: int = 0, **more: object) -> list[str]:
    return run_ranks(
        ranks, store.root, tiny.train_as_one_of_many, store.root, TOGETHER, spec, engine, local_size, *more.values()
    )


@pytest.mark.parametrize(
    ("ranks", "settings", "local_size"),
    [
        (2, {}, 0),
        (2, {"micro_batch": 1}, 0),
        (2, {"sharding": "grad-only", "micro_batch": 3}, 0),
        (4, {}, 0),
        (4, {"sharding": "hybrid", "activation_checkpointing": "full"}, 2),
        (2, {"activation_checkpointing": "selective", "data_workers": 2}, 0),
    ],
)
def test_several_processes_train_as_one(store: Store, ranks: int, settings: dict[str, object], local_size: int):
    spec = tiny.stage_spec()
    tiny.train(store, ALONE, spec)
    assert run(store, ranks, spec, replace(tiny.ENGINE, **settings), local_size) == ["done"] * ranks
    assert_alike(store.job(TOGETHER), store.job(ALONE))


@pytest.mark.parametrize(
    "changes",
    [
        {"trains": ["projector"]},
        {"weight_decay": 20.0},  # makes every matrix smaller; none where groups are made of shards
        {"trains": ["vision", "projector", "llm"]},
        {"trains": ["vision", "projector"], "vision_blocks": 1},
        {"tuning": Tuning("lora", "lora", rank=4, alpha=8.0), "learning_rate": 1e-2},
        {"batching": "packed"},
        {"batching": "split-modality", "loss": "micro-batch-mean", "micro_batch": 2},
        {"held_out": 5},
    ],
    ids=str,
)
def test_whatever_is_trained_and_however(store: Store, changes: dict[str, object]):
    """Every sixth conversation has no image, so that with one example a pass there are passes without one.

    In split-modality batches there are whole steps without, which leave projector and towers as they are.
    """
    spec = tiny.stage_spec(**changes)
    tiny.train(store, ALONE, spec)
    run(store, 2, spec, replace(tiny.ENGINE, micro_batch=1, row_tokens=200))
    assert_alike(store.job(TOGETHER), store.job(ALONE))
    if "weight_decay" in changes:
        first = tiny.weights(store.job(TOGETHER))["llm.model.layers.0.mlp.up_proj.weight"]
        assert first.norm() < 0.95 * tiny.build_model(spec, store).llm.model.layers[0].mlp.up_proj.weight.norm()
    if "held_out" in changes:
        validated = [store.job(name).read_metrics()[-1]["validation_loss"] for name in (ALONE, TOGETHER)]
        assert validated[0] == pytest.approx(validated[1], abs=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "bf16-true"])
def test_lower_precisions_learn_as_much(store: Store, precision: str):
    spec = tiny.stage_spec(precision=precision)
    tiny.train(store, ALONE, spec)
    run(store, 2, spec, tiny.ENGINE)
    mine, theirs = (store.job(name).read_metrics() for name in (ALONE, TOGETHER))
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], rel=0.01)
    assert mine[-1]["loss"] < mine[0]["loss"]


# ---- batches


@pytest.mark.parametrize("batching", ["grouped", "split-modality", "packed"])
def test_batches_are_the_same_however_many_share_them(store: Store, batching: str):
    spec = tiny.stage_spec(batching=batching)
    corpus = read_corpus(spec, store, tiny.ENGINE, tiny.quiet)

    def names(ranks: int, micro_batch: int) -> list[list[str]]:
        """Of the conversations of each step, gathered from the passes of all."""
        engine = replace(tiny.ENGINE, micro_batch=micro_batch)
        makers = [
            training_data(spec, corpus, engine, 6, World(Place(rank, ranks), torch.device("cpu")), False, None)
            for rank in range(ranks)
        ]
        steps = [[maker(step) for maker in makers] for step in range(6)]
        assert all(len({len(data.passes) for data in step}) == 1 for step in steps)
        weights = [sum(float(p.weight_M.sum()) for data in step for p in data.passes) for step in steps]
        assert weights == pytest.approx([1.0] * 6, abs=1e-6)
        return [sorted(name for data in step for part in data.passes for name in part.names) for step in steps]

    expected = names(1, 0)
    for ranks, micro_batch in ((1, 1), (1, 3), (2, 0), (4, 1), (8, 0)):
        assert names(ranks, micro_batch) == expected


@pytest.mark.parametrize(("batch", "ranks", "text"), [(8, 3, "cannot be shared out equally to 3"), (4, 8, "to 8")])
def test_batches_that_cannot_be_shared_are_refused(store: Store, batch: int, ranks: int, text: str):
    spec = tiny.stage_spec(global_batch=batch)
    corpus = read_corpus(spec, store, tiny.ENGINE, tiny.quiet)
    world = World(Place(0, ranks), torch.device("cpu"))
    with pytest.raises(ConfigError, match=text):
        training_data(spec, corpus, tiny.ENGINE, 6, world, False, None)


# ---- stops


@dataclass
class StopBefore:
    """True in the last process alone, from before that step of an attempt on."""

    step: int
    asked: int = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.step and dist.get_rank() == dist.get_world_size() - 1


def test_stopped_and_gone_on_with_by_as_many_is_the_same_bits(store: Store):
    spec, draw = tiny.stage_spec(), random.Random(3)
    run_ranks(2, store.root, tiny.train_as_one_of_many, store.root, ALONE, spec, tiny.ENGINE)
    ends = []
    while ends[-1:] != ["done"]:
        ends += run(store, 2, spec, tiny.ENGINE, stop=StopBefore(draw.randint(2, 5)))
    assert ends.count("interrupted") >= 4
    mine, theirs = tiny.weights(store.job(ALONE)), tiny.weights(store.job(TOGETHER))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    losses = [[row["loss"] for row in store.job(name).read_metrics()] for name in (ALONE, TOGETHER)]
    assert losses[0] == losses[1]


def test_stopped_and_gone_on_with_by_other_numbers_is_the_same_curve(store: Store):
    spec = tiny.stage_spec()
    tiny.train(store, ALONE, spec)
    assert run(store, 2, spec, tiny.ENGINE, stop=StopBefore(3)) == ["interrupted"] * 2
    assert run(store, 4, spec, tiny.ENGINE, stop=StopBefore(4)) == ["interrupted"] * 4
    assert len(store.job(TOGETHER).read_metrics()) == 7
    tiny.train(store, TOGETHER, spec)
    assert_alike(store.job(TOGETHER), store.job(ALONE))
