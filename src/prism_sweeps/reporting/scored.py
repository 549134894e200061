"""Evaluations that a store has: of cells, by its studies' plans, and of baselines, by their records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prism_sweeps.config.errors import StoreError
from prism_sweeps.config.plain import from_plain
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking.records import JobRecord, Store

BASELINE = re.compile(r"^(hf|vllm):.")
"""What names a baseline, where others are named by cell."""
BASELINE_CONFIG = re.compile(r"^    model: ['\"]?(hf|vllm):", re.MULTILINE)
"""In a record's config: reading the YAML of every job would take minutes."""
QUESTIONS = ("index", "version")
SCORING = ("scorer", "iou_threshold")
ASKING = ("prompt", "answer", "choices", "likelihood", "max_new_tokens")


@dataclass(frozen=True)
class Evaluated:
    """One evaluation that is done."""

    spec: EvaluationSpec | BaselineSpec
    record: JobRecord
    result: dict[str, Any]
    finished: float

    @property
    def key(self) -> tuple[str, str]:
        """Benchmark and condition."""
        return self.spec.benchmark.name, self.spec.condition

    @property
    def model(self) -> tuple[str, str]:
        """What tells its model from others: the last training job, or the baseline's files; and the precision."""
        who = self.spec.parent if isinstance(self.spec, EvaluationSpec) else f"{self.spec.model} {self.spec.content}"
        return who, self.spec.precision


def of_cell(plan: Plan, cell: PlannedCell, store: Store) -> list[Evaluated]:
    """The cell's evaluations that are done, in the order planned."""
    return list(done_of((plan.jobs[name].spec, store.job(name)) for name in cell.evaluate))


def of_studies(store: Store) -> list[Evaluated]:
    """Those of all cells of all studies, each once."""
    specs = {
        name: job.spec
        for study in store.studies()
        for name, job in Plan.from_plain(store.study(study).plan()).jobs.items()
        if job.kind == "evaluate"
    }
    return list(done_of((spec, store.job(name)) for name, spec in specs.items()))


def of_baselines(store: Store) -> list[Evaluated]:
    """Those of all baselines, the last one done first."""
    found = done_of((spec, record) for record in records(store) if (spec := baseline_spec(record)) is not None)
    return sorted(found, key=lambda one: -one.finished)


def done_of(specs: Iterable[tuple[Any, JobRecord]]) -> Iterator[Evaluated]:
    for spec, record in specs:
        state = record.state()
        if state["status"] == "done" and isinstance(spec, EvaluationSpec | BaselineSpec):
            yield Evaluated(spec, record, state["result"] or {}, float(state["finished"] or 0.0))


def records(store: Store) -> list[JobRecord]:
    return [store.job(path.parent.name) for path in sorted((store.root / "jobs").glob("*/config.yaml"))]


def baseline_spec(record: JobRecord) -> BaselineSpec | None:
    """What a baseline's evaluation was told; None for another job. Raises StoreError for a file that is not YAML."""
    text = record.config.read_text(encoding="utf-8")
    if not BASELINE_CONFIG.search(text):
        return None
    import yaml

    try:
        content = yaml.safe_load(text)["job"]["spec"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise StoreError(f"{record.config} is damaged ({error}); remove {record.path} and evaluate again") from None
    return from_plain(BaselineSpec, content, str(record.config))


# ---- whether two of them can be compared


def incomparable(a: Evaluated, b: Evaluated) -> str | None:
    """Why a difference between the two scores would not be one between the models; None where it is."""
    for keys, meaning in ((QUESTIONS, "the questions are not the same"), (SCORING, "the scores are not of one kind")):
        told = differing(a, b, keys)
        if told:
            return f"{'; '.join(told)}: {meaning}"
    if a.spec.scorer_version != b.spec.scorer_version:
        versions = f"{a.spec.scorer_version} of the scorer on side A, {b.spec.scorer_version} on side B"
        return f"version {versions}: the scores are not of one kind; evaluate both again"
    return None


def asked_otherwise(a: Evaluated, b: Evaluated) -> list[str]:
    """In what the two were asked differently about the same examples."""
    return differing(a, b, ASKING)


def differing(a: Evaluated, b: Evaluated, keys: Iterable[str]) -> list[str]:
    pairs = {key: (getattr(a.spec.benchmark, key), getattr(b.spec.benchmark, key)) for key in keys}
    return [
        f"{key} is {left!r} on side A, {right!r} on side B" for key, (left, right) in pairs.items() if left != right
    ]
