"""A study's records as tidy data frames. What is missing or failed stays in them as such."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, Job, StageSpec
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.reporting.statistics import Codes
from prism_sweeps.tracking.records import Store

SPLIT = "split"
"""The tag whose values weigh equally in the score of some benchmarks."""
TOLERANCE = 0.005
"""Percent by which a job's score may differ from the one its rows give."""

Evaluation = EvaluationSpec | BaselineSpec

CELLS = ["cell", "variant", "seed", "baseline", "state", "done", "jobs", "choices", "overrides"]
JOBS = ["job", "kind", "title", "state", "reason", "attempts", "seconds", "cpu_seconds", "gpu_seconds", "commit"]
SCORES = ["cell", "variant", "seed", "benchmark", "condition", "job", "state", "score", "standard_error", "n"]
EXAMPLES = ["variant", "seed", "benchmark", "condition", "example", "image", "score", "answer", "gold", "tags"]


@dataclass(frozen=True)
class StudyFrames:
    """One study. A variant is a cell without its seed; `reference` is the variant all others are compared with.

    `cells`, `jobs`, `scores` have a row for everything planned (`state` says whether it is done; a score not had is
    NaN); `examples` has the answers of the evaluations that are done. `by_split`: benchmarks whose score is the plain
    mean over splits; `unexplained`: those whose score is not the mean of its examples in either way.
    """

    study: str
    description: str
    device: str
    axes: dict[str, list[str]]
    reference: str
    variants: dict[str, dict[str, str]]
    """Label -> axis -> choice, on the axes under test; the reference comes first."""
    benchmarks: list[str]
    conditions: list[str]
    configs: dict[str, dict[str, Any]]
    cells: pd.DataFrame
    jobs: pd.DataFrame
    scores: pd.DataFrame
    examples: pd.DataFrame
    metrics: dict[str, pd.DataFrame]
    """Training job -> its curve."""
    stages: dict[str, dict[str, str]]
    """Stage name -> its training jobs -> the first variant that uses each."""
    by_split: frozenset[str]
    unexplained: frozenset[str]

    @property
    def seeds(self) -> list[int]:
        return sorted(self.cells["seed"].unique().tolist())


def read_study(store: Store, study: str) -> StudyFrames:
    """Everything a report needs. Raises StoreError when the study has no plan or a record cannot be read."""
    plan = Plan.from_plain(store.study(study).plan())
    states = {fingerprint: store.job(fingerprint).state() for fingerprint in plan.jobs}
    evaluations = {name: job.spec for name, job in plan.jobs.items() if not isinstance(job.spec, StageSpec)}
    done = [name for name in evaluations if states[name]["status"] == "done"]
    rows = {name: store.job(name).read_predictions() for name in done}
    by_split, unexplained = explain_scores(evaluations, states, rows)
    curves = {name: pd.DataFrame(store.job(name).read_metrics()) for name in plan.jobs if name not in evaluations}
    variants = variants_of(plan)
    specs = [evaluations[name] for cell in plan.cells for name in cell.evaluate]
    return StudyFrames(
        study=plan.study,
        description=plan.description,
        device=plan.engine.device,
        axes={axis: [str(value) for value in values] for axis, values in plan.axes.items()},
        reference=next(iter(variants)),
        variants=variants,
        benchmarks=list(dict.fromkeys(spec.benchmark.name for spec in specs)),
        conditions=list(dict.fromkeys(spec.condition for spec in specs)),
        configs={label(cell): cell.config for cell in reversed(plan.cells)},
        cells=pd.DataFrame([cell_row(cell, states) for cell in plan.cells], columns=CELLS),
        jobs=pd.DataFrame([job_row(job, plan.jobs, states) for job in plan.jobs.values()], columns=JOBS),
        scores=pd.DataFrame(list(score_rows(plan.cells, evaluations, states)), columns=SCORES),
        examples=example_frame(plan.cells, evaluations, rows),
        metrics={name: curve for name, curve in curves.items() if len(curve)},
        stages=stages_of(plan),
        by_split=by_split,
        unexplained=unexplained,
    )


# ---- cells and variants


def label(cell: PlannedCell) -> str:
    """The name of a cell's variant: what it changes."""
    return ", ".join(f"{axis}={value}" for axis, value in cell.overrides.items()) or "baseline"


def variants_of(plan: Plan) -> dict[str, dict[str, str]]:
    """Variants in the order planned, the baseline's first (the first cell's where no cell is the baseline)."""
    cells = sorted(plan.cells, key=lambda cell: not cell.baseline)
    return {label(cell): placed(cell, plan.axes) for cell in cells}


def placed(cell: PlannedCell, axes: Mapping[str, list[str]]) -> dict[str, str]:
    """Where a cell lies on the axes under test; on an axis that it does not change it has the baseline's choice."""
    return {axis: str(cell.overrides.get(axis, values[0])) for axis, values in axes.items()}


