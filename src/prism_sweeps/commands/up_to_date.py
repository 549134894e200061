"""MLflow brought up to date by commands that have done something else."""

from __future__ import annotations

from prism_sweeps.launching.overview import Overview
from prism_sweeps.tracking.mlflow_import import bring_up_to_date
from prism_sweeps.tracking.records import Store

PATIENCE_SECONDS = 20.0


def bring_up(store: Store, found: Overview) -> None:
    """Feeds MLflow with what has begun of a study; what keeps it from that is a warning."""
    if any(state["attempts"] for state in found.states.values()):
        bring_up_to_date(store, found.outline, PATIENCE_SECONDS)
