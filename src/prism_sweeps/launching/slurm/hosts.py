"""Nodes that jobs fail on while they do not elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

ENOUGH = 2
"""Failures in a row after which a node is suspected."""


def bad_hosts(states: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Host -> its last failures in a row, where these are enough and something has gone well elsewhere since.

    Failures that trying again cannot help (a wrong setting, a full disk) say nothing of a node.
    """
    failures: dict[str, list[float]] = defaultdict(list)
    successes: dict[str, list[float]] = defaultdict(list)
    for state in states:
        if state["status"] == "done" and state["host"]:
            successes[state["host"]].append(state["finished"])
        if not state["final"]:
            for host, when in state["failed_on"]:
                if host:  # else it was lost before it began anywhere, or on one of several nodes
                    failures[host].append(when)
    found = {}
    for host, times in failures.items():
        last_success = max(successes.get(host, ()), default=0.0)
        row = [when for when in times if when > last_success]
        elsewhere = [when for other, well in successes.items() if other != host for when in well]
        if len(row) >= ENOUGH and max(elsewhere, default=0.0) > min(row):
            found[host] = len(row)
    return found
