"""What can be known to go wrong before anything is submitted: each error names the setting and what would be right."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from prism_sweeps.config.cluster import minutes, tasks_per_node
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import Request
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm.scheduler import Partition
from prism_sweeps.launching.slurm.script import parameters
from prism_sweeps.planning.allocations import shape


def checked(requests: Collection[Request]) -> dict[str, Request]:
    """By `shape`, each request with the time limit that will hold. Raises ConfigError for one this cluster refuses."""
    partitions = scheduler.partitions()
    found = {}
    for request in {shape(each): each for each in requests}.values():
        chosen = partitions_of(request, partitions)
        check_size(request, chosen)
        resolved = replace(request, time=request.time or default_time(chosen))
        check_by_slurm(resolved, enough=any(each.usable >= request.nodes for each in chosen))
        found[shape(request)] = resolved
    return found


def partitions_of(request: Request, partitions: Mapping[str, Partition]) -> list[Partition]:
    """The partitions that a request names, or the default one."""
    if request.partition is None:
        default = [each for each in partitions.values() if each.default]
        if not default:
            raise ConfigError(f"this cluster has no default partition; set cluster.partition: {', '.join(partitions)}")
        return default
    names = request.partition.split(",")
    for name in names:
        if name not in partitions:
            raise ConfigError(f"cluster.partition: this cluster has no partition '{name}'; {nearest(name, partitions)}")
    return [partitions[name] for name in names]


def check_size(request: Request, chosen: list[Partition]) -> None:
    """Raises ConfigError for a request that is larger than every one of its partitions."""
    where = " or ".join(each.name for each in chosen)
    asked = minutes(request.time) if request.time is not None else None
    unlimited = request.time is not None and asked is None
    limit = longest(chosen)
    if limit is not None and (unlimited or (asked is not None and asked > limit)):
        raise ConfigError(
            f"cluster.time is {request.time}, but partition {where} allows at most {as_time(limit)}; ask for that: a "
            "job that needs longer goes on in its next allocation"
        )
    for name in ("nodes", "gpus_per_node"):
        available = max(each.nodes if name == "nodes" else each.gpus for each in chosen)
        if getattr(request, name) > available:
            raise ConfigError(f"cluster.{name} is {getattr(request, name)}, but partition {where} has {available}")
    cpus = (request.cpus_per_task or 1) * (1 if request.jobs_per_allocation > 1 else tasks_per_node(request))
    if cpus > max(each.cpus for each in chosen):
        raise ConfigError(
            f"{cpus} CPUs a node (cluster.cpus_per_task x tasks), but the nodes of partition {where} have at most "
            f"{max(each.cpus for each in chosen)}"
        )


def longest(chosen: list[Partition]) -> float | None:
    """The longest limit of some partitions, in minutes; None where one has none."""
    limits = [each.limit for each in chosen]
    return None if None in limits else max(limit for limit in limits if limit is not None)


def default_time(chosen: list[Partition]) -> str | None:
    """The limit of jobs that ask for none, where the cluster sets one."""
    defaults = [each.default_time for each in chosen if each.default_time is not None]
    return as_time(min(defaults)) if defaults else None


def as_time(mins: float) -> str:
    """Minutes as sbatch has them: 1-02:30:00."""
    seconds = round(mins * 60)
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def check_by_slurm(request: Request, enough: bool) -> None:
    """Asks sbatch whether it would take the request: accounts, QOS, options and much else only it knows.

    Unless there are `enough` nodes that are neither down nor drained, its answer is about these; sbatch itself would
    take the job, which then waits for them.
    """
    told = parameters(request, packed=request.jobs_per_allocation > 1)
    flags = {key: value for key, value in told.items() if key != "additional_parameters"}
    flags |= told["additional_parameters"]
    command = ["sbatch", "--test-only", "--wrap=true"]
    for key, value in flags.items():
        if value is not None:
            command.append(f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}"))
    try:
        scheduler.call(command)
    except scheduler.SchedulerDown:
        raise
    except LaunchError as error:
        if not enough and "node configuration is not available" in str(error):
            return
        raise ConfigError(f"SLURM refuses what cluster.* asks for: {cleaned(str(error))}") from None


def cleaned(said: str) -> str:
    """What sbatch says without its hints at itself."""
    return said.replace("sbatch: ", "").replace("error: ", "").partition(" Try ")[0]
