"""Peak memory of a job on each of its devices, from shapes and settings alone: no device is asked.

What is kept of weights follows `training/sharding.py`: frozen towers are whole on every device; everything else is a
shard where several devices work together, with fp32 masters and moments in bf16, and is gathered to be computed with.
"""

from __future__ import annotations

from dataclasses import dataclass

from prism_sweeps.config.checks import backbone_patches
from prism_sweeps.config.flops import last_blocks, parts, sections
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.shapes import head_width, linear_layers
from prism_sweeps.config.specs import EvaluationSpec, StageSpec
from prism_sweeps.planning.activations import Pass, kept
from prism_sweeps.planning.datasets import QUESTION_TOKENS, longest_text, text_tokens

MASTER = {"fp32": 4, "bf16": 4, "bf16-true": 2}
"""Bytes of a trained parameter; its gradient has as many, its two moments twice as many."""
COMPUTED = {"fp32": 4, "bf16": 2, "bf16-true": 2}
"""Bytes of a frozen parameter, and of what a trained one is computed with."""
REDUCED = 4
"""Bytes of a gradient while devices sum it up."""
ROW = 4096
"""Positions of a packed row where nobody says, as in `training.corpus`."""
CONTEXT = 3 << 29
"""1.5 GiB: what CUDA, cuBLAS and NCCL take of a GPU before any tensor does. An assumption; it differs by driver."""
SLACK = 0.05
"""Of tensors: what the allocator cannot use between them. An assumption."""
ON_CPU = 410 << 20
"""Bytes of a worker that has imported torch, timm and transformers and built nothing yet (VmHWM, 2026-11-25)."""


@dataclass(frozen=True)
class Devices:
    """How many work on a job together."""

    nodes: int = 1
    per_node: int = 1

    @property
    def count(self) -> int:
        return self.nodes * self.per_node

    def shards(self, sharding: str) -> int:
        """Devices that share each weight between them."""
        return self.per_node if sharding == "hybrid" else self.count


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that uses most. Where a GPU is asked, the sum of these is what its tensors take."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    """Of weights that are shards: what is whole for a while, and gradients on their way."""
    activations: int
    libraries: int = 0
    """On a CPU, where the process counts as a whole."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.gathered + self.activations + self.libraries


def needed_of_gpu(memory: int) -> int:
    """Bytes that a GPU must have for tensors of so many."""
    return round(memory * (1 + SLACK)) + CONTEXT


def training_memory(spec: StageSpec, engine: Engine, devices: Devices, on_gpu: bool) -> Memory:
    """Where the longest conversations of the stage are in one pass. What trained conv towers keep is left out."""
    master, computed = MASTER[spec.precision], COMPUTED[spec.precision]
    whole, shared, trained = 0, 0, 0
    for section in sections(spec):
        own = section.part.parameters * (master if section.trained else computed)
        alone = section.module == "vision" and not section.trained
        whole, shared = (whole + own, shared) if alone else (whole, shared + own)
        trained += section.part.parameters if section.trained else 0
    shards = devices.shards(engine.sharding)
    compiled = on_gpu if engine.compile is None else engine.compile
    return Memory(
        weights=whole + shared // shards,
        gradients=trained * master // shards,
        moments=2 * trained * master // shards,
        gathered=_gathered(spec, engine, devices),
        activations=kept(spec, largest_pass(spec, engine, devices), engine.activation_checkpointing, compiled).peak,
        libraries=0 if on_gpu else ON_CPU,
    )


def largest_pass(spec: StageSpec, engine: Engine, devices: Devices) -> Pass:
    """The pass with the longest conversations, each of which has an image."""
    model, share = spec.model, max(1, spec.stage.global_batch // devices.count)
    patches = backbone_patches(model.backbone, model.resolution.pixels)
    most = model.llm.context - patches
    text = min(longest_text(spec.sources) or most, most, model.llm.max_text or most)
    if spec.stage.batching != "packed":
        rows = min(engine.micro_batch or share, share)
        return Pass(rows * (patches + text), rows * text, rows)
    # Rows about equally full, of as many conversations as fit; where those of a step are fewer, of all of them.
    usual = patches + min(text_tokens(spec.sources), text)
    row = max(engine.row_tokens or ROW, patches + text)
    positions = max(patches + text, min(row, share * usual))
    images = max(1, positions // usual)
    return Pass(positions, positions - images * patches, images)


def _gathered(spec: StageSpec, engine: Engine, devices: Devices) -> int:
    """A device alone gathers in bf16 only: what is trained, because it is computed with in another type."""
    computed, alone = COMPUTED[spec.precision], devices.count == 1
    if alone and spec.precision != "bf16":
        return 0
    run = [each for each in sections(spec) if each.trained or not (alone or each.module == "vision")]
    everything = sum(section.part.parameters for section in run)
    trained = sum(section.part.parameters for section in run if section.trained)
    block = _largest_block(spec) if "llm" in spec.stage.trains or not alone else 0
    between = 2 * block  # the block at work, and the one that is fetched meanwhile
    outside = everything - _in_blocks(spec, alone)
    stays = engine.sharding == "grad-only" or (alone and _several_passes(spec, engine))
    weights = everything if stays else min(everything, outside + between)
    gradients = min(trained, block or trained)
    return computed * weights + (computed + REDUCED) * gradients


def _several_passes(spec: StageSpec, engine: Engine) -> bool:
    return spec.stage.batching == "packed" or 0 < engine.micro_batch < spec.stage.global_batch


def _largest_block(spec: StageSpec) -> int:
    """Parameters of a block of the language model."""
    return sum(width_in * width_out for width_in, width_out in linear_layers(spec.model.llm).values())


def _in_blocks(spec: StageSpec, alone: bool) -> int:
    """Parameters that are gathered block by block."""
    learns = "llm" in spec.stage.trains and spec.tuning.method == "full"
    of_llm = spec.model.llm.depth * _largest_block(spec) if learns or not alone else 0
    if "vision" not in spec.stage.trains:
        return of_llm
    depth = min(tower.depth for tower in spec.model.backbone.towers.values())
    return of_llm + last_blocks(spec.model, spec.stage.vision_blocks or depth - 1).parameters


def evaluation_memory(spec: EvaluationSpec, engine: Engine, on_gpu: bool) -> Memory:
    """Of one device that asks `engine.eval_batch` questions at a time: weights, keys and values, one block at work.

    At worst each question has its keys and values twice: as many images as questions may be read before the batch is.
    """
    model, size, batch = spec.model, COMPUTED[spec.precision], max(1, engine.eval_batch)
    llm, patches = model.llm, backbone_patches(model.backbone, model.resolution.pixels)
    length = patches + QUESTION_TOKENS + spec.benchmark.max_new_tokens
    cache = 2 * llm.depth * llm.kv_heads * head_width(llm) * length
    block = (4 * llm.width + 3 * llm.mlp_width) * length
    images = 2 * patches * llm.width + 3 * model.resolution.pixels**2
    return Memory(
        weights=size * sum(part.parameters for part in parts(model).values()),
        gradients=0,
        moments=0,
        gathered=0,
        activations=batch * (size * (2 * cache + block + images) + 4 * llm.vocabulary),
        libraries=0 if on_gpu else ON_CPU,
    )