def cell_row(cell: PlannedCell, states: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    found = [str(states[name]["status"]) for name in [*cell.train, *cell.evaluate]]
    return {
        "cell": cell.id,
        "variant": label(cell),
        "seed": cell.seed,
        "baseline": cell.baseline,
        "state": joint_state(found),
        "done": found.count("done"),
        "jobs": len(found),
        "choices": dict(cell.choices),
        "overrides": {axis: str(value) for axis, value in cell.overrides.items()},
    }


def joint_state(states: Iterable[str]) -> str:
    """The state of a cell from those of its jobs: the worst that needs somebody to act, or how far it got."""
    found = set(states)
    for state in ("failed", "running", "interrupted"):
        if state in found:
            return state
    return "partial" if len(found) > 1 else next(iter(found), "new")


def stages_of(plan: Plan) -> dict[str, dict[str, str]]:
    stages: dict[str, dict[str, str]] = {}
    for cell in plan.cells:
        for name in cell.train:
            spec = plan.jobs[name].spec
            if isinstance(spec, StageSpec):
                stages.setdefault(spec.name, {}).setdefault(name, label(cell))
    return stages


# ---- jobs and scores


def job_row(job: Job, jobs: Mapping[str, Job], states: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    state = states[job.fingerprint]
    return {
        "job": job.fingerprint,
        "kind": job.kind,
        "title": job.title,
        "state": state["status"],
        "reason": reason(job, jobs, states),
        "attempts": state.get("attempts", 0),
        "seconds": float(state.get("seconds") or 0.0),
        "cpu_seconds": float(state.get("cpu_seconds") or 0.0),
        "gpu_seconds": float(state.get("gpu_seconds") or 0.0),
        "commit": state.get("commit"),
    }


def reason(job: Job, jobs: Mapping[str, Job], states: Mapping[str, dict[str, Any]]) -> str:
    """Why a job has no result; empty for one that has."""
    state = states[job.fingerprint]
    if state["status"] == "done":
        return ""
    if state["status"] == "failed":
        return str(state.get("error") or "failed without a message")
    for parent in job.parents:
        if parent in jobs and states[parent]["status"] != "done":
            verb = "failed" if states[parent]["status"] == "failed" else "is not done"
            return f"needs '{jobs[parent].title}', which {verb}"
    return {"running": "is running", "interrupted": "was interrupted"}.get(state["status"], "has not run yet")


def score_rows(
    cells: Iterable[PlannedCell], evaluations: Mapping[str, Evaluation], states: Mapping[str, dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    for cell in cells:
        for name in cell.evaluate:
            state = states[name]
            result = (state["result"] or {}) if state["status"] == "done" else {}
            yield {
                "cell": cell.id,
                "variant": label(cell),
                "seed": cell.seed,
                "benchmark": evaluations[name].benchmark.name,
                "condition": evaluations[name].condition,
                "job": name,
                "state": state["status"],
                "score": number(result.get("score")),
                "standard_error": number(result.get("standard_error")),
                "n": int(result.get("n") or 0),
            }


def number(value: Any) -> float:
    return float("nan") if value is None else float(value)


# ---- examples


def example_frame(
    cells: Iterable[PlannedCell],
    evaluations: Mapping[str, Evaluation],
    rows: Mapping[str, list[dict[str, Any]]],
) -> pd.DataFrame:
    """One row per answer. Columns are built whole: a frame per evaluation would take most of a report's time."""
    found = [(cell, name) for cell in cells for name in cell.evaluate if rows.get(name)]
    sizes = np.array([len(rows[name]) for _, name in found], dtype=np.int64)
    answers = [row for _, name in found for row in rows[name]]
    labels = {
        "variant": [label(cell) for cell, _ in found],
        "benchmark": [evaluations[name].benchmark.name for _, name in found],
        "condition": [evaluations[name].condition for _, name in found],
    }
    columns: dict[str, Any] = {key: repeated(values, sizes) for key, values in labels.items()}
    columns["seed"] = np.repeat(np.array([cell.seed for cell, _ in found], dtype=np.int64), sizes)
    columns["score"] = np.array([row["score"] for row in answers], dtype=np.float64)
    for column, key in {"example": "id", "image": "image", "answer": "answer", "gold": "gold", "tags": "tags"}.items():
        columns[column] = pd.Series([row.get(key) for row in answers], dtype=object)
    return pd.DataFrame(columns, columns=EXAMPLES)


def repeated(values: list[str], sizes: Codes) -> pd.Categorical:
    """Each of `values` as many times as `sizes` says."""
    codes, names = pd.factorize(np.array(values, dtype=object))
    return pd.Categorical.from_codes(np.repeat(codes, sizes), categories=pd.Index(names))


def explain_scores(
    evaluations: Mapping[str, Evaluation],
    states: Mapping[str, dict[str, Any]],
    rows: Mapping[str, list[dict[str, Any]]],
) -> tuple[frozenset[str], frozenset[str]]:
    """Benchmarks whose score is the mean over splits, and those whose score follows from their rows in no known way."""
    scores = {name: (states[name]["result"] or {}).get("score") for name, found in rows.items() if found}
    known = {name: float(score) for name, score in scores.items() if score is not None}
    of = {name: evaluations[name].benchmark.name for name in known}
    strange = {of[name] for name, score in known.items() if abs(plain_score(rows[name]) - score) > TOLERANCE}
    unexplained = {
        of[name]
        for name, score in known.items()
        if of[name] in strange and abs(split_score(rows[name]) - score) > TOLERANCE
    }
    return frozenset(strange - unexplained), frozenset(unexplained)


def plain_score(rows: list[dict[str, Any]]) -> float:
    return 100 * math.fsum(row["score"] for row in rows) / len(rows)


def split_score(rows: list[dict[str, Any]]) -> float:
    splits: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        splits.setdefault(split_of(row.get("tags")), []).append(row)
    return sum(map(plain_score, splits.values())) / len(splits)


def split_of(tags: Mapping[str, Any] | None) -> str:
    """The split an example belongs to, where its benchmark has splits."""
    return str((tags or {}).get(SPLIT, ""))
