"""What a job costs, from shapes alone: parameters, tokens, floating-point operations.

A matrix product of N weights takes 2N operations per token forward, and backward 2N for the gradient of its input and
2N for that of its weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). So a trained module takes 6N, a frozen
one below everything trained 2N, and a frozen one that a gradient must pass through 4N. Attention adds, per token and
layer forward, 4 x length x width (PaLM, arXiv 2204.02311, appendix B), and scales the same way.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from prism_sweeps.config.checks import backbone_patches, patches
from prism_sweeps.config.schema import LanguageModel, Projector, Tower, Tuning
from prism_sweeps.config.shapes import head_width, linear_layers, projector_widths
from prism_sweeps.config.specs import EvaluationSpec, Job, ModelSpec, StageSpec
from prism_sweeps.planning.datasets import QUESTION_TOKENS, benchmark_examples, known_examples, text_tokens


@dataclass
class JobCost:
    """Of one job. What hangs on an unknown number of examples is None."""

    parameters: int
    trainable: int
    examples: int | None
    """Examples passed through, epochs counted."""
    tokens: int | None
    """Patches and estimated text tokens of all of them."""
    flops: float | None


@dataclass
class Part:
    """One module: its weights, those that multiply every token, and its forward operations per example."""

    parameters: int
    forward: float


def job_cost(job: Job) -> JobCost:
    """The cost of a training or evaluation job."""
    return _training_cost(job.spec) if isinstance(job.spec, StageSpec) else _evaluation_cost(job.spec)


def model_parameters(model: ModelSpec) -> dict[str, int]:
    """Parameters of vision, projector and llm, as they are built (without the towers' last block)."""
    return {name: part.parameters for name, part in _parts(model, 0).items()}


def _training_cost(spec: StageSpec) -> JobCost:
    text = text_tokens(spec.sources)
    sections = _sections(spec, text)
    examples = _examples_seen(spec)
    return JobCost(
        parameters=sum(part.parameters for part, _ in sections),
        trainable=sum(part.parameters for part, trained in sections if trained),
        examples=examples,
        tokens=None if examples is None else examples * _length(spec.model, text),
        flops=None if examples is None else examples * _operations(sections),
    )


def _evaluation_cost(spec: EvaluationSpec) -> JobCost:
    text = QUESTION_TOKENS
    parts = _parts(spec.model, text)
    examples = benchmark_examples(spec.benchmark)
    return JobCost(
        parameters=sum(part.parameters for part in parts.values()),
        trainable=0,
        examples=examples,
        tokens=None if examples is None else examples * _length(spec.model, text),
        flops=None if examples is None else examples * sum(part.forward for part in parts.values()),
    )


def _examples_seen(spec: StageSpec) -> int | None:
    held = known_examples(spec.sources)
    steps = None if spec.max_steps is None else spec.max_steps * spec.stage.global_batch
    if held is None:
        return None
    seen = round(held * (spec.stage.epochs or 1.0))
    return seen if steps is None else min(seen, steps)


def _sections(spec: StageSpec, text: int) -> list[tuple[Part, bool]]:
    """What the stage runs, in this order, and whether it is trained."""
    sections: list[tuple[Part, bool]] = []
    for name, part in _parts(spec.model, text).items():
        trained = name in spec.stage.trains
        if trained and name == "vision" and spec.stage.vision_blocks is not None:
            last = _last_blocks(spec.model, spec.stage.vision_blocks)
            sections += [(Part(part.parameters - last.parameters, part.forward - last.forward), False), (last, True)]
        elif trained and name == "llm" and spec.tuning.method == "lora":
            # Before the layers that they stand beside, since a gradient passes through those from the first one on.
            sections += [(_adapters(spec.model.llm, spec.tuning, _length(spec.model, text)), True), (part, False)]
        else:
            sections.append((part, trained))
    return sections


def _operations(sections: list[tuple[Part, bool]]) -> float:
    """Of one example: the forward operations 3 times where trained, twice where a gradient passes, once below that."""
    total, gradient = 0.0, False
    for part, trained in sections:
        total += part.forward * (3 if trained else 2 if gradient else 1)
        gradient = gradient or trained
    return total


def _length(model: ModelSpec, text: int) -> int:
    return backbone_patches(model.backbone, model.resolution.pixels) + text


def _parts(model: ModelSpec, text: int) -> dict[str, Part]:
    pixels = model.resolution.pixels
    towers = [_tower(tower, patches(tower, pixels)) for tower in model.backbone.towers.values()]
    width = sum(tower.width for tower in model.backbone.towers.values())
    count = backbone_patches(model.backbone, pixels)
    return {
        "vision": Part(sum(t.parameters for t in towers), sum(t.forward for t in towers)),
        "projector": _projector(model.projector, width, model.llm.width, count),
        "llm": _language_model(model.llm, count + text, text),
    }


def _tower(tower: Tower, count: int) -> Part:
    """A ViT without its last block and final norm, or a whole conv tower: what the patch features need."""
    if tower.kind == "conv":
        return _blocks(tower, count, tower.depth)
    width, length = tower.width, count + tower.prefix_tokens
    blocks = _blocks(tower, count, tower.depth - 1)
    embedding = 3 * tower.patch**2 * width
    outside = embedding + width + length * width + tower.prefix_tokens * width
    return Part(blocks.parameters + outside, blocks.forward + 2 * embedding * count)


def _blocks(tower: Tower, count: int, blocks: int) -> Part:
    """So many blocks on `count` patches; of a conv tower, their share in what it states, as if all were alike."""
    if tower.kind == "conv":
        share, pixels = blocks / tower.depth, count * tower.patch**2
        return Part(round((tower.parameters or 0) * share), (tower.flops_per_pixel or 0.0) * pixels * share)
    width, hidden = tower.width, round(tower.width * tower.mlp_ratio)
    length = count + tower.prefix_tokens
    matrices = 4 * width**2 + 2 * width * hidden
    vectors = 4 * width + hidden + width + 4 * width  # biases, two norms
    attention = 4 * length**2 * width
    return Part(blocks * (matrices + vectors), blocks * (2 * matrices * length + attention))


def _last_blocks(model: ModelSpec, blocks: int) -> Part:
    """The last so many of every tower's blocks that run."""
    pixels = model.resolution.pixels
    last = [_blocks(tower, patches(tower, pixels), blocks) for tower in model.backbone.towers.values()]
    return Part(sum(part.parameters for part in last), sum(part.forward for part in last))


def _projector(projector: Projector, vision: int, llm: int, count: int) -> Part:
    widths = projector_widths(projector, vision, llm)
    matrices = sum(a * b for a, b in itertools.pairwise(widths))
    return Part(matrices + sum(widths[1:]), 2 * matrices * count)


def _adapters(llm: LanguageModel, tuning: Tuning, length: int) -> Part:
    """A (rank x in) and B (out x rank) beside each target of every block."""
    widths = [width for name, width in linear_layers(llm).items() if not tuning.targets or name in tuning.targets]
    matrices = llm.depth * sum(tuning.rank * (width_in + width_out) for width_in, width_out in widths)
    return Part(matrices, 2 * matrices * length)


def _language_model(llm: LanguageModel, length: int, text: int) -> Part:
    """Its linear layers, two norms a block; the head on text positions only, since nothing is predicted elsewhere."""
    matrices = sum(width_in * width_out for width_in, width_out in linear_layers(llm).values())
    embedding = llm.vocabulary * llm.width
    outside = embedding * (1 if llm.tied_embeddings else 2) + llm.width
    attention = 4 * length**2 * llm.heads * head_width(llm)
    forward = llm.depth * (2 * matrices * length + attention) + 2 * embedding * text
    return Part(llm.depth * (matrices + 2 * llm.width) + outside, forward)
