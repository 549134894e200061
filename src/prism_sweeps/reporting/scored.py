"""Evaluations that a store has, of cells and of finished models, by the plans of its studies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, StageSpec
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking.records import JobRecord, Store

QUESTIONS = ("index", "version")
SCORING = ("scorer", "iou_threshold")
ASKING = ("prompt", "answer", "choices", "likelihood", "max_new_tokens")


@dataclass(frozen=True)
class Evaluated:
    """One evaluation that is done."""

    spec: EvaluationSpec | BaselineSpec
    record: JobRecord
    finished: float

    @property
    def key(self) -> tuple[str, str]:
        """Benchmark and condition."""
        return self.spec.benchmark.name, self.spec.condition

    @property
    def model(self) -> tuple[str, str]:
        """What tells its model from others: the last training job, or the files; and the precision."""
        who = self.spec.parent if isinstance(self.spec, EvaluationSpec) else f"{self.spec.scheme}:{self.spec.content}"
        return who, self.spec.precision


def of_cell(plan: Plan, cell: PlannedCell, store: Store) -> list[Evaluated]:
    """The cell's evaluations that are done, in the order planned."""
    return list(done_of((plan.jobs[name].spec, store.job(name)) for name in cell.evaluate))


def of_studies(store: Store) -> list[Evaluated]:
    """Those of all studies, each once, the last one done first."""
    specs = {
        name: job.spec
        for study in store.studies()
        for name, job in Plan.from_plain(store.study(study).plan()).jobs.items()
    }
    found = done_of((spec, store.job(name)) for name, spec in specs.items())
    return sorted(found, key=lambda one: -one.finished)


def of_baseline(store: Store, names: Iterable[str]) -> list[Evaluated]:
    """Those of the finished model that is called one of `names`, the last one done first."""
    return [one for one in of_studies(store) if isinstance(one.spec, BaselineSpec) and one.spec.model in names]


def done_of(
    specs: Iterable[tuple[StageSpec | EvaluationSpec | BaselineSpec, JobRecord]],
) -> Iterator[Evaluated]:
    for spec, record in specs:
        if not isinstance(spec, StageSpec):
            state = record.state()
            if state["status"] == "done":
                yield Evaluated(spec, record, float(state["finished"]))


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
