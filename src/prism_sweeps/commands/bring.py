"""prism import: a released Prismatic VLM into the prism format."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from prism_sweeps.commands.output import print_json


def run(arguments: Namespace) -> int:
    from prism_sweeps.interop.released import bring_in

    folder: Path = arguments.folder.absolute()
    to = arguments.to or folder.resolve().with_name(f"{folder.resolve().name}-prism")
    told = bring_in(folder, to, arguments.config_dir)
    if arguments.json:
        print_json({"imported": str(folder.absolute()), "folder": str(to.absolute()), **told})
    else:
        towers = "its own, from the checkpoint" if told["towers"] == "checkpoint" else "the stock ones"
        print(
            f"{told['model']} is in {to}: towers are {towers}; ask it: prism_sweeps.load('{to}').ask(IMAGE, QUESTION)"
        )
    return 0
