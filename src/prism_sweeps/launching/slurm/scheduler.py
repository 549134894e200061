"""SLURM's commands, as data in and out: squeue, sacct, sinfo, scontrol, scancel. What they print is read here only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prism_sweeps.config.cluster import minutes
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.tracking.submissions import me

SECONDS = 60.0
"""After which a command is given up; SLURM's own timeouts are shorter."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Between tries while the controller does not answer."""
DOWN = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Connection timed out",
    "slurm_load_jobs error: Unexpected message",
    "Zero Bytes were transmitted",
    "backup controller",
    "Slurm temporarily unable to accept job",
    "Resource temporarily unavailable",
)
"""What SLURM says when it may answer later."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ENDED = frozenset(
    {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL"}
    | {"REVOKED"}
)
"""Every other state, also one that a newer SLURM may have, is of a job that has its allocation."""
HELD = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT"})
CHUNK = 400
"""Ids in one command line."""
OWN_VIEWS = ("SQUEUE_", "SACCT_", "SINFO_", "SBATCH_")
"""Begin the variables by which users set what these commands show them, or ask for."""
RANGES = re.compile(r"(\d+)_\[([\d,-]+)(%\d+)?\]")
"""Tasks of an array that share a row, for they never began."""


Answer = TypeVar("Answer")


class SchedulerDown(LaunchError):  # noqa: N818 - it is a state of affairs, not an error
    """SLURM does not answer; it may later."""


@dataclass(frozen=True)
class Queued:
    """A job as squeue shows it, ended ones included for some minutes."""

    slurm_id: str
    state: str
    reason: str
    nodes: str
    comment: str
    user: str

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def active(self) -> bool:
        return self.state not in WAITING | ENDED

    @property
    def held(self) -> bool:
        """Whether SLURM has put it aside for good, as it does when a node could not start it."""
        return self.state in HELD or "requeued held" in self.reason


@dataclass(frozen=True)
class Ended:
    """A job's last attempt as sacct shows it."""

    slurm_id: str
    state: str
    """COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL, OUT_OF_MEMORY, PREEMPTED, DEADLINE, BOOT_FAIL, ..."""
    exit_code: str
    nodes: str
    by: str = ""
    """Of a cancelled one: the user's number."""


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    limit: float | None
    """Minutes; None is unlimited."""
    default_time: float | None
    """Minutes of jobs that ask for none; None where that is the limit, or unlimited."""
    nodes: int
    gpus: int
    """Of the node that has most."""
    cpus: int
    usable: int
    """Nodes that are neither down nor drained just now."""


def available() -> bool:
    """Whether this machine has SLURM's commands."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel", "scontrol"))


def call(command: Sequence[str]) -> str:
    """What a command of SLURM prints. Raises SchedulerDown, or LaunchError with what it says is wrong."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VIEWS)}
    environment = usual | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)
    except FileNotFoundError:
        raise LaunchError(
            f"no {command[0]} on PATH: SLURM's commands are not here; run this on a login node of the cluster (often "
            "after `module load slurm`), or with cluster=local on this machine alone"
        ) from None
    except subprocess.TimeoutExpired:
        raise SchedulerDown(f"{command[0]} has not answered for {SECONDS:.0f} s") from None
    # squeue leaves out whom it cannot look up, and ends with 0. If that is oneself, names are not to be had just now.
    if done.returncode == 0 and f"Invalid user: {me()}" in done.stderr:
        raise SchedulerDown(f"{command[0]}: {' '.join(done.stderr.split())}")
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    kind = SchedulerDown if any(text in said for text in DOWN) else LaunchError
    raise kind(f"{command[0]}: {said}")


def patiently(ask: Callable[[], Answer], say: Callable[[str], None]) -> Answer:
    """`ask()`, again after a pause each time that the scheduler is down. Raises SchedulerDown when it stays so."""
    for pause in PAUSES:
        try:
            return ask()
        except SchedulerDown as error:
            say(f"{error}; trying again in {pause:.0f} s")
            time.sleep(pause)
    return ask()


