"""prism studies: what can be run."""

from __future__ import annotations

from argparse import Namespace

from prism_sweeps.commands.output import console, print_json, table
from prism_sweeps.config.compose import design_space, load_study


def run(arguments: Namespace) -> int:
    names = sorted(design_space(arguments.config_dir).files.studies())
    found = {name: load_study(name, arguments.config_dir).description for name in names}
    if arguments.json:
        print_json(found)
    else:
        console().print(table("studies", ("name", "about"), found.items()))
    return 0
