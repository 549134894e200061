"""prism data prepare: data sets, and the small real weights, before anything needs them."""

from __future__ import annotations

from argparse import Namespace

from prism_sweeps.commands.opening import default_store, open_store
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.launching.local import datasets
from prism_sweeps.launching.machine import cores
from prism_sweeps.launching.progress import display_for
from prism_sweeps.planning.plan import make_plan


def run(arguments: Namespace) -> int:
    from prism_sweeps.data.prepare import ensure_dataset
    from prism_sweeps.data.small_weights import ensure_small_weights

    names, store = list(arguments.names), default_store(arguments)
    if arguments.study:
        plan = make_plan([arguments.study], config_dir=arguments.config_dir)
        names, store = [*names, *datasets(plan.jobs)], open_store(plan.store, arguments)
    if not names:
        raise ConfigError(
            "prepare what? name data sets (nano-benchmarks), or a study that needs them: --study nano/axes"
        )
    folders = []
    with display_for() as display:
        for name in dict.fromkeys(names):

            def progress(done: int, total: int, note: str, name: str = name) -> None:
                display.preparing(name, done, total, note)

            if name == "small":
                folders.append(ensure_small_weights(progress))
            else:
                folders.append(ensure_dataset(name, store.data, arguments.workers or cores(), progress))
    for folder in folders:
        print(folder)
    return 0
