"""prism report: tables, plots and a page."""

from __future__ import annotations

from argparse import Namespace

from prism_sweeps.commands.opening import default_store
from prism_sweeps.commands.output import console, print_json
from prism_sweeps.commands.status import read_plan
from prism_sweeps.commands.sweep import track
from prism_sweeps.reporting.report import terminal_table, write_report


def run(arguments: Namespace) -> int:
    store = default_store(arguments)
    plan = read_plan(store, arguments.study)
    page = write_report(store, plan.study)
    tracked = track(plan, store)
    if arguments.json:
        print_json({"study": plan.study, "report": str(page), "mlflow": tracked})
        return 0
    terminal_table(store, plan.study, console())
    print(f"page, tables, plots: {page}")
    if tracked:
        print(f"curves and runs:     mlflow ui --backend-store-uri {tracked}")
    return 0
