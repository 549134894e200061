"""One throw-away cluster as tests use it: launch/slurm/cluster.sh and SLURM's commands."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CLUSTER = Path(__file__).parents[2] / "launch" / "slurm" / "cluster.sh"


@dataclass(frozen=True)
class Lab:
    """The cluster in `folder`, whose nodes are called `prefix` and 1 to 4."""

    folder: Path
    prefix: str = "n"

    @property
    def slurm_conf(self) -> str:
        """What SLURM_CONF has to be for this cluster."""
        return str(self.folder / "slurm.conf")

    def try_cluster(self, *words: str) -> subprocess.CompletedProcess:
        """What `cluster.sh words...` says and returns."""
        here = {"PRISM_SLURM_LAB": str(self.folder), "PRISM_SLURM_PREFIX": self.prefix}
        return subprocess.run([CLUSTER, *words], env=os.environ | here, capture_output=True, text=True, check=False)

    def cluster(self, *words: str) -> str:
        """What `cluster.sh words...` says; RuntimeError with all of it if it fails."""
        done = self.try_cluster(*words)
        if done.returncode:
            raise RuntimeError(
                f"cluster.sh {' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def slurm(self, *words: str) -> str:
        """What a command of SLURM's says on this cluster."""
        environment = os.environ | {"SLURM_CONF": self.slurm_conf}
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    def submit(self, script: str, *options: str, output: Path | str = "/dev/null") -> str:
        """Submits a shell script; the job's id."""
        return self.slurm("sbatch", "--parsable", "--output", str(output), *options, "--wrap", script)

    def state(self, job: str) -> str:
        """The state of a job's present attempt, by the controller: PENDING, RUNNING, COMPLETED, ..."""
        return self.slurm("squeue", "--noheader", "--states", "all", "--jobs", job, "--format", "%T")

    def attempts(self, job: str) -> list[str]:
        """The states of all attempts of a job, oldest first, by the accounts."""
        rows = self.slurm("sacct", "-n", "-P", "--allocations", "--duplicates", "--jobs", job, "--format", "State")
        return [row.split()[0] for row in rows.splitlines()]

    def wait_until(self, true: Callable[[], object], seconds: float = 90) -> None:
        """Asks until the answer is true; AssertionError, with the queue, after too long."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not within {seconds} s\n{self.slurm('squeue', '--states', 'all')}"
            time.sleep(0.25)

    def wait_for(self, job: str, state: str, seconds: float = 90) -> None:
        """Waits until the controller gives a job this state."""
        self.wait_until(lambda: self.state(job) == state, seconds)
