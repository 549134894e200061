"""Which job next: dependencies, longest chain first, and evaluations where their model is already loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prism_sweeps.config.specs import Job
from prism_sweeps.planning.outline import Node

Planned = TypeVar("Planned", bound=Node)

TRAIN_WEIGHT, EVALUATE_WEIGHT = 20.0, 1.0
"""Relative durations, for ordering jobs when nothing better is known."""


@dataclass
class Schedule:
    """The jobs of a plan and where each stands: waiting | running | busy | done | failed | skipped.

    `busy` is a job that another process works on. Only the outcome is kept here; records are the truth.
    """

    jobs: Mapping[str, Job]
    workers: int
    retries: int
    status: dict[str, str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    weights: Mapping[str, float] = field(default_factory=dict)
    """Fingerprint -> expected duration, in any unit."""

    def __post_init__(self) -> None:
        self.status = {fingerprint: self.status.get(fingerprint, "waiting") for fingerprint in self.jobs}
        self.weights = {
            fingerprint: self.weights.get(fingerprint) or weight(job) for fingerprint, job in self.jobs.items()
        }
        self._tails = tails(self.jobs, self.weights)

    def next_for(self, loaded: str | None) -> Job | None:
        """The job that a free worker, with the weights of job `loaded` in its memory, should take; None to wait.

        A training job goes first when its chain is long against the work that is left for each worker; otherwise
        evaluations of the loaded model come before it, so that scores appear early and no model is loaded twice.
        """
        ready = self.ready()
        training = [job for job in ready if job.kind == "train"]
        urgent = max(training, key=lambda job: self._tails[job.fingerprint], default=None)
        here = next((job for job in ready if job.kind == "evaluate" and loaded in job.parents), None)
        if urgent and (here is None or self._tails[urgent.fingerprint] > self.work_left() / self.workers / 2):
            return urgent
        if here:
            return here
        waiting = Counter(parent for job in ready for parent in job.parents)
        return max(ready, key=lambda job: max((waiting[parent] for parent in job.parents), default=0), default=None)

    def ready(self) -> list[Job]:
        """Waiting jobs whose parents are done, in the plan's order."""
        return [
            job
            for job in self.jobs.values()
            if self.status[job.fingerprint] == "waiting"
            and all(self.status.get(parent, "done") == "done" for parent in job.parents)
        ]

    def work_left(self) -> float:
        """Weight of everything not ended."""
        return sum(
            self.weights[name] for name, status in self.status.items() if status in ("waiting", "running", "busy")
        )

    def failed(self, fingerprint: str, final: bool) -> bool:
        """Notes a failed attempt; True when the job will be tried again, else it and what depends on it are over."""
        self.failures[fingerprint] += 1
        if not final and self.failures[fingerprint] <= self.retries:
            self.status[fingerprint] = "waiting"
            return True
        self.status[fingerprint] = "failed"
        for name in descendants(self.jobs, [fingerprint]):
            self.status[name] = "skipped"
        return False

    def names(self, *statuses: str) -> list[str]:
        """Fingerprints of the jobs that stand so."""
        return [name for name, status in self.status.items() if status in statuses]

    def over(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        return not self.names("waiting", "running", "busy")


def weight(job: Job) -> float:
    return TRAIN_WEIGHT if job.kind == "train" else EVALUATE_WEIGHT


def in_order(jobs: Mapping[str, Planned]) -> list[Planned]:
    """The jobs, each after its parents; parents outside of `jobs` count as done."""
    placed: dict[str, Planned] = {}

    def place(job: Planned) -> None:
        for parent in job.parents:
            if parent in jobs and parent not in placed:
                place(jobs[parent])
        placed[job.fingerprint] = job

    for job in jobs.values():
        if job.fingerprint not in placed:
            place(job)
    return list(placed.values())


def descendants(jobs: Mapping[str, Planned], names: Collection[str]) -> list[str]:
    """All of these jobs that need one of `names`, directly or not, each after its parents."""
    found = dict.fromkeys(names)
    for job in in_order(jobs):
        if not found.keys().isdisjoint(job.parents):
            found[job.fingerprint] = None
    return [name for name in found if name not in set(names)]


def tails(jobs: Mapping[str, Job], weights: Mapping[str, float]) -> dict[str, float]:
    """Fingerprint -> weight of the heaviest chain of jobs that begins with it."""
    longest = dict(weights)
    for job in reversed(in_order(jobs)):
        for parent in job.parents:
            if parent in longest:
                longest[parent] = max(longest[parent], weights[parent] + longest[job.fingerprint])
    return longest
