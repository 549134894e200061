"""What a job costs, from shapes alone: parameters, tokens, floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

from prism_sweeps.config.checks import backbone_patches
from prism_sweeps.config.flops import (
    forward_operations,
    parts,
    sections,
    training_operations,
)
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, Job, ModelSpec, StageSpec
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
    """As if all had an image, and a token were predicted at every position of the text."""


def job_cost(job: Job) -> JobCost:
    """The cost of a training or evaluation job. Of a finished model of others only the examples are known."""
    if isinstance(job.spec, BaselineSpec):
        examples = benchmark_examples(job.spec.benchmark)
        return JobCost(parameters=0, trainable=0, examples=examples, tokens=None, flops=None)
    return _training_cost(job.spec) if isinstance(job.spec, StageSpec) else _evaluation_cost(job.spec)


def model_parameters(model: ModelSpec) -> dict[str, int]:
    """Parameters of vision, projector and llm, as they are built (without the towers' last block)."""
    return {name: part.parameters for name, part in parts(model).items()}


def evaluation_operations(spec: EvaluationSpec) -> float:
    """Of one example."""
    return forward_operations(spec.model).of(_length(spec.model, QUESTION_TOKENS), QUESTION_TOKENS)


def _training_cost(spec: StageSpec) -> JobCost:
    run = sections(spec)
    text, examples = text_tokens(spec.sources), _examples_seen(spec)
    length = _length(spec.model, text)
    return JobCost(
        parameters=sum(section.part.parameters for section in run),
        trainable=sum(section.part.parameters for section in run if section.trained),
        examples=examples,
        tokens=None if examples is None else examples * length,
        flops=None if examples is None else examples * training_operations(spec, image=True).of(length, text),
    )


def _evaluation_cost(spec: EvaluationSpec) -> JobCost:
    examples = benchmark_examples(spec.benchmark)
    return JobCost(
        parameters=sum(model_parameters(spec.model).values()),
        trainable=0,
        examples=examples,
        tokens=None if examples is None else examples * _length(spec.model, QUESTION_TOKENS),
        flops=None if examples is None else examples * evaluation_operations(spec),
    )


def _examples_seen(spec: StageSpec) -> int | None:
    held = known_examples(spec.sources)
    steps = None if spec.max_steps is None else spec.max_steps * spec.stage.global_batch
    if held is None:
        return None
    seen = round(held * (spec.stage.epochs or 1.0))
    return seen if steps is None else min(seen, steps)


def _length(model: ModelSpec, text: int) -> int:
    return backbone_patches(model.backbone, model.resolution.pixels) + text
