"""From arguments to a plan and a store."""

from __future__ import annotations

import dataclasses
import gc
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from prism_sweeps.config import schema
from prism_sweeps.config.compose import compose_cell, design_space
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.planning.outline import Outline, outline_of
from prism_sweeps.planning.plan import Plan, PlannedCell, make_plan
from prism_sweeps.tracking.records import Store


def place_of(config: schema.Store, arguments: Namespace) -> schema.Store:
    """Where the store is: --store, else PRISM_STORE, else what the config says."""
    root = arguments.store or os.environ.get("PRISM_STORE") or config.root
    return dataclasses.replace(config, root=str(root))


def open_store(config: schema.Store, arguments: Namespace) -> Store:
    """The store that the arguments name, created on first use."""
    place = place_of(config, arguments)
    return Store.open(Path(place.root), None if place.data is None else Path(place.data))


def default_store(arguments: Namespace) -> Store:
    """The store of a command that composes no cell."""
    return open_store(compose_cell([], arguments.config_dir)[0].store, arguments)


def plan_of(arguments: Namespace) -> Plan:
    """The plan of STUDY and overrides: composed from its file, or as this store has run it where there is no file."""
    given = arguments.overrides
    if not given:
        known = design_space(arguments.config_dir).files.studies()
        raise ConfigError(f"which study? name one, or give a grid as key=value; {nearest('', known)}")
    name = given[0] if "=" not in given[0] else None
    if name and name not in design_space(arguments.config_dir).files.studies():
        store = default_store(arguments)
        if name in store.studies():
            return recorded_plan(store, name, given[1:])
    return make_plan(given, arguments.name, arguments.config_dir)


def recorded_plan(store: Store, name: str, overrides: list[str]) -> Plan:
    """The plan that was run under this name. It is what it is: it takes no overrides."""
    if overrides:
        raise ConfigError(
            f"'{name}' is a grid that was run before, it has no file that {' '.join(overrides)} could be applied to; "
            "give the whole grid again"
        )
    return Plan.from_plain(store.study(name).plan())


def read_plan(store: Store, study: str) -> Plan:
    """The plan that was run under this name. Raises ConfigError with the nearest name when there is none."""
    return Plan.from_plain(written_plan(store, study))


def read_outline(store: Store, study: str) -> Outline:
    """The outline of that plan, which is read much faster."""
    # The collector would look at all objects of a large plan again and again while they are made.
    gc.disable()
    try:
        return outline_of(written_plan(store, study))
    finally:
        gc.enable()


def written_plan(store: Store, study: str) -> dict[str, Any]:
    """That plan as plain data."""
    record = store.study(study)
    if study not in store.studies():
        raise ConfigError(f"the store {store.root} has no study '{study}'; {nearest(study, store.studies())}")
    return record.plan()


def one_cell(arguments: Namespace) -> tuple[Plan, PlannedCell]:
    """The plan of overrides that make one cell."""
    if arguments.overrides and "=" not in arguments.overrides[0]:
        raise ConfigError(
            f"'{arguments.overrides[0]}' is no override; one cell is key=value, a study is run by prism sweep"
        )
    plan = make_plan(arguments.overrides, getattr(arguments, "name", None), arguments.config_dir)
    if len(plan.cells) != 1:
        raise ConfigError(
            f"these overrides make {len(plan.cells)} cells; one cell is meant, for more there is prism sweep"
        )
    return plan, plan.cells[0]
