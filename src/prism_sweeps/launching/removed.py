"""Jobs of cells that a study no longer has: they may be in SLURM's queue although nobody needs them.

`<store>/studies/<name>/removed.json`: {fingerprint: title} of what was submitted and is not in the plan any more.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from prism_sweeps.config.errors import StoreError
from prism_sweeps.launching.standing import Known, alive
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.files import read_json, write_atomic
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.studies import StudyRecord
from prism_sweeps.tracking.submissions import Allotted

FILE = "removed.json"


def replace_plan(store: Store, plan: Plan) -> None:
    """Writes the plan of a study. What was submitted of the former one and is not in this one is remembered."""
    record = store.study(plan.study)
    submitted = submissions.read(store.root).newest()
    former = removed_from(record) | _titles_of_former(record)
    gone = {name: title for name, title in former.items() if name in submitted and name not in plan.jobs}
    if gone or (record.path / FILE).exists():
        write_atomic(record.path / FILE, json.dumps(gone, indent=1, ensure_ascii=False) + "\n")
    record.write_plan(plan.to_plain())


def _titles_of_former(record: StudyRecord) -> dict[str, str]:
    """Of the plan that is there; {} for none, and for one that is damaged: it is about to be replaced."""
    with contextlib.suppress(StoreError):
        return {name: str(job["title"]) for name, job in record.plan().get("jobs", {}).items()}
    return {}


def removed_from(record: StudyRecord) -> dict[str, str]:
    """Job -> title, of all that was submitted once and is not in the study's plan any more."""
    path = record.path / FILE
    return dict(read_json(path, "remove it")) if path.exists() else {}


def still_there(store: Store, study: str, newest: Mapping[str, Allotted], known: Known) -> list[str]:
    """Jobs removed from a study that SLURM has, that are not done, and that no plan of the store needs."""
    queue = known.queue or {}
    there = [
        name
        for name in removed_from(store.study(study))
        if name in newest and alive(queue.get(newest[name].slurm_id)) and known.states[name]["status"] != "done"
    ]
    needed = needed_by(store, there)
    return [name for name in there if name not in needed]


def needed_by(store: Store, names: Collection[str]) -> dict[str, list[str]]:
    """Those of some jobs that plans of the store have -> the studies. Raises StoreError for a plan that is damaged."""
    found: dict[str, list[str]] = {}
    for study in store.studies() if names else ():
        jobs: Mapping[str, Any] = store.study(study).plan().get("jobs", {})
        for name in names:
            if name in jobs:
                found.setdefault(name, []).append(study)
    return found
