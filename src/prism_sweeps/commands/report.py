"""prism report: tables, plots and a page."""

from __future__ import annotations

from argparse import Namespace

from prism_sweeps.commands.opening import default_store, read_plan
from prism_sweeps.commands.output import console, print_json
from prism_sweeps.commands.sweep import track
from prism_sweeps.reporting.kept import tables_of


def run(arguments: Namespace) -> int:
    store = default_store(arguments)
    plan = read_plan(store, arguments.study)
    folder = store.study(plan.study).path / "report"
    shown = tables_of(store, plan, folder, console())
    tracked = track(plan, store)
    if arguments.json:
        print_json({"study": plan.study, "report": str(folder / "index.html"), "mlflow": tracked})
        return 0
    print(shown, end="")
    print(f"page, tables, plots: {folder / 'index.html'}")
    if tracked:
        print(f"curves and runs:     mlflow ui --backend-store-uri {tracked}")
    return 0
