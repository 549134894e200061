"""The jobs of a plan as what is asked of SLURM: allocations, and batches of allocations that one `sbatch` submits.

A training job has an allocation of its own. The evaluations of one model share one, in which it is loaded once. With
`jobs_per_allocation`, several of either run side by side in one. Allocations of one shape that wait for the same jobs
are an array; so are those that wait for the tasks of another array one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from prism_sweeps.config.cluster import names_of, request_for
from prism_sweeps.config.schema import Cluster, Request
from prism_sweeps.config.specs import Job


@dataclass
class Allocation:
    """Jobs that run in one allocation, one after another or `slots` at a time."""

    jobs: tuple[str, ...]
    request: Request
    slots: int = 1
    needs: tuple[str, ...] = ()
    """Jobs outside of it that must be done before it starts."""


@dataclass
class Batch:
    """Allocations that are submitted together: one, or the tasks of an array. All of an array need the same jobs, or
    each needs the task of the same number in an earlier array."""

    allocations: list[Allocation]
    task_by_task: int | None = None
    """Number of that earlier batch."""
    lane: int | None = None
    """Batches of a lane run one after another."""

    @property
    def request(self) -> Request:
        return self.allocations[0].request


def allocations_of(jobs: Mapping[str, Job], cluster: Cluster) -> list[Allocation]:
    """Allocations for these jobs, each after those that it needs. Parents that are not among `jobs` count as needs."""
    bundles = _bundles(jobs, cluster)
    levels = _levels(bundles)
    alike: dict[tuple[int, str], list[Allocation]] = {}
    for bundle in bundles:
        alike.setdefault((levels[bundle.jobs[0]], shape(bundle.request)), []).append(bundle)
    ordered = sorted(alike.items(), key=lambda entry: entry[0][0])
    return [packed for _, group in ordered for packed in _packed(group)]


def shape(request: Request) -> str:
    """The same text for requests that ask for the same."""
    return json.dumps(asdict(request), sort_keys=True)


def _bundles(jobs: Mapping[str, Job], cluster: Cluster) -> list[Allocation]:
    """One for each training job, and for the evaluations of each model that ask for the same."""
    bundles: dict[tuple[str, ...], Allocation] = {}
    requests: dict[frozenset[str], tuple[Request, str]] = {}
    for name, job in jobs.items():
        called = frozenset(names_of(job))
        if called not in requests:
            request = request_for(cluster, called)
            requests[called] = (request, shape(request))
        request, shaped = requests[called]
        key = (name,) if job.kind == "train" else (*job.parents, shaped)
        if key in bundles:
            bundles[key].jobs += (name,)
        else:
            bundles[key] = Allocation((name,), request, needs=tuple(job.parents))
    return list(bundles.values())


def _levels(bundles: Sequence[Allocation]) -> dict[str, int]:
    """Job -> how many allocations come one after another before its own."""
    owner = {name: bundle for bundle in bundles for name in bundle.jobs}
    levels: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in levels:
            needs = [need for need in owner[name].needs if need in owner]
            levels[name] = 1 + max((level(need) for need in needs), default=-1)
        return levels[name]

    for name in owner:
        level(name)
    return levels


def _packed(group: Sequence[Allocation]) -> list[Allocation]:
    """Bundles of one level and shape, as many to an allocation as its request says."""
    size = group[0].request.jobs_per_allocation
    if size == 1:
        return list(group)
    together = [group[start : start + size] for start in range(0, len(group), size)]
    return [
        Allocation(
            jobs=tuple(name for bundle in bundles for name in bundle.jobs),
            request=bundles[0].request,
            slots=len(bundles),
            needs=tuple(dict.fromkeys(need for bundle in bundles for need in bundle.needs)),
        )
        for bundles in together
    ]


def batches_of(allocations: Sequence[Allocation], largest: int) -> list[Batch]:
    """Arrays of at most `largest` tasks, as few as can be, each after those that it needs."""
    batches: list[Batch] = []
    place: dict[str, tuple[int, int]] = {}
    """Job -> its batch and its number there."""
    for group in _groups(allocations):
        for batch in _arrays(group, place, batches, largest):
            for number, allocation in enumerate(batch.allocations):
                place.update(dict.fromkeys(allocation.jobs, (len(batches), number)))
            batches.append(batch)
    return batches


def _groups(allocations: Sequence[Allocation]) -> list[list[Allocation]]:
    """Neighbours of one shape and level: none of a group needs another of it."""
    groups: list[list[Allocation]] = []
    held: set[str] = set()
    for allocation in allocations:
        same = groups and shape(groups[-1][0].request) == shape(allocation.request)
        if not same or held & set(allocation.needs):
            groups.append([])
            held = set()
        groups[-1].append(allocation)
        held |= set(allocation.jobs)
    return groups


def _arrays(
    group: Sequence[Allocation], place: Mapping[str, tuple[int, int]], before: Sequence[Batch], largest: int
) -> list[Batch]:
    """The allocations of one group as batches: task by task where that fits, else by what they need."""
    one_by_one: dict[int, dict[int, Allocation]] = {}
    for allocation in group:
        where = {place[need] for need in allocation.needs if need in place}
        elsewhere = any(need not in place for need in allocation.needs)
        batch, number = next(iter(where)) if len(where) == 1 and not elsewhere else (-1, -1)
        if batch >= 0:
            one_by_one.setdefault(batch, {}).setdefault(number, allocation)
    arrays = []
    for batch, tasks in one_by_one.items():
        parents = before[batch].allocations
        if 1 < len(tasks) == len(parents) and all(parent.slots == 1 for parent in parents):
            arrays.append(Batch([tasks[number] for number in range(len(parents))], task_by_task=batch))
    placed = {name for array in arrays for each in array.allocations for name in each.jobs}
    rest: dict[tuple[str, ...], list[Allocation]] = {}
    for allocation in group:
        if placed.isdisjoint(allocation.jobs):
            rest.setdefault(allocation.needs, []).append(allocation)
    for same in rest.values():
        arrays += [Batch(same[start : start + largest]) for start in range(0, len(same), largest)]
    return arrays


def lanes_of(allocations: Sequence[Allocation], lanes: int, weights: Mapping[str, float]) -> list[Batch]:
    """A batch for each allocation, dealt to so many lanes that each has about as much work, of which `weights` tells
    (job -> any unit; 1 where it does not)."""
    work = [0.0] * lanes
    batches = []
    for allocation in allocations:
        lane = min(range(lanes), key=work.__getitem__)
        work[lane] += sum(weights.get(name, 1.0) for name in allocation.jobs)
        batches.append(Batch([allocation], lane=lane))
    return batches
