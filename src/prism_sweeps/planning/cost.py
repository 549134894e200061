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
from prism_sweeps.config.schema import LanguageModel, Projector, Tower
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
    parts = _parts(spec.model, text)
    examples = _examples_seen(spec)
    per_example = sum(part.forward * factor for part, factor in zip(parts.values(), _factors(spec), strict=True))
    return JobCost(
        parameters=sum(part.parameters for part in parts.values()),
        trainable=sum(part.parameters for name, part in parts.items() if name in spec.stage.trains),
        examples=examples,
        tokens=None if examples is None else examples * _length(spec.model, text),
        flops=None if examples is None else examples * per_example,
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


def _factors(spec: StageSpec) -> list[int]:
    """Times its forward operations that each of vision, projector, llm takes: 3 trained, 2 passed through, 1 frozen."""
    factors, gradient = [], False
    for module in ("vision", "projector", "llm"):
        trained = module in spec.stage.trains
        factors.append(3 if trained else 2 if gradient else 1)
        gradient = gradient or trained
    return factors


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
    """A ViT without its last block and final norm: what the patch features need."""
    width, hidden = tower.width, round(tower.width * tower.mlp_ratio)
    length, blocks = count + tower.prefix_tokens, tower.depth - 1
    matrices = 4 * width**2 + 2 * width * hidden
    vectors = 4 * width + hidden + width + 4 * width  # biases, two norms
    embedding = 3 * tower.patch**2 * width
    outside = embedding + width + length * width + tower.prefix_tokens * width
    attention = 4 * length**2 * width
    forward = blocks * (2 * matrices * length + attention) + 2 * embedding * count
    return Part(blocks * (matrices + vectors) + outside, forward)


def _projector(projector: Projector, vision: int, llm: int, count: int) -> Part:
    hidden = {"linear": (), "mlp": (llm,), "fused-mlp": (4 * vision, llm)}[projector.kind]
    widths = (vision, *hidden, llm)
    matrices = sum(a * b for a, b in itertools.pairwise(widths))
    return Part(matrices + sum(widths[1:]), 2 * matrices * count)


def _language_model(llm: LanguageModel, length: int, text: int) -> Part:
    """A Llama-shaped LM; its head is counted on text positions only, since nothing is predicted elsewhere."""
    keys = llm.width * llm.kv_heads // llm.heads
    matrices = 2 * llm.width**2 + 2 * llm.width * keys + 3 * llm.width * llm.mlp_width
    embedding = llm.vocabulary * llm.width
    outside = embedding * (1 if llm.tied_embeddings else 2) + llm.width
    attention = 4 * length**2 * llm.width
    forward = llm.depth * (2 * matrices * length + attention) + 2 * embedding * text
    return Part(llm.depth * (matrices + 2 * llm.width) + outside, forward)
