"""Plans handed to the double of SLURM, and what is in its queue because of them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ends import done, failed
from fake_slurm import FakeSlurm, Job

from prism_sweeps.launching.slurm.submit import Submitted, submit
from prism_sweeps.launching.standing import look
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

SMALL = "suite=easy-vqa"
TWO_STAGES = (SMALL, "stages=nano-two-stage", "tuning=full,lora")
"""An align stage for two finetunings, and the two conditions of a benchmark for each."""
Planned = Callable[..., Plan]


class Sweeps:
    """Submissions into one store, and what is in the queue because of them."""

    def __init__(self, slurm: FakeSlurm, store: Store) -> None:
        self.slurm, self.store = slurm, store
        self.said: list[str] = []

    def __call__(self, plan: Plan, **options: object) -> Submitted:
        return submit(plan, self.store, self.said.append, **options)  # type: ignore[arg-type]

    def live(self) -> dict[str, list[str]]:
        """Job of a plan -> SLURM ids under which it waits or runs, as the files of submitit's tasks tell."""
        found: dict[str, list[str]] = {}
        for slurm_id, batch in self.batches().items():
            names = batch["allocations"]
            if names:
                task = self.slurm.jobs[slurm_id]["task"] or 0
                for name in names[task]:
                    found.setdefault(name, []).append(slurm_id)
        return found

    def batches(self) -> dict[str, dict[str, Any]]:
        """SLURM id of a live job -> what was noted of its batch."""
        marked = {name: job["comment"].removeprefix("prism-") for name, job in self.slurm.live().items()}
        return {name: submissions.intended(self.store.root, batch) for name, batch in marked.items()}

    def reports(self) -> list[str]:
        return [name for name, batch in self.batches().items() if not batch["allocations"]]

    def each_once(self, names: Iterable[str], reports: int = 1) -> None:
        live = self.live()
        assert {name: len(ids) for name, ids in live.items()} == dict.fromkeys(names, 1)
        assert len(self.reports()) == reports
        for slurm_id in self.batches():
            assert list((self.store.root / "slurm").rglob(f"{slurm_id}_submitted.pkl")), (
                f"{slurm_id} has nothing to run"
            )

    def states(self, plan: Plan) -> Counter[str]:
        return Counter(each.state for each in look(plan, self.store).values())

    def of(self, plan: Plan, title: str) -> str:
        """SLURM's id of the newest allocation of the one job with a title that matches."""
        (name,) = (name for name, job in plan.jobs.items() if re.search(title, job.title))
        return submissions.read(self.store.root).newest()[name].slurm_id

    def end(self, plan: Plan, slurm_id: str) -> None:
        """A job ends well: its record says so, and SLURM."""
        for name, each in submissions.read(self.store.root).newest().items():
            if each.slurm_id == slurm_id and name in plan.jobs:
                done(self.store, plan.jobs[name])
        self.slurm.finish(slurm_id)


def train(plan: Plan) -> list[str]:
    return [name for name, job in plan.jobs.items() if job.kind == "train"]


def run_in_order(
    sweep: Sweeps, plan: Plan, seed: int = 1, how: Callable[[str], str] = lambda name: "COMPLETED"
) -> list[set[str]]:
    """Lets the double run everything, and checks that each job finds its parents done. What ran side by side."""
    store = sweep.store

    def end(slurm_id: str, job: Job) -> str:
        batch = submissions.intended(store.root, job["comment"].removeprefix("prism-"))
        states = ["COMPLETED"]
        for name in batch["allocations"][job["task"] or 0] if batch["allocations"] else ():
            for parent in plan.jobs[name].parents:
                assert store.job(parent).state()["status"] == "done", f"{plan.jobs[name].title} ran too early"
            states.append(how(name))
            done(store, plan.jobs[name]) if states[-1] == "COMPLETED" else failed(store, plan.jobs[name])
        return max(states, key=lambda state: state != "COMPLETED")

    return sweep.slurm.drain(random.Random(seed), end)
