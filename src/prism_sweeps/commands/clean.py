"""prism clean: what of a study, and of its store, is not needed any more."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from prism_sweeps.commands.opening import default_store, read_outline
from prism_sweeps.commands.output import amount, asked, console, print_json, say, table
from prism_sweeps.launching.leftovers import Also, Leftover, beside_jobs, remove, survey, totals
from prism_sweeps.planning.outline import Outline
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

KINDS = {
    "checkpoints": "of done jobs",
    "leftovers": "half-written files of attempts that were killed",
    "slurm": "output and submitit's files of SLURM jobs that have ended well",
    "snapshots": "of the code, that nothing in the queue runs",
    "weights": "of stages with all that starts from them done; not to be asked, exported or scored anew afterwards",
    "unused": "records and answers of jobs that no study of this store needs",
    "features": "of frozen towers; computed anew when they are needed",
}


def run(arguments: Namespace) -> int:
    store = default_store(arguments)
    outline = read_outline(store, arguments.study)
    also = Also(arguments.weights, arguments.unused, arguments.features)
    found, reasons = survey(store, outline, also)
    if not arguments.json:
        show(store, outline, found, also)
    for reason in reasons:
        say(reason)
    yes = arguments.yes or (not arguments.json and bool(found) and may_ask() and asked(f"remove {size(found)}?"))
    gone, left = removed(store, outline, also, found) if yes and found else ([], [])
    if arguments.json:
        print_json(as_json(store, outline, found, gone, reasons))
    elif found:
        print(closing(gone, left, yes))
    return 0


def may_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def removed(
    store: Store, outline: Outline, also: Also, shown: Sequence[Leftover]
) -> tuple[list[Leftover], list[Leftover]]:
    """Removes what was shown and can still go, with no submission into the store going on meanwhile."""
    with submissions.submitting(store.root, say):
        paths = {each.path for each in shown}
        return remove(store, [each for each in survey(store, outline, also)[0] if each.path in paths])


def show(store: Store, outline: Outline, found: Sequence[Leftover], also: Also) -> None:
    """What can go, and what else is large."""
    rows = [(kind, row["count"], amount(row["bytes"], "B"), KINDS[kind]) for kind, row in totals(found).items()]
    if rows:
        columns = ("what", "number", "size", "")
        console().print(table(f"{outline.study}: can go from {store.root}", columns, rows, right=("number", "size")))
    else:
        print(f"nothing of {outline.study} to clean in {store.root}")
    sizes = ", ".join(f"{name} {amount(count, 'B')}" for name, count in beside_jobs(store).items())
    print(f"besides: {sizes}" if sizes else "nothing else in the store")
    if offers := [f"--{name}" for name in ("weights", "unused", "features") if not getattr(also, name)]:
        print(f"more can go with {', '.join(offers)} (prism clean --help)")


def size(found: Sequence[Leftover]) -> str:
    return amount(sum(each.size for each in found), "B")


def closing(gone: Sequence[Leftover], left: Sequence[Leftover], yes: bool) -> str:
    if not yes:
        return "nothing was removed; --yes removes it"
    busy = f"; {len(left)} left, for somebody is at their jobs now" if left else ""
    return f"{size(gone)} freed{busy}"


def as_json(
    store: Store, outline: Outline, found: Sequence[Leftover], gone: Sequence[Leftover], reasons: Sequence[str]
) -> dict[str, Any]:
    return {
        "study": outline.study,
        "store": str(store.root),
        "can_go": [{"kind": each.kind, "path": str(each.path), "bytes": each.size} for each in found],
        "totals": totals(found),
        "removed": totals(gone),
        "besides": beside_jobs(store),
        "not_now": list(reasons),
    }
