"""The ways of benchmarks/gpu.py, each for a process of its own.

A way is `ours/BATCHING/BLOCKS/AGAIN`, `trainer/AGAIN`, or `waits`: padded | packed, eager | compiled, and what backward
computes again (none | selective | full).

Shapes: T tokens of a conversation, image tokens written out, B rows, S positions of a batch, I images, C H W an image.
"""

from __future__ import annotations

import statistics
import traceback
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from made_stage import (
    TINY_TOWER,
    Bench,
    bench,
    chat_lengths,
    example,
    made_images,
    model_spec,
    random_llama,
    stage_spec,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from prism_sweeps.config.flops import parts
from prism_sweeps.config.schema import Engine, Tower
from prism_sweeps.config.specs import ModelSpec, StageSpec
from prism_sweeps.data.batching import Example
from prism_sweeps.data.feeding import loaded_by_processes, prefetched
from prism_sweeps.data.steps import StepData
from prism_sweeps.models.language import language_config
from prism_sweeps.models.projector import build_projector
from prism_sweeps.models.vision import build_vision
from prism_sweeps.models.vlm import VLM
from prism_sweeps.tracking.records import Store
from prism_sweeps.training.devices import device_name, peak_flops
from prism_sweeps.training.saving import Checkpoints
from prism_sweeps.training.world import ALONE, World, joined

__all__ = ["SEVEN_B", "TINY", "Asked", "Shape", "device", "device_name", "listed", "measure", "trained_weights"]

CLIP_L = Tower(
    name="clip",
    model="vit_large_patch14_clip_quickgelu_{pixels}.openai",
    weights={336: "random:1"},
    width=1024,
    depth=24,
    heads=16,
    patch=14,
    prefix_tokens=1,
    mean=[0.48145466, 0.4578275, 0.40821073],
    std=[0.26862954, 0.26130258, 0.27577711],
)
ASKS = {
    f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")
}
WARM_UP = 2
"""Steps that are not timed: kernels are chosen and compiled, memory is taken. Twice, for lengths to become dynamic."""


@dataclass(frozen=True)
class Shape:
    name: str
    pixels: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    vocabulary: int
    context: int
    global_batch: int
    micro_batch: int
    row_tokens: int

    @property
    def tower(self) -> Tower:
        return CLIP_L if self.pixels == 336 else TINY_TOWER

    @property
    def patches(self) -> int:
        return (self.pixels // self.tower.patch) ** 2

    def model(self) -> ModelSpec:
        llm = random_llama(self.width, self.depth, self.heads, self.mlp_width, self.vocabulary, self.context)
        return model_spec(self.tower, self.pixels, llm)


SEVEN_B = Shape("7B", 336, 4096, 32, 32, 11008, 32_000, 4096, 32, 4, 4096)
TINY = Shape("tiny", 32, 64, 2, 4, 128, 258, 2304, 4, 2, 2304)


@dataclass(frozen=True)
class Asked:
    way: str
    shape: Shape
    precision: str
    steps: int
    images: int
    """Processes that read them."""
    folder: Path


def listed(tiny: bool) -> list[str]:
    """All ways, the telling ones first."""
    if tiny:
        return [
            *("ours/packed/eager/full", "trainer/full", "ours/packed/compiled/selective", "trainer/none"),
            *("ours/padded/eager/none", "ours/padded/compiled/full", "ours/padded/eager/selective"),
        ]
    return [
        *("ours/packed/compiled/full", "trainer/full", "ours/packed/compiled/selective", "ours/packed/eager/full"),
        *("ours/padded/eager/full", "ours/padded/compiled/full", "trainer/none", "ours/packed/compiled/none"),
        *("ours/packed/eager/selective", "ours/padded/compiled/selective", "ours/padded/eager/selective"),
        *("ours/packed/eager/none", "ours/padded/compiled/none", "ours/padded/eager/none"),
    ]


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def trained_weights(shape: Shape) -> float:
    return sum(part.parameters for name, part in parts(shape.model()).items() if name != "vision")


def measure(asked: Asked) -> dict[str, Any]:
    """What a way takes, or `failed`: out of memory is an answer."""
    side, *choices = asked.way.split("/")
    try:
        if side == "trainer":
            from gpu_trainer import trainer_steps  # transformers' Trainer takes seconds to import

            return rates(asked, *trainer_steps(asked, choices[0]))
        with joined(ALONE, Engine(name="benchmark", device=device().type)) as world:
            return waits(asked, world) if side == "waits" else our_steps(asked, *choices, world)
    except torch.OutOfMemoryError as error:
        return {
            "failed": f"out of memory, with {torch.cuda.max_memory_allocated() / 1e9:.0f} GB at most ({error})"[:160]
        }


# ---- ours


def our_steps(asked: Asked, batching: str, blocks: str, again: str, world: World) -> dict[str, Any]:
    one = built(asked, batching, blocks, again, world)
    unused = Checkpoints(asked.folder / "checkpoints", 1, None)
    one.run(WARM_UP, unused)
    rows = one.run(asked.steps, unused)
    # A run's first step is timed from the processor's side, and starts the processes that read images.
    told = rows[1:] or rows
    return {
        key: statistics.median(each[key] for each in told)
        for key in ("seconds", "tokens_per_second", "supervised_per_second", "padded_per_second", "mfu", "data_wait")
        if key in told[0]
    } | {
        "peak_memory": rows[-1]["peak_memory"],
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"] if blocks == "compiled" else None,
    }


def built(asked: Asked, batching: str, blocks: str, again: str, world: World) -> Bench:
    shape = asked.shape
    spec = spec_of(asked, "packed" if batching == "packed" else "grouped")
    engine = Engine(
        name="benchmark",
        device=device().type,
        micro_batch=shape.micro_batch,
        row_tokens=shape.row_tokens,
        activation_checkpointing=again,
        compile=blocks == "compiled",
        data_workers=asked.images,
        checkpoint_seconds=1e9,
        peak_tflops=None if torch.cuda.is_available() else 0.05,
        sharding="grad-only",
    )
    steps = 2 * (WARM_UP + asked.steps) + 8
    store = Store.open(asked.folder / "store")
    return bench(spec, partial(random_vlm, spec), examples_of(asked, steps), steps, engine, world, store)


def spec_of(asked: Asked, batching: str) -> StageSpec:
    return stage_spec(asked.shape.model(), asked.shape.global_batch, asked.precision, batching)


def examples_of(asked: Asked, steps: int) -> list[Example]:
    shape = asked.shape
    paths = made_images(asked.folder / "images", 64, shape.pixels)
    lengths = chat_lengths(steps * shape.global_batch)
    return [
        example(n, length, paths[n % len(paths)] if pictured else None, shape.patches, shape.vocabulary)
        for n, (length, pictured) in enumerate(lengths)
    ]


def random_vlm(spec: StageSpec) -> VLM:
    """As `build_vlm` makes it of random weights, but made on the device in its type: 7B in fp32 are 28 GB of memory.

    Rotary frequencies are worked out in fp32 whatever the type.
    """
    dtype = torch.float32 if spec.precision == "fp32" else torch.bfloat16
    model, place = spec.model, device()
    vision = build_vision(model.backbone, model.resolution).to(place, dtype)
    torch.manual_seed(0)
    with place:
        llm = AutoModelForCausalLM.from_config(language_config(model.llm), dtype=dtype)
        projector = build_projector(model.projector, vision.width, model.llm.width).to(dtype)
    check_rotary(llm)
    return VLM(vision, projector, llm)


def check_rotary(llm: nn.Module) -> None:
    """Raises AssertionError where the frequencies were lost on the way, or rounded."""
    found = [buffer for name, buffer in llm.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    assert found, "no rotary frequencies"
    for frequencies in found:
        wide = 1.0 / (10_000.0 ** (torch.arange(len(frequencies)).float() / len(frequencies)))
        assert frequencies.dtype == torch.float32
        torch.testing.assert_close(frequencies.cpu(), wide, rtol=1e-5, atol=0.0)


# ---- does a step ever wait for the GPU?


def waits(asked: Asked, world: World) -> dict[str, Any]:
    """Places in a step that make the processor wait, and whether batches come in memory a GPU can copy from by itself.

    Two witnesses: the operators that ask a tensor for its content, which show on a CPU as well; and on a GPU torch's
    own. Neither tells of a copy from pageable memory, which waits inside the driver.
    """
    found: dict[str, Any] = {}
    for batching in ("padded", "packed"):
        one = built(asked, batching, "eager", "full", world)
        one.trainer.step(0, one.data(0))
        with Asking() as asking:
            one.trainer.step(1, one.data(1))
        found[f"asks_{batching}"] = sorted(set(asking.places))
        if torch.cuda.is_available():
            found[f"syncs_{batching}"] = synchronising(one)
            found["pinned_by_thread"] = all_pinned(next(prefetched(range(5, 6), one.data)))
            by_processes = loaded_by_processes(range(5, 6), one.data, 1, world.device)
            found["pinned_by_processes"] = all_pinned(next(iter(by_processes)))
        del one
        torch.cuda.empty_cache()
    return found


class Asking(TorchDispatchMode):
    """Takes down from where a tensor is asked for its content, or for a shape that depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        indices = args[1] if func._schema.name in ("aten::index", "aten::index_put_") else ()
        by_mask = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in indices)
        if func._schema.name in ASKS or by_mask:
            self.places.append(outside_torch())
        return func(*args, **(kwargs or {}))


def outside_torch() -> str:
    """The innermost line that is neither torch's nor this file's."""
    frames = reversed(traceback.extract_stack())
    return next(
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}"
        for frame in frames
        if frame.filename != __file__ and "/torch/" not in frame.filename
    )


def synchronising(one: Bench) -> list[str]:
    """Where torch says that steps waited for the GPU, their batches being there beforehand."""
    steps = [pinned(one.data(step)) for step in range(2, 5)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, data in enumerate(steps, 2):
            one.trainer.step(step, data)
    torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)})


def pinned(data: StepData) -> StepData:
    return replace(data, passes=[batch.pin_memory() for batch in data.passes])


def all_pinned(data: StepData) -> bool:
    return all(tensor.is_pinned() for batch in data.passes for tensor in (batch.ids_N, *batch.pixels.values()))


# ---- the Trainer's, in the same terms


def rates(asked: Asked, seconds: list[float], told: list[dict[str, float]]) -> dict[str, Any]:
    """Of steps that took `seconds`, with `told` of each: tokens, supervised, padded, operations."""
    peak = peak_flops(device(), asked.precision, None if torch.cuda.is_available() else 0.05)
    speeds = {
        name: statistics.median(step[key] / each for step, each in zip(told, seconds, strict=True))
        for name, key in (
            ("tokens_per_second", "tokens"),
            ("supervised_per_second", "supervised"),
            ("padded_per_second", "padded"),
            ("flops", "operations"),
        )
    }
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    mfu = None if peak is None else round(speeds.pop("flops") / peak, 4)
    return {"seconds": statistics.median(seconds), **speeds, "mfu": mfu, "peak_memory": memory, "graphs": None}
