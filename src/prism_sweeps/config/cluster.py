"""What a job asks a cluster for: the general request with the overrides that fit this job put in. And their checks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import CLUSTERS, Cluster, Request
from prism_sweeps.config.specs import BaselineSpec, Job, StageSpec

FIELDS = {each.name: each for each in fields(Request)}
RESERVED = {
    "array": "jobs of one shape become arrays by themselves",
    "chdir": "the store's paths are absolute",
    "clusters": "the queue and the accounts of one cluster are read",
    "comment": "sweeps find their jobs again by it",
    "dependency": "a plan's dependencies are set by the sweep",
    "error": "logs go into the store",
    "job-name": "the study's name is the job's",
    "ntasks": "say nodes and tasks_per_node",
    "open-mode": "logs are appended to",
    "output": "logs go into the store",
    "parsable": "what sbatch says is read",
    "quiet": "what sbatch says is read",
    "requeue": "interrupted jobs go on by themselves",
    "no-requeue": "interrupted jobs go on by themselves",
    "signal": "say notice_seconds",
    "test-only": "nothing would be submitted",
    "wait": "a sweep submits and returns",
}
"""Options of sbatch that are not the user's -> why."""
OWN = {"cpus-per-task": "cpus_per_task", "mem": "memory", "ntasks-per-node": "tasks_per_node"} | {
    name.replace("_", "-"): name for name in FIELDS if name not in ("options", "jobs_per_allocation", "memory")
}
"""Options of sbatch that have a field -> its name."""
DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")
CLOCK = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))?")
JOINT = "_and_"
"""Between the names of an override that holds for jobs that go by all of them."""
UNLIMITED = ("unlimited", "infinite")


def minutes(text: str) -> float | None:
    """A time limit as sbatch has it (minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S); None is unlimited, as 0 is to SLURM.

    Raises ConfigError.
    """
    if text.lower() in UNLIMITED:
        return None
    if found := DAYS.fullmatch(text):
        days, hours, mins, secs = (int(part or 0) for part in found.groups())
        return days * 1440 + hours * 60 + mins + secs / 60 or None
    if found := CLOCK.fullmatch(text):
        first, second, third = (None if part is None else int(part) for part in found.groups())
        assert first is not None
        return (first + (second or 0) / 60 if third is None else first * 60 + (second or 0) + third / 60) or None
    raise ConfigError(f"'{text}' is no time; write minutes, H:M:S or D-H:M:S")


def names_of(job: Job) -> set[str]:
    """What overrides may call a job by: its kind, its stage or benchmark, its language model and its backbone."""
    own = job.spec.name if isinstance(job.spec, StageSpec) else job.spec.benchmark.name
    if isinstance(job.spec, BaselineSpec):
        return {job.kind, own}
    return {job.kind, own, job.spec.model.llm.name, job.spec.model.backbone.name}


def request_for(cluster: Cluster, names: Collection[str]) -> Request:
    """What jobs that go by all of these names ask for."""
    request = Request(**{name: getattr(cluster, name) for name in FIELDS})
    for key, changes in cluster.overrides.items():
        if set(key.split(JOINT)) <= set(names):
            request = replace(request, **_typed(key, changes, request))
    return request


def tasks_per_node(request: Request) -> int:
    """Processes a node that work on one job together."""
    return request.tasks_per_node or max(1, request.gpus_per_node)


def _typed(key: str, changes: Mapping[str, Any], before: Request) -> dict[str, Any]:
    """`changes` with the types of the fields they are for; options are added to those there are."""
    found: dict[str, Any] = {}
    for name, value in changes.items():
        where = f"cluster.overrides.{key}.{name}"
        if name not in FIELDS:
            raise ConfigError(f"{where}: no such field; {nearest(name, FIELDS)}")
        if name == "options":
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where} is '{value}'; it should be options of sbatch and their values")
            found[name] = {**before.options, **value}
        elif "int" in str(FIELDS[name].type):
            found[name] = _whole(value, where, optional="None" in str(FIELDS[name].type))
        else:
            found[name] = None if value is None else str(value)
    return found


def _whole(value: Any, where: str, optional: bool) -> int | None:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where} is '{value}'; it should be a whole number")
    return value


def check_cluster(cluster: Cluster, where: str, known: Iterable[str]) -> None:
    """Raise ConfigError for what cannot be meant. `known` are the names that overrides may use."""
    if cluster.kind not in CLUSTERS:
        raise ConfigError(f"{where}: kind is '{cluster.kind}'; {nearest(cluster.kind, CLUSTERS)}")
    if cluster.max_parallel is not None and cluster.max_parallel < 1:
        raise ConfigError(f"{where}: max_parallel is {cluster.max_parallel}; it must be at least 1, or null")
    if cluster.notice_seconds < 10:
        raise ConfigError(f"{where}: notice_seconds is {cluster.notice_seconds}; a checkpoint needs at least 10")
    valid = {"train", "evaluate", "report", *known}
    for key in cluster.overrides:
        for name in key.split(JOINT):
            if name not in valid:
                raise ConfigError(f"{where}: overrides.{key}: no job is called '{name}'; {nearest(name, valid)}")
    requests = {where: request_for(cluster, ())}
    requests |= {f"{where}: overrides.{key}": request_for(cluster, key.split(JOINT)) for key in cluster.overrides}
    for place, request in requests.items():
        check_request(request, place)
        check_notice(request, cluster.notice_seconds, place)


def check_notice(request: Request, notice_seconds: int, where: str) -> None:
    """Raise ConfigError where a job would be stopped before it had half of its time."""
    limit = minutes(request.time) if request.time is not None else None
    if limit is not None and 2 * notice_seconds > 60 * limit:
        raise ConfigError(
            f"{where}: notice_seconds is {notice_seconds}, more than half of the time limit {request.time}: a job "
            "would hardly begin before it has to stop; raise time, or lower notice_seconds"
        )


def check_request(request: Request, where: str) -> None:
    """Raise ConfigError for a request that no cluster could grant."""
    for name in ("nodes", "tasks_per_node", "cpus_per_task", "jobs_per_allocation"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ConfigError(f"{where}: {name} is {value}; it must be at least 1")
    if request.gpus_per_node < 0:
        raise ConfigError(f"{where}: gpus_per_node is {request.gpus_per_node}; it cannot be negative")
    if request.time is not None:
        try:
            minutes(request.time)
        except ConfigError as error:
            raise ConfigError(f"{where}: time: {error}") from error
    if request.jobs_per_allocation > 1 and request.nodes > 1:
        raise ConfigError(
            f"{where}: {request.jobs_per_allocation} jobs share an allocation of {request.nodes} nodes; jobs that "
            "share one run on a single node, so nodes must be 1, or jobs_per_allocation 1"
        )
    for option in request.options:
        bare = option.replace("_", "-")
        if reason := RESERVED.get(bare):
            raise ConfigError(f"{where}: options.{option} is not yours to set: {reason}")
        if bare in OWN:
            raise ConfigError(f"{where}: options.{option} has a field of its own: cluster.{OWN[bare]}")
