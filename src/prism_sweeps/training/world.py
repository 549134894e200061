"""The processes that train one model together: who they are, how they meet, and what they agree on.

A process alone needs none of this. `torchrun` and `srun` start several, which find each other by what these put into
the environment (https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables, `man srun`).
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Engine
from prism_sweeps.models.device import device_of

Result = TypeVar("Result")

PORTS = range(20_000, 32_768)
"""From which a SLURM job takes one by its number: below those that Linux hands out by itself, and seldom the same for
two jobs on a node."""
MEETING = timedelta(minutes=10)
"""How long a process waits for all to have been started."""
PATIENCE = timedelta(days=7)
"""How long a process waits for one that has something else to do, e.g. evaluates."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that work on one job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of its node, which is also the number of its GPU."""
    local_size: int = 1
    address: str = ""
    """Of the first process: host and port; empty for a process alone."""
    port: int = 0


def place_in(environment: Mapping[str, str]) -> Place:
    """What `torchrun` or `srun` says about this process. Raises ConfigError where it makes no sense.

    The shell of an allocation (`salloc`, a batch script without `srun`) is a process alone, however many it may start.
    """
    try:
        if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
            return place_of_torchrun(environment)
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return place_of_srun(environment)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the environment of a process among several is incomplete or malformed: {error!r}"
        ) from error
    return Place()


def place_of_torchrun(environment: Mapping[str, str]) -> Place:
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return Place(
        rank,
        size,
        local_rank=int(environment.get("LOCAL_RANK", rank)),
        local_size=int(environment.get("LOCAL_WORLD_SIZE", size)),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
    )


def place_of_srun(environment: Mapping[str, str]) -> Place:
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment["SLURM_TASKS_PER_NODE"]
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=tasks_per_node(per_node)[int(environment["SLURM_NODEID"])],
        address=first_host(environment["SLURM_STEP_NODELIST"]),
        port=PORTS[(job * 31 + step) % len(PORTS)],
    )


def tasks_per_node(text: str) -> list[int]:
    """SLURM's `4(x2),3` -> [4, 4, 3]."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


def first_host(nodes: str) -> str:
    """SLURM's `gpu[003-007,012],login` -> gpu003."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return name.partition(",")[0]
    numbers, _, tail = rest.partition("]")
    return name + numbers.replace("-", ",").partition(",")[0] + tail.partition(",")[0]


@dataclass(frozen=True)
class World:
    """The processes of one job, met. With one process every agreement is its own opinion."""

    place: Place
    device: torch.device
    control: dist.ProcessGroup | None = None
    """Over CPUs, so that an agreement does not wait for a GPU."""

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def first(self) -> bool:
        """Whether this is the process that keeps the record."""
        return self.place.rank == 0

    def highest(self, opinions: Sequence[int]) -> list[int]:
        """The largest of each over all processes."""
        if self.control is None:
            return list(opinions)
        agreed = torch.tensor(opinions)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.control)
        return [int(value) for value in agreed]

    def told_by_first(self, message: Any) -> Any:
        """What the first process says; the others' `message` is ignored."""
        return by_first(lambda: message, self.control)

    def all_say(self, message: Any) -> list[Any]:
        """Everyone's message, by rank."""
        return gathered(message, self.control)

    def fail_together(self, failure: Exception | None) -> None:
        """Raises in every process what has gone wrong in any, the first one's; nothing where nothing has."""
        if first := next((error for error in self.all_say(failure) if error is not None), None):
            raise first

    def sum_over(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place, on the device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


def rank_in(group: dist.ProcessGroup | None) -> int:
    return 0 if group is None else dist.get_rank(group)


def gathered(message: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """What every process of `group` says, by rank; None is a process alone."""
    if group is None:
        return [message]
    held: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(held, message, group=group)
    return held


def by_first(action: Callable[[], Result], group: dist.ProcessGroup | None) -> Result:
    """What `action` returns or raises in the first process of `group`, in every one."""
    if group is None:
        return action()
    held: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        try:
            held[0] = action()
        except Exception as error:  # it is raised below, everywhere
            held[1] = error
    dist.broadcast_object_list(held, group_src=0, group=group)
    result, error = held
    if error is not None:
        raise error
    return cast("Result", result)


ALONE = Place()


@contextmanager
def joined(place: Place, engine: Engine) -> Iterator[World]:
    """The world of this process while the block runs. Several processes meet first; one alone needs no network.

    Raises ConfigError when there are fewer GPUs on a node than its processes.
    """
    device = own_device(engine, place)
    if place.size == 1:
        try:
            yield World(place, device)
        finally:
            if dist.is_initialized():  # for itself alone, to have its weights sharded
                dist.destroy_process_group()
        return
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=meeting_place(place),
        rank=place.rank,
        world_size=place.size,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        world = World(place, device, dist.new_group(backend="gloo", timeout=PATIENCE))
        check_own_gpus(world)
        yield world
    finally:
        dist.destroy_process_group()


def check_own_gpus(world: World) -> None:
    """Raises ConfigError, in all processes, where two of them have the same GPU."""
    if world.device.type != "cuda":
        return
    mine = (socket.gethostname(), str(torch.cuda.get_device_properties(world.device).uuid))
    shared = {gpu for gpu, count in Counter(world.all_say(mine)).items() if count > 1}
    if shared:
        host, gpu = min(shared)
        raise ConfigError(
            f"several processes have GPU {gpu} of {host}; start as many a node as it has GPUs, with engine.device=cuda"
        )


def meeting_place(place: Place) -> dist.Store:
    """Where the processes tell each other their addresses: kept by the first one, or by torchrun.

    Torchrun's is not emptied when it starts processes again, so each attempt has its own shelf in it.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host = place.rank == 0 and not kept
    store = dist.TCPStore(place.address, place.port, place.size, host, timeout=MEETING, multi_tenant=True)
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def own_device(engine: Engine, place: Place) -> torch.device:
    """The device that the engine names; of several processes on a node each has a GPU of its own."""
    device = device_of(engine)
    if device.type != "cuda":
        return device
    if device.index is None:
        found = torch.cuda.device_count()
        # A launcher may show each process its own GPU only.
        number = 0 if place.local_size == 1 or found == 1 else place.local_rank
        if number >= found:
            raise ConfigError(
                f"process {place.rank} is number {number} of {place.local_size} on its node, which has {found} GPUs; "
                f"start at most {found} processes a node"
            )
        device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device
