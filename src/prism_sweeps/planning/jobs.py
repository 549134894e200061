"""One cell as jobs: its chain of stages, then one evaluation per benchmark and condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from prism_sweeps.config.fingerprint import Known, fingerprint
from prism_sweeps.config.schema import MODULES, Cell, DataMix, Stage, Tuning
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, Job, ModelSpec, StageSpec
from prism_sweeps.config.suite import SCORER_VERSIONS, Benchmark, Suite


@dataclass
class Shared:
    """What the cells of a grid have in common, worked out once for all of them."""

    known: Known = field(default_factory=dict)
    """`fingerprint`'s memory."""
    benchmarks: dict[int, tuple[Suite, list[Benchmark]]] = field(default_factory=dict)
    """id of a suite -> the suite, so that its id stays its own, and its benchmarks at the length it asks for."""

    def benchmarks_of(self, suite: Suite) -> list[Benchmark]:
        """Those of the suite, cut to its `examples`."""
        if id(suite) not in self.benchmarks:
            found = [shortened(benchmark, suite.examples) for benchmark in suite.benchmarks.values()]
            self.benchmarks[id(suite)] = (suite, found)
        return self.benchmarks[id(suite)][1]


def jobs_of(cell: Cell, shared: Shared | None = None) -> tuple[list[Job], list[Job]]:
    """The training jobs of a checked cell, each the parent of the next, and the evaluations of the last one's weights.

    A stage's job holds only what that stage uses, so cells that differ in later stages, in the other half of the mix
    or in the schedule share it.
    """
    shared = shared or Shared()
    model = ModelSpec(cell.backbone, cell.resolution, cell.resize, cell.projector, cell.llm)
    train: list[Job] = []
    for name in cell.stages.chain:
        train.append(_training_job(cell, model, name, train[-1].fingerprint if train else None, shared.known))
    return train, _cell_evaluations(cell, model, train[-1].fingerprint, shared)


def _training_job(cell: Cell, model: ModelSpec, name: str, parent: str | None, known: Known) -> Job:
    stage = cell.stages.chain[name]
    last = name == list(cell.stages.chain)[-1]
    sources = cell.data_mix.align if stage.data == "align" else cell.data_mix.instruct
    spec = StageSpec(
        name=name,
        model=model,
        stage=_resolved(stage, cell.schedule.epochs),
        # Sorted, so that the order in which a YAML lists them means nothing.
        sources=dict(sorted(sources.items())),
        seed=cell.seed,
        precision=cell.engine.precision,
        max_steps=cell.schedule.max_steps if last else None,
        parent=parent,
        tuning=_tuning(cell.tuning, stage),
    )
    title = f"{_path(cell, name)}: {_label(cell, cell.data_mix if stage.data == 'instruct' else None, last)}"
    return Job(fingerprint(spec, known), title, spec, [parent] if parent else [])


def _resolved(stage: Stage, epochs: float) -> Stage:
    trains = [module for module in MODULES if module in stage.trains]
    return replace(stage, trains=trains, epochs=epochs if stage.epochs is None else stage.epochs)


def _tuning(tuning: Tuning, stage: Stage) -> Tuning:
    """Of adapters only where a language model gets some; the order in which they are listed means nothing."""
    if tuning.method == "full" or "llm" not in stage.trains:
        return Tuning()
    return replace(tuning, targets=sorted(set(tuning.targets)))


def _cell_evaluations(cell: Cell, model: ModelSpec, parent: str, shared: Shared) -> list[Job]:
    def spec_of(benchmark: Benchmark, condition: str, version: int) -> EvaluationSpec:
        return EvaluationSpec(model, benchmark, condition, parent, cell.engine.precision, scorer_version=version)

    return evaluation_jobs(cell.suite, spec_of, _label(cell, cell.data_mix, last=True), [parent], shared)


def evaluation_jobs(
    suite: Suite,
    spec_of: Callable[[Benchmark, str, int], EvaluationSpec | BaselineSpec],
    label: str,
    parents: Sequence[str],
    shared: Shared,
) -> list[Job]:
    """One for each benchmark and condition, of the model that `spec_of` (these and the scorer's version) speaks of."""
    jobs = []
    for benchmark, condition in product(shared.benchmarks_of(suite), suite.conditions):
        spec = spec_of(benchmark, condition, SCORER_VERSIONS.get(benchmark.scorer, 1))
        shown = benchmark.name if condition == "real" else f"{benchmark.name} ({condition})"
        jobs.append(Job(fingerprint(spec, shared.known), f"{shown}: {label}", spec, list(parents)))
    return jobs


def shortened(benchmark: Benchmark, examples: int | None) -> Benchmark:
    """The benchmark with the suite's number of examples, where that says one."""
    return benchmark if examples is None else replace(benchmark, examples=examples)


def _path(cell: Cell, name: str) -> str:
    """The stages up to `name`, which tells a stage of a longer chain from the same one alone."""
    chain = list(cell.stages.chain)
    return " > ".join(chain[: chain.index(name) + 1])


def _label(cell: Cell, mix: DataMix | None, last: bool) -> str:
    model = (cell.backbone.name, cell.resolution.name, cell.resize.name, cell.projector.name, cell.llm.name)
    tuning = [] if cell.tuning.method == "full" else [cell.tuning.name]
    names = [*model, *tuning, *([mix.name] if mix else []), *([cell.schedule.name] if last else [])]
    return f"{' '.join(names)} seed {cell.seed}"
