"""prism evaluate: the scores of one trained cell, or of finished models of others."""

from __future__ import annotations

import shlex
from argparse import Namespace

from prism_sweeps.commands import baselines, power
from prism_sweeps.commands.opening import one_cell, open_store
from prism_sweeps.commands.train import run_cell
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.planning.baselines import names_baselines


def run(arguments: Namespace) -> int:
    power.refuse_options(arguments)
    if names_baselines(arguments.overrides):
        return baselines.run(arguments)
    plan, cell = one_cell(arguments)
    store = open_store(plan.store, arguments)
    state = store.job(cell.train[-1]).state()["status"]
    if state != "done":
        raise ConfigError(
            f"cell {cell.id} is not trained in {store.root} (its last stage is {state}); "
            f"train it: {shlex.join(['prism', 'train', *said(arguments)])}"
        )
    return run_cell(plan, store, {name: plan.jobs[name] for name in cell.evaluate}, arguments.json)


def said(arguments: Namespace) -> list[str]:
    """What another command about the same cell has to be told."""
    options = {"--store": arguments.store, "--config-dir": arguments.config_dir}
    return [text for name, value in options.items() if value for text in (name, str(value))] + arguments.overrides
