"""A double of SLURM: `sbatch squeue sacct scancel scontrol sinfo srun` on PATH, and a hand that moves its world.

It prints what SLURM 22.05 prints for what the launcher asks, and knows no more. The texts were taken from a real one,
which `tests/slurm/test_contract.py` reads with the same functions.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fake_slurm_commands import COMMANDS, ENDED, World, requeue, scancel

DOWN = "Unable to contact slurm controller (connect failure)"
NEW = {
    "next": 1,
    "jobs": {},
    "faults": [],
    "calls": [],
    "accounts": True,
    "users": ["root"],
    "partitions": ["main|main*|infinite|1:00:00|4|gpu:8|16|1/3/0/4", "short|short|10:00|10:00|4|gpu:8|16|1/3/0/4"],
    "largest": 2001,
}

Job = dict[str, Any]


class FakeSlurm:
    """The world as a test sees and moves it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        (folder / "state").write_bytes(marshal.dumps(NEW))
        for name in COMMANDS:
            (self.bin / name).write_text(
                f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                f"from fake_slurm_commands import main\nsys.exit(main({name!r}, {str(folder)!r}, sys.argv[1:]))\n"
            )
            (self.bin / name).chmod(0o755)

    @contextlib.contextmanager
    def world(self) -> Iterator[World]:
        world = World(str(self.folder))
        try:
            yield world
            world.settle()
        finally:
            world.close()

    def set(self, **changes: Any) -> None:
        with self.world() as world:
            world.state |= changes

    @property
    def jobs(self) -> dict[str, Job]:
        with self.world() as world:
            return world.jobs

    def live(self) -> dict[str, Job]:
        """What SLURM has to run or runs."""
        return {name: job for name, job in self.jobs.items() if job["state"] not in ENDED}

    def calls(self, command: str) -> list[list[str]]:
        """Arguments of every call of one command; those of sbatch that only ask are left out."""
        with self.world() as world:
            return [rest for name, *rest in world.state["calls"] if name == command and "--test-only" not in rest]

    # ---- what SLURM does

    def start(self, name: str, node: str = "n1") -> None:
        with self.world() as world:
            assert name in world.startable(), (name, world.jobs[name]["state"], world.jobs[name]["reason"])
            world.jobs[name] |= {"state": "RUNNING", "nodes": node, "reason": "None"}

    def finish(self, name: str, state: str = "COMPLETED", code: str = "0:0", step: str | None = None) -> None:
        """Ends a job, which is started before if it waits; `step`: the state of its first step, where it is another."""
        if self.jobs[name]["state"] == "PENDING":
            self.start(name)
        with self.world() as world:
            job = world.jobs[name]
            job |= {"state": state, "exit": code, "steps": [["batch", state, code], ["0", step or state, code]]}
            job["reason"] = "NonZeroExitCode" if state == "FAILED" else "TimeLimit" if state == "TIMEOUT" else "None"

    def cancel(self, *names: str) -> None:
        with self.world() as world:
            scancel(world, list(names))

    def again(self, name: str, state: str = "REQUEUED") -> None:
        """Back into the queue under the same id: asked for, preempted, or because its node failed."""
        with self.world() as world:
            requeue(world.jobs[name], state)

    def preempt(self, name: str) -> None:
        self.again(name, "PREEMPTED")

    def node_fail(self, name: str) -> None:
        self.again(name, "NODE_FAIL")

    def purge(self) -> None:
        """squeue forgets what has ended (MinJobAge)."""
        with self.world() as world:
            for job in world.jobs.values():
                job["purged"] = job["state"] in ENDED

    def fault(self, text: str, command: str | None, times: int, prefix: bool = True, after: bool = False) -> None:
        with self.world() as world:
            fault = {"text": text, "command": command, "times": times, "prefix": prefix, "after": after}
            world.state["faults"].append(fault)

    def down(self, times: int = 1, command: str | None = None) -> None:
        """The controller does not answer so often."""
        self.fault(DOWN, command, times)

    def accept_then_time_out(self) -> None:
        """The next sbatch takes the job, but says that nobody answered."""
        self.fault("Socket timed out on send/recv operation", "sbatch", 1, after=True)

    def refuse(self, text: str) -> None:
        self.fault(text, "sbatch", 1, prefix=False)

    def drain(
        self, choose: random.Random, on: Callable[[str, Job], str] = lambda name, job: "COMPLETED"
    ) -> list[set[str]]:
        """Starts all that can start and ends one of them, until nothing is left; what ran side by side each time.
        `on` tells how a job ends."""
        side_by_side = []
        while True:
            with self.world() as world:
                while ready := world.startable():
                    world.jobs[ready[0]] |= {"state": "RUNNING", "nodes": "n1"}
                running = [name for name, job in world.jobs.items() if job["state"] == "RUNNING"]
                side_by_side.append(set(running))
                if not running:
                    waiting = [name for name, job in world.jobs.items() if job["state"] == "PENDING"]
                    assert not waiting, f"waits for ever: {waiting}"
                    return side_by_side
                name = choose.choice(running)
                world.jobs[name]["state"] = on(name, world.jobs[name])

    def run(self, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the batch script of a job for real, on this machine, and notes how it ends unless it is queued again."""
        self.start(name)
        job = self.jobs[name]
        path = self.folder / f"script-{name}.sh"
        path.write_text(job["text"])
        own = {"SLURM_JOB_ID": job["base"], "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
        if job["task"] is not None:
            own |= {"SLURM_ARRAY_JOB_ID": job["base"], "SLURM_ARRAY_TASK_ID": str(job["task"])}
        done = subprocess.run(
            ["bash", path], capture_output=True, text=True, env=os.environ | own | environment, timeout=120, check=False
        )
        if self.jobs[name]["state"] == "RUNNING":
            self.finish(name, "FAILED" if done.returncode else "COMPLETED", f"{done.returncode}:0")
        return done
