"""prism ask: one question to one trained cell."""

from __future__ import annotations

from argparse import Namespace

from prism_sweeps.commands.opening import default_store, one_cell, open_store, read_plan
from prism_sweeps.commands.output import label, print_json
from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.specs import Job
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking.records import Store


def run(arguments: Namespace) -> int:
    if arguments.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {arguments.max_new_tokens}: an answer has one token at least")
    if not arguments.image.is_file():
        raise DataError(f"{arguments.image}: no such image file")
    plan, cell, store = chosen(arguments)
    job = trained(plan, cell, store)
    from prism_sweeps.evaluation.asking import ask
    from prism_sweeps.evaluation.loading import load_model

    model = load_model(job.spec.model, store.job(job.fingerprint).weights, job.spec.precision, plan.engine)
    answer = ask(model, arguments.image, arguments.question, arguments.max_new_tokens)
    if arguments.json:
        asked = {"image": str(arguments.image), "question": arguments.question}
        print_json({"cell": cell.id, "study": plan.study, **asked, "answer": answer})
    else:
        print(answer)
    return 0


def trained(plan: Plan, cell: PlannedCell, store: Store) -> Job:
    """The job of the cell's last stage. Raises ConfigError when it is not done."""
    if not cell.train:
        raise ConfigError(f"cell {cell.id} is {label(cell)}, a finished model of others: it can be scored, no more")
    job = plan.jobs[cell.train[-1]]
    state = store.job(job.fingerprint).state()["status"]
    if state != "done":
        raise ConfigError(f"cell {cell.id} ({label(cell)}) is not trained in {store.root}: its last stage is {state}")
    return job


def chosen(arguments: Namespace) -> tuple[Plan, PlannedCell, Store]:
    """The cell that --cell means: by its id in the recorded studies, or composed from overrides."""
    if any("=" in text for text in arguments.cell):
        plan, cell = one_cell(Namespace(**vars(arguments) | {"overrides": arguments.cell}))
        return plan, cell, open_store(plan.store, arguments)
    store = default_store(arguments)
    names = [arguments.study] if arguments.study else store.studies()
    wanted, known = " ".join(arguments.cell), []
    for name in names:
        plan = read_plan(store, name)
        known += [cell.id for cell in plan.cells]
        for cell in plan.cells:
            if len(wanted) >= 4 and cell.id.startswith(wanted):
                return plan, cell, store
    raise ConfigError(f"no cell '{wanted}' in {', '.join(names) or store.root}; {nearest(wanted, set(known))}")