def queue(users: Iterable[str]) -> dict[str, Queued]:
    """The jobs of these users by id, tasks of arrays one by one."""
    names = ",".join(sorted(set(users)))
    if not names:
        return {}
    # Comments end the line: they may hold anything.
    text = call(["squeue", "--noheader", "--array", "--states=all", f"--user={names}", "--format=%i|%T|%N|%u|%r|%k"])
    rows = (line.split("|", 5) for line in text.splitlines() if line.count("|") >= 5)
    return {row[0].strip(): Queued(row[0].strip(), row[1], row[4], row[2], row[5].strip(), row[3]) for row in rows}


def history(ids: Collection[str]) -> dict[str, Ended]:
    """The last attempt of each of these jobs; {} where the cluster keeps no accounts."""
    found: dict[str, Ended] = {}
    # Whole arrays: asked for one by one, tasks that share a row are not found.
    wanted = sorted({name.partition("_")[0] for name in ids})
    for start in range(0, len(wanted), CHUNK):
        columns = "--format=JobID%64,State%64,ExitCode,NodeList%256"
        command = ["sacct", "--noheader", "--parsable2", "--duplicates", columns]
        try:
            text = call([*command, f"--jobs={','.join(wanted[start : start + CHUNK])}"])
        except LaunchError:
            return found
        for line in text.splitlines():
            _note_attempt(found, *line.split("|"))
    return {name: found[name] for name in ids if name in found}


def _note_attempt(found: dict[str, Ended], name: str, state: str, exit_code: str, nodes: str) -> None:
    """Later rows of a job are later attempts; of its steps only an out-of-memory kill counts."""
    job, _, step = name.partition(".")
    word, _, rest = state.partition(" ")
    if not step:
        ended = {each: Ended(each, word, exit_code, nodes, by=rest.removeprefix("by ")) for each in tasks_in(job)}
        found.update(ended)
    elif word == "OUT_OF_MEMORY" and job in found and found[job].state == "FAILED":
        found[job] = Ended(job, word, exit_code, found[job].nodes)


def tasks_in(name: str) -> list[str]:
    """The ids that a row is of: 12_[0-2,5%2] are four."""
    match = RANGES.fullmatch(name)
    if not match:
        return [name]
    bounds = [part.partition("-") for part in match[2].split(",")]
    return [f"{match[1]}_{task}" for first, _, last in bounds for task in range(int(first), int(last or first) + 1)]


def cancel(ids: Collection[str]) -> None:
    """Takes these jobs out of the queue, and ends those that run; what is gone already is no error."""
    wanted = sorted(ids)
    for start in range(0, len(wanted), CHUNK):
        call(["scancel", "--quiet", *wanted[start : start + CHUNK]])


def partitions() -> dict[str, Partition]:
    """The partitions of this cluster."""
    found: dict[str, Partition] = {}
    text = call(["sinfo", "--all", "--noheader", "--format=%R|%P|%l|%L|%D|%G|%c|%F"])
    for line in text.splitlines():
        name, starred, limit, usual, nodes, gres, cpus, by_state = line.split("|")
        allocated, idle, *_ = (int(count) for count in by_state.split("/"))
        before = found.get(name)
        found[name] = Partition(
            name=name,
            default=starred.endswith("*"),
            limit=minutes(limit),
            default_time=minutes(limit if usual.lower() in ("n/a", "none") else usual),
            nodes=int(nodes) + (before.nodes if before else 0),
            gpus=max(gpus_in(gres), before.gpus if before else 0),
            cpus=max(int(cpus.rstrip("+")), before.cpus if before else 0),
            usable=allocated + idle + (before.usable if before else 0),
        )
    return found


def gpus_in(gres: str) -> int:
    """GPUs in a text such as `gpu:a100:4(S:0-1),gpu:h100:2,nvme:1`."""
    count = 0
    for part in gres.split(","):
        kind, *rest = part.partition("(")[0].split(":")
        if kind == "gpu" and rest and rest[-1].isdigit():
            count += int(rest[-1])
    return count


def largest_array() -> int:
    """How many tasks an array may have."""
    for line in call(["scontrol", "show", "config"]).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value) - 1)
    raise ConfigError("`scontrol show config` does not tell MaxArraySize; is this SLURM?")
