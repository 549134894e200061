"""The formulas of memory beside the tensors that are really alive while tiny models train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from live import Live
from torch.testing._internal.distributed.fake_pg import FakeStore

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.schema import (
    Backbone,
    Engine,
    LanguageModel,
    Projector,
    Resize,
    Resolution,
    Source,
    Stage,
    Tower,
    Tuning,
)
from prism_sweeps.config.specs import EvaluationSpec, ModelSpec, StageSpec
from prism_sweeps.models import losses
from prism_sweeps.models.batch import Batch
from prism_sweeps.models.vlm import build_vlm
from prism_sweeps.planning import activations
from prism_sweeps.planning.activations import Pass, kept
from prism_sweeps.planning.jobs import jobs_of
from prism_sweeps.planning.memory import (
    ROW,
    Devices,
    Memory,
    evaluation_memory,
    largest_pass,
    needed_of_gpu,
    training_memory,
)
from prism_sweeps.training.sharding import hold_between_passes, local_part
from prism_sweeps.training.stage import build_trainer
from prism_sweeps.training.world import ALONE, Place, World

PIXELS, PATCH, ROWS, TEXT = 64, 8, 8, 40
PATCHES = (PIXELS // PATCH) ** 2
ALL, USUAL, FROZEN = ("vision", "projector", "llm"), ("projector", "llm"), ("projector",)


@dataclass(frozen=True)
class Shape:
    """Of a tiny model."""

    width: int = 64
    depth: int = 4
    kv_heads: int = 4
    mlp: int = 160
    vocabulary: int = 258
    tower: int = 48
    blocks: int = 5
    architecture: str = "llama"
    projector: str = "mlp"


def model(shape: Shape) -> ModelSpec:
    tower = Tower(
        name="tiny", model="vit_tiny_patch16_224", weights={PIXELS: "random:1"}, width=shape.tower, depth=shape.blocks,
        heads=4, patch=PATCH, prefix_tokens=1,
        kwargs={"embed_dim": shape.tower, "depth": shape.blocks, "num_heads": 4, "patch_size": PATCH},
    )  # fmt: skip
    llm = LanguageModel(
        name="tiny", weights="random:2", prompt="in-out", width=shape.width, depth=shape.depth, heads=4,
        kv_heads=shape.kv_heads, mlp_width=shape.mlp, vocabulary=shape.vocabulary, context=PATCHES + TEXT,
        architecture=shape.architecture,
    )  # fmt: skip
    return ModelSpec(
        Backbone("tiny", {"tiny": tower}),
        Resolution(str(PIXELS), PIXELS),
        Resize("naive", "naive"),
        Projector(shape.projector, shape.projector),
        llm,
    )


def spec(shape: Shape, trains: Sequence[str], precision: str, tuning: Tuning | None = None) -> StageSpec:
    stage = Stage(trains=list(trains), epochs=1.0, global_batch=ROWS, learning_rate=1e-3)
    sources = {"a": Source("elsewhere", "a/chat.json")}
    return StageSpec("finetune", model(shape), stage, sources, 1, precision, tuning=tuning or Tuning())


def batch(rows: int = ROWS) -> Batch:
    """Rows of an image and of TEXT tokens, all of which but BOS are predicted."""
    width = PATCHES + TEXT
    text = [[row * width, *range(row * width + 1 + PATCHES, (row + 1) * width)] for row in range(rows)]
    shown = [range(row * width + 1, row * width + 1 + PATCHES) for row in range(rows)]
    asked = torch.cat([torch.arange(row * width + PATCHES, (row + 1) * width - 1) for row in range(rows)])
    count = len(asked)
    return Batch(
        rows=rows,
        positions=width,
        ids_N=torch.randint(0, 100, (rows * TEXT,)),
        text_at_N=torch.tensor(text).flatten(),
        patch_at_Q=torch.cat([torch.tensor(list(each)) for each in shown]),
        target_at_M=asked,
        targets_M=torch.randint(0, 100, (count,)),
        weight_M=torch.full((count,), 1 / count),
        source_M=torch.zeros(count, dtype=torch.long),
        sources=1,
        names=("x",) * rows,
        pixels={"tiny": torch.randn(rows, 3, PIXELS, PIXELS)},
    )


# ---- activations


def alive(wanted: StageSpec, checkpointing: str) -> tuple[int, int]:
    """Bytes at the end of a forward pass, and the most until the end of backward; without weights and gradients."""
    vlm = build_vlm(wanted.model, 1, torch.float32 if wanted.precision == "fp32" else None)
    engine = Engine(name="x", device="cpu", activation_checkpointing=checkpointing, compile=False)
    trainer = build_trainer(wanted, vlm, 10, engine, World(ALONE, torch.device("cpu")))
    trainer.vlm(batch())[0].backward()  # so that gradients are there, as from the second pass of a step on
    with Live([*vlm.parameters(), *vlm.buffers(), *(p.grad for p in vlm.parameters() if p.grad is not None)]) as live:
        one = batch()  # which a step holds until it is over
        loss, _ = trainer.vlm(one)
        ended = live.now()
        loss.backward()
    return ended, live.most


CASES = {
    "usual": (Shape(), USUAL, "fp32", None),
    "frozen": (Shape(), FROZEN, "fp32", None),
    "all": (Shape(), ALL, "fp32", None),
    "bf16": (Shape(depth=2, blocks=3), ALL, "bf16-true", None),
    "large tower": (Shape(depth=2, tower=128, blocks=5, projector="fused-mlp"), ALL, "fp32", None),
    "wide": (Shape(width=128, depth=3, mlp=352), USUAL, "fp32", None),
    "grouped heads": (Shape(kv_heads=2), USUAL, "fp32", None),
    "many words": (Shape(depth=2, vocabulary=4000), USUAL, "fp32", None),
    "phi": (Shape(architecture="phi"), USUAL, "fp32", None),
    "adapters": (Shape(), USUAL, "fp32", Tuning("lora", "lora", 8)),
}


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("case", CASES)
def test_activations_are_what_autograd_keeps(case: str, checkpointing: str) -> None:
    wanted = spec(*CASES[case])
    ended, most = alive(wanted, checkpointing)
    found = kept(wanted, Pass(ROWS * (PATCHES + TEXT), ROWS * (TEXT - 1), ROWS), checkpointing, compiled=False)
    assert found.until_backward == pytest.approx(ended, rel=0.10 if case == "phi" else 0.04)
    assert found.peak == pytest.approx(most, rel=0.15)


def test_recomputing_keeps_less_the_more_of_it_there_is() -> None:
    wanted = spec(Shape(depth=12), USUAL, "fp32")
    sizes = [kept(wanted, Pass(832, 312, 8), how, compiled=False).peak for how in ("none", "selective", "full")]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]


def test_compiled_blocks_keep_what_a_compiler_leaves() -> None:
    """By torch's own partitioner, which decides it for inductor as well."""
    for trains in (USUAL, FROZEN):
        wanted = spec(Shape(), trains, "bf16-true")
        vlm = build_vlm(wanted.model, 1, None)
        engine = Engine(name="x", device="cpu", compile=False)
        trainer = build_trainer(wanted, vlm, 10, engine, World(ALONE, torch.device("cpu")))
        for block in vlm.llm.base_model.layers:
            block.forward = torch.compile(block.forward, backend="aot_eager_decomp_partition")
        trainer.vlm(batch())[0].backward()
        own = {parameter.untyped_storage()._cdata for parameter in vlm.parameters()}
        held: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor, own: set[int] = own, held: dict[int, torch.UntypedStorage] = held):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                held[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.vlm(batch())
        real = sum(storage.nbytes() for storage in held.values())
        found = kept(wanted, Pass(ROWS * (PATCHES + TEXT), ROWS * (TEXT - 1), ROWS), "none", compiled=True)
        assert found.until_backward == pytest.approx(real, rel=0.20)


def test_the_chunk_of_logits_is_that_of_the_loss() -> None:
    assert activations.LOGITS_AT_A_TIME == losses.CHUNK


def test_what_is_stated_elsewhere_is_stated_alike() -> None:
    from prism_sweeps.training import corpus

    assert corpus.ROW == ROW


# ---- weights, gradients, moments, spread over processes

RANKS, PER_NODE = 8, 4
SHAPE = Shape(width=96, depth=5, mlp=256, vocabulary=800, tower=64, blocks=4)


@pytest.fixture(scope="module")
def eight_ranks() -> Iterator[None]:
    """As the first of eight processes sees it; the others are not there, and nobody waits for them."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    dist.destroy_process_group()


def measured(wanted: StageSpec, engine: Engine, world: World) -> Memory:
    """What one process holds while the second step of one pass is under way."""
    vlm = build_vlm(wanted.model, 1, torch.float32 if wanted.precision == "fp32" else None)
    trainer = build_trainer(wanted, vlm, 10, engine, world)
    rows = wanted.stage.global_batch // world.size

    def one_pass() -> None:
        hold_between_passes(vlm, engine.sharding, world.size, last=True)
        one = batch(rows)
        trainer.vlm(one)[0].backward()

    one_pass()
    own = [local_part(parameter.detach()) for parameter in vlm.parameters()]
    gradients = [local_part(each.grad) for each in vlm.parameters() if each.grad is not None]
    moments = [state[key] for state in trainer.optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")]
    with Live([*own, *gradients, *vlm.buffers()]) as live:
        one_pass()
    sizes = [sum(tensor.nbytes for tensor in each) for each in (own, gradients, moments)]
    return Memory(*sizes, gathered=0, activations=live.most)


@pytest.mark.parametrize(
    ("trains", "precision", "sharding"),
    [
        (FROZEN, "fp32", "full"),
        (USUAL, "fp32", "full"),
        (ALL, "fp32", "full"),
        (USUAL, "bf16", "full"),
        (USUAL, "bf16-true", "full"),
        (FROZEN, "fp32", "grad-only"),
        (USUAL, "bf16", "grad-only"),
        (ALL, "fp32", "grad-only"),
        (USUAL, "fp32", "hybrid"),
        (ALL, "fp32", "hybrid"),
    ],
)
def test_memory_of_a_process_among_eight(eight_ranks, trains, precision: str, sharding: str) -> None:
    wanted = spec(SHAPE, trains, precision)
    wanted = replace(wanted, stage=replace(wanted.stage, global_batch=2 * RANKS))
    engine = Engine(
        name="x", precision=precision, device="cpu", activation_checkpointing="full", compile=False, sharding=sharding
    )
    real = measured(wanted, engine, World(Place(0, RANKS, 0, PER_NODE), torch.device("cpu")))
    found = training_memory(wanted, engine, Devices(RANKS // PER_NODE, PER_NODE), on_gpu=True)
    # What is shared out is padded to equal parts.
    assert found.weights == pytest.approx(real.weights, rel=0.05)
    assert found.gradients == pytest.approx(real.gradients, rel=0.05)
    assert found.moments == pytest.approx(real.moments, rel=0.05)
    assert found.gathered + found.activations == pytest.approx(real.activations, rel=0.25)
    assert found.total == pytest.approx(real.total, rel=0.20)


@pytest.mark.parametrize("precision", ["fp32", "bf16-true"])
def test_memory_of_a_process_alone(precision: str) -> None:
    wanted, engine = spec(SHAPE, ALL, precision), Engine(name="x", precision=precision, device="cpu", compile=False)
    real = measured(wanted, engine, World(ALONE, torch.device("cpu")))
    found = training_memory(wanted, engine, Devices(), on_gpu=True)
    assert (found.weights, found.gradients, found.moments) == (real.weights, real.gradients, real.moments)
    assert found.gathered == 0
    assert found.total == pytest.approx(real.total, rel=0.10)


# ---- by hand


def big(*overrides: str) -> StageSpec:
    cell = compose_cell(
        ["engine=gpu", "suite=easy-vqa", "backbone=clip-vit-l", "resolution=336", "llm=vicuna-v15-7b", *overrides]
    )[0]
    found = jobs_of(cell)[0][-1].spec
    assert isinstance(found, StageSpec)
    return found


@pytest.mark.parametrize(("precision", "trained", "frozen"), [("fp32", 16, 4), ("bf16", 16, 2), ("bf16-true", 8, 2)])
def test_weights_gradients_and_moments_of_a_7b(precision: str, trained: int, frozen: int) -> None:
    found = training_memory(big(f"engine.precision={precision}"), Engine(micro_batch=1), Devices(), on_gpu=True)
    state = found.weights + found.gradients + found.moments
    assert state == pytest.approx(trained * (6.7384e9 + 20.98e6) + frozen * 290.4e6, rel=0.001)


def test_sharding_of_a_7b_over_two_nodes() -> None:
    wanted, two = big("engine.precision=bf16"), Devices(2, 8)
    found = {how: training_memory(wanted, Engine(micro_batch=1, sharding=how), two, on_gpu=True) for how in SHARDINGS}
    assert found["hybrid"].moments == 2 * found["full"].moments == 2 * found["grad-only"].moments
    whole = 2 * 6.76e9  # all that is trained, in bfloat16, on every device
    assert found["grad-only"].gathered - found["full"].gathered == pytest.approx(whole, rel=0.15)


SHARDINGS = ("full", "grad-only", "hybrid")


def test_the_largest_pass_has_the_longest_conversations() -> None:
    wanted, engine = big(), Engine(micro_batch=4)
    assert largest_pass(wanted, engine, Devices()) == Pass(4 * 976, 4 * 400, 4)  # nano's conversations, 576 patches
    assert largest_pass(wanted, Engine(micro_batch=0), Devices(1, 4)).images == wanted.stage.global_batch // 4
    unknown = big("data_mix=llava-v15")
    assert largest_pass(unknown, engine, Devices()).positions == 4 * (576 + 2048)


def test_packed_rows_are_as_long_as_the_engine_says_or_as_the_batch_fills_them() -> None:
    batches = ("stages.chain.finetune.batching=packed", "stages.chain.finetune.global_batch=128")
    wanted = big("data_mix=llava-v15", *batches)
    assert largest_pass(wanted, Engine(), Devices()).positions == 4096
    assert largest_pass(wanted, Engine(row_tokens=8192), Devices()).positions == 8192
    assert largest_pass(wanted, Engine(row_tokens=8192), Devices(1, 64)).positions == 2624


def test_an_evaluation_holds_weights_and_what_its_questions_leave() -> None:
    evaluation = jobs_of(
        compose_cell(["engine=gpu", "suite=easy-vqa", "backbone=clip-vit-l", "resolution=336", "llm=vicuna-v15-7b"])[0]
    )[1][0].spec
    assert isinstance(evaluation, EvaluationSpec)
    one, many = (evaluation_memory(evaluation, Engine(eval_batch=size), on_gpu=True) for size in (1, 64))
    assert one.weights == many.weights == pytest.approx(2 * 7.05e9, rel=0.01)
    cache = 2 * 2 * 32 * 4096 * 600  # keys and values in bfloat16 of 600 positions in 32 blocks
    assert many.activations == 64 * one.activations
    assert 2 * cache < one.activations < 3 * cache


def test_a_gpu_needs_more_than_its_tensors() -> None:
    assert needed_of_gpu(40 << 30) == pytest.approx((40 << 30) * 1.05 + 1.5 * (1 << 30))
