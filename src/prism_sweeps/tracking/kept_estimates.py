"""What a study was estimated to cost when its jobs began: `<store>/studies/<name>/estimates.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prism_sweeps.planning.reality import to_keep
from prism_sweeps.tracking.files import read_json, write_atomic
from prism_sweeps.tracking.studies import StudyRecord

FILE = "estimates.json"


def keep_estimates(record: StudyRecord, summary: Mapping[str, Any]) -> None:
    """Keeps the estimate of every job of the plan's `summary` that has not begun; earlier ones stay as they were."""
    jobs = to_keep(summary, read_estimates(record))
    write_atomic(record.path / FILE, json.dumps({"jobs": jobs}, indent=1, ensure_ascii=False) + "\n")


def read_estimates(record: StudyRecord) -> dict[str, Any]:
    """Fingerprint -> what `planning.reality.KEPT` names; {} for a study whose estimates were never kept."""
    path = record.path / FILE
    if not path.exists():
        return {}
    jobs: dict[str, Any] = read_json(path, f"remove {path}; only the comparison with it is lost").get("jobs", {})
    return jobs
