"""What a job is told: plain data that planning writes, fingerprints identify, and training and evaluation read."""

from __future__ import annotations

from dataclasses import dataclass, field

from prism_sweeps.config.schema import Backbone, LanguageModel, Projector, Resize, Resolution, Source, Stage, Tuning
from prism_sweeps.config.suite import Benchmark


@dataclass
class ModelSpec:
    """Everything needed to build the VLM before its trained weights are put in."""

    backbone: Backbone
    resolution: Resolution
    resize: Resize
    projector: Projector
    llm: LanguageModel


@dataclass
class StageSpec:
    """Train one stage. `parent` is the fingerprint of the stage before, whose weights it starts from."""

    name: str
    model: ModelSpec
    stage: Stage
    """With `epochs` resolved against the schedule."""
    sources: dict[str, Source]
    seed: int
    precision: str = "fp32"
    max_steps: int | None = None
    parent: str | None = None
    kind: str = "train"
    tuning: Tuning = field(default_factory=Tuning)
    """Of the language model; the default where the stage does not train it."""


@dataclass
class EvaluationSpec:
    """Score the weights of the training job `parent` on one benchmark under one condition of its images."""

    model: ModelSpec = field(metadata={"changes_result": False})
    """Counted already by `parent`, which was trained with it."""
    benchmark: Benchmark
    condition: str
    parent: str
    precision: str = "fp32"
    kind: str = "evaluate"
    scorer_version: int = 1


@dataclass
class BaselineSpec:
    """The same of a finished model that somebody else has made."""

    model: str = field(metadata={"changes_result": False})
    """`hf:NAME_OR_FOLDER`, or `vllm:` the same. Where its files are and what they are called does not count."""
    content: str
    """Which files these are: a hash of a folder's, or the hub's commit."""
    benchmark: Benchmark
    condition: str
    precision: str = "fp32"
    kind: str = "evaluate"
    scorer_version: int = 1
    scheme: str = "hf"
    """Who asks: hf (transformers) | vllm"""


@dataclass
class Job:
    """One unit of work of a plan."""

    fingerprint: str
    title: str
    spec: StageSpec | EvaluationSpec | BaselineSpec
    parents: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.spec.kind
