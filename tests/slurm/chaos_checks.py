"""What has to be true of a store after a sweep, however it was disturbed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mlflow.tracking import MlflowClient

from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.mlflow_import import import_study
from prism_sweeps.tracking.mlflow_runs import cell_runs
from prism_sweeps.tracking.records import JobRecord, Store

KEY = "prism.run"
"""Tag of a run that tells of which cell, or of which stage of a cell."""
SAME = ("step", "loss", "learning_rate", "grad_norm", "tokens", "examples", "supervised_tokens")
"""Of a step's metrics, those that do not tell how fast it was."""
LINE = re.compile(r"^\[[^\]]* (\S+) (\d+)\] (.*)")
"""A dated line of a job's log: host, process, text."""


@dataclass(frozen=True)
class Check:
    what: str
    holds: bool
    detail: str = ""


def checks(peace: Store, disturbed: Store, study: str, uri: str) -> list[Check]:
    """All that is to be true, with what is wrong where it is not."""
    plan = Plan.from_plain(disturbed.study(study).plan())
    pairs = [(peace.job(name), disturbed.job(name)) for name in plan.jobs]
    states = [after.state() for _, after in pairs]
    attempts = sum(state["attempts"] for state in states)
    return [
        Check(
            f"all {len(plan.cells)} cells are complete",
            all(state["status"] == "done" for state in states),
            f"{len(states)} jobs in {attempts} attempts",
        ),
        of_jobs("metrics of every step equal the undisturbed ones", pairs, same_curve),
        of_jobs("every answer and score equals the undisturbed ones", pairs, same_scores),
        of_jobs("no job was worked on twice at once", pairs, lambda _, after: overlaps(after)),
        mlflow_check(disturbed, plan, uri),
    ]


def of_jobs(what: str, pairs: list[tuple[JobRecord, JobRecord]], wrong: Any) -> Check:
    found = [f"{after.fingerprint[:8]}: {text}" for before, after in pairs if (text := wrong(before, after))]
    return Check(what, not found, "; ".join(found[:5]))


def same_curve(before: JobRecord, after: JobRecord) -> str:
    """What is wrong with the metrics of a job; empty if nothing is."""
    rows = [[{key: row.get(key) for key in SAME} for row in each.read_metrics()] for each in (before, after)]
    if rows[0] == rows[1]:
        return ""
    differing = [one["step"] for one, other in zip(*rows, strict=False) if one != other]
    return f"{len(rows[0])} and {len(rows[1])} rows, differing at {differing[:3]}"


def same_scores(before: JobRecord, after: JobRecord) -> str:
    """What is wrong with the answers and the result of an evaluation."""
    if before.state().get("kind") != "evaluate":
        return ""
    answers = [sorted(map(repr, each.read_predictions())) for each in (before, after)]
    if answers[0] != answers[1]:
        return f"{len(answers[0])} and {len(answers[1])} answers, not the same"
    results = [each.state()["result"] or {} for each in (before, after)]
    return "" if results[0].get("score") == results[1].get("score") else "the scores differ"


def overlaps(record: JobRecord) -> str:
    """A process that writes into the log after another one has begun an attempt."""
    begun: list[tuple[str, str]] = []
    for line in record.log.read_text(errors="replace").splitlines() if record.log.exists() else ():
        found = LINE.match(line)
        if not found:
            continue
        process = (found[1], found[2])
        if found[3].startswith("attempt "):
            begun.append(process)
        elif process in begun[:-1] and process != begun[-1]:
            return f"process {process} wrote '{found[3][:40]}' after {begun[-1]} had begun"
    return ""


def mlflow_check(store: Store, plan: Plan, uri: str) -> Check:
    """Whether MLflow holds each metric of the records exactly once, and nothing else."""
    what = "MLflow holds each metric exactly once"
    import_study(store, plan.study, uri)
    client = MlflowClient(tracking_uri=uri)
    stored = runs_of(client, client.get_experiment_by_name(plan.study).experiment_id)
    wrong, count = [f"{key}: {len(runs)} runs" for key, runs in stored.items() if len(runs) > 1], 0
    runs = cell_runs(plan, store)
    for run in [*runs, *(child for each in runs for child in each.children)]:
        if run.key not in stored:
            return Check(what, False, f"no run {run.key}")
        name = stored[run.key][0].info.run_id
        wanted = Counter((key, step, value) for key, value, _, step in [*run.points, *run.curve()])
        held: Counter[tuple[str, int, float]] = Counter()
        for key in {key for key, _, _ in wanted} | set(stored[run.key][0].data.metrics):
            held.update((key, point.step, point.value) for point in client.get_metric_history(name, key))
        count += len(held)
        wrong += [f"{run.key} {each}: {held[each]} times" for each in wanted | held if held[each] != wanted[each]]
    return Check(what, not wrong, "; ".join(wrong[:5]) or f"{count} points in {len(stored)} runs")


def runs_of(client: Any, experiment_id: str) -> dict[str, list[Any]]:
    """Key -> all runs that have it and are not deleted."""
    found: dict[str, list[Any]] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        for run in page:
            found.setdefault(run.data.tags.get(KEY, "?"), []).append(run)
        token = page.token
        if not token:
            return found
