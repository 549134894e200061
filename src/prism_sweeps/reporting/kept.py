"""A report is made anew only when something it is made from has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

import prism_sweeps.reporting
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking.files import write_atomic
from prism_sweeps.tracking.mlflow_import import study_digest
from prism_sweeps.tracking.records import Store

MADE_FROM = "made_from.json"


def tables_of(store: Store, plan: Plan, folder: Path, screen: Console) -> str:
    """The tables for the terminal, from a report that is up to date: the kept one, or a new one."""
    now = origin(store, plan, screen)
    kept = folder / MADE_FROM
    if kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["from"] == now:
            return str(before["tables"])
    # pandas, scipy and matplotlib take seconds to import.
    from prism_sweeps.reporting.report import terminal_table, write_report

    write_report(store, plan.study)
    with screen.capture() as capture:
        terminal_table(store, plan.study, screen)
    write_atomic(kept, json.dumps({"from": now, "tables": capture.get()}))
    return capture.get()


def origin(store: Store, plan: Plan, screen: Console) -> dict[str, Any]:
    """All that a report and its tables in the terminal depend on: results, our code, the window."""
    code = Path(prism_sweeps.reporting.__file__).parent
    return {
        "results": study_digest(store, store.study(plan.study).plan()),
        "code": max(file.stat().st_mtime_ns for file in code.iterdir() if file.is_file()),
        "window": [screen.width, screen.is_terminal],
    }
