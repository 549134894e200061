"""Disturbs a sweep on a real SLURM in every way that clusters do, and compares what comes out with an undisturbed one.

    python tests/slurm/chaos.py [--faults 24] [--seed 0] [--study chaos] [--keep]

Makes a SLURM of its own (launch/slurm/cluster.sh) and an MLflow server, runs the study once in peace (local workers),
then as SLURM jobs, while it injects one fault after another, each kind in turn, into jobs drawn at random. Then it
sweeps again, as a user would, until everything is done, and prints a table of faults and what is true at the end. Exit
code 1 if any of it is not. Takes some twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))

from chaos_checks import Check, checks
from mlflow_server import Server

from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.snapshot import snapshot
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

CLUSTER = Path(__file__).parents[2] / "launch" / "slurm" / "cluster.sh"
CONF = Path(__file__).parent / "conf"
REQUEST = [
    "cluster=slurm", "cluster.partition=preempt", "cluster.cpus_per_task=12", "cluster.memory=6G", "cluster.time=60",
    "cluster.notice_seconds=20", "cluster.overrides.report.cpus_per_task=1",
]  # fmt: skip
PAUSE = (4.0, 9.0)
"""Seconds between faults."""
SWEEPS = 8
"""How often the user looks and sweeps again."""


@dataclass
class Fault:
    """One that was injected."""

    at: float
    kind: str
    target: str
    outcome: str = ""


@dataclass
class Lab:
    """The SLURM, the MLflow server and the store that are disturbed."""

    folder: Path
    study: str
    random: random.Random
    server: Server
    began: float = field(default_factory=time.monotonic)
    faults: list[Fault] = field(default_factory=list)
    down: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    """What was broken, and when it is to be mended."""

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "disturbed", self.folder / "data")

    def cluster(self, *verb: str) -> None:
        subprocess.run([CLUSTER, *verb], check=True, stdout=subprocess.DEVNULL)

    def running(self) -> list[tuple[str, scheduler.Queued]]:
        """Jobs of the plan that are being worked on, each with its SLURM job."""
        newest = submissions.read(self.store.root).newest()
        queue = scheduler.queue([submissions.me()])
        found = []
        for name, allotted in newest.items():
            queued = queue.get(allotted.slurm_id)
            if queued and queued.state == "RUNNING" and self.store.job(name).state()["status"] == "running":
                found.append((name, queued))
        return found

    def mend(self, all_of_it: bool = False) -> None:
        """Brings back what has been broken for long enough."""
        for entry in list(self.down):
            if all_of_it or time.monotonic() >= entry[0]:
                self.down.remove(entry)
                entry[1]()

    # ---- faults: each returns what it hit

    def preempt(self, name: str, job: scheduler.Queued) -> str:
        urgent = ["--partition=main", f"--nodelist={job.nodes}", "--exclusive", "--time=1", "--mem=100"]
        subprocess.run(
            ["sbatch", *urgent, "--output=/dev/null", "--wrap=sleep 3"], check=True, stdout=subprocess.DEVNULL
        )
        return f"SLURM job {job.slurm_id} on {job.nodes}, by one in main"

    def cancel(self, name: str, job: scheduler.Queued) -> str:
        subprocess.run(["scancel", job.slurm_id], check=True)
        return f"SLURM job {job.slurm_id}"

    def time_limit(self, name: str, job: scheduler.Queued) -> str:
        subprocess.run(["scontrol", "update", f"JobId={job.slurm_id}", "EndTime=now+5"], check=True)
        return f"SLURM job {job.slurm_id}"

    def kill_process(self, name: str, job: scheduler.Queued) -> str:
        beat = self.store.job(name).last_beat()
        if beat is None:
            return ""
        os.kill(int(beat["pid"]), signal.SIGKILL)
        return f"process {beat['pid']} of job {name[:8]}"

    def freeze(self, name: str, job: scheduler.Queued) -> str:
        beat = self.store.job(name).last_beat()
        if beat is None:
            return ""
        pid = int(beat["pid"])
        os.kill(pid, signal.SIGSTOP)

        def thaw() -> None:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGCONT)

        self.down.append((time.monotonic() + 12, thaw))
        return f"process {pid} of job {name[:8]}, for 12 s"

    def kill_node(self, name: str, job: scheduler.Queued) -> str:
        self.cluster("kill-node", job.nodes)
        self.down.append((time.monotonic() + 40, lambda: self.cluster("start-node", job.nodes)))
        return f"{job.nodes}, for 40 s"

    def kill_slurmd(self, name: str, job: scheduler.Queued) -> str:
        found = subprocess.run(
            ["pgrep", "-f", f"slurmd.*-N {job.nodes}( |$)"], capture_output=True, text=True, check=False
        )
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        self.down.append((time.monotonic() + 8, lambda: self.cluster("up")))
        return f"slurmd of {job.nodes}, whose job goes on, for 8 s"

    def restart_controller(self, name: str, job: scheduler.Queued) -> str:
        self.cluster("restart-ctl")
        return "slurmctld"

    def stop_mlflow(self, name: str, job: scheduler.Queued) -> str:
        if self.server.process is None:
            return ""
        self.server.stop()
        self.down.append((time.monotonic() + 20, self.server.start))
        return "the tracking server, for 20 s"

    def kinds(self) -> list[Callable[[str, scheduler.Queued], str]]:
        return [
            self.preempt, self.kill_process, self.time_limit, self.cancel, self.kill_node, self.stop_mlflow,
            self.restart_controller, self.kill_slurmd, self.freeze,
        ]  # fmt: skip

    def disturb(self, count: int) -> None:
        """Injects faults until there are `count`, or nothing runs any more."""
        kinds, turn = self.kinds(), 0
        while len(self.faults) < count:
            time.sleep(self.random.uniform(*PAUSE))
            self.mend()
            try:
                running = self.running()
                if not running and self.over():
                    return
                kind = kinds[turn % len(kinds)]
                # Two nodes at least stay up.
                if not running or (kind in (self.kill_node, self.kill_slurmd) and len(self.down) > 1):
                    continue
                name, job = self.random.choice(running)
                hit = kind(name, job)
            except (subprocess.CalledProcessError, scheduler.LaunchError, ProcessLookupError) as error:
                print(f"  not injected: {error}", flush=True)
                continue
            if hit:
                turn += 1
                self.faults.append(Fault(time.monotonic() - self.began, kind.__name__, hit))
                print(f"{self.faults[-1].at:6.0f} s  {kind.__name__:18} {hit}", flush=True)

    def over(self) -> bool:
        """Whether SLURM has nothing of ours left."""
        return not [job for job in scheduler.queue([submissions.me()]).values() if job.waiting or job.active]


def prism(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "prism_sweeps.cli", *arguments], text=True, check=False)


def sweep_until_done(lab: Lab, again: Sequence[str]) -> int:
    """What a user does: looks, and sweeps again what is not done. Returns how often that was."""
    for number in range(SWEEPS):
        while not lab.over():
            time.sleep(3)
            lab.mend()
        plan = Plan.from_plain(lab.store.study(lab.study).plan())
        states = Counter(lab.store.job(name).state()["status"] for name in plan.jobs)
        print(f"{time.monotonic() - lab.began:6.0f} s  the queue is empty: {dict(states)}", flush=True)
        if set(states) == {"done"}:
            return number
        prism("sweep", *again)
    return SWEEPS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", default="chaos")
    parser.add_argument("--keep", action="store_true", help="leave the stores and the cluster as they are")
    parser.add_argument("--folder", type=Path, help="where (default: a new one in /tmp)")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="prism-chaos-", dir="/tmp"))
    folder.mkdir(exist_ok=True)
    run_a_snapshot(folder)
    os.environ |= {"PRISM_SLURM_LAB": str(folder / "slurm"), "PRISM_SLURM_PREFIX": "c", "OMP_NUM_THREADS": "1"}
    common = ["--config-dir", str(CONF), f"store.data={folder / 'data'}"]
    print(f"in peace, in {folder / 'undisturbed'}", flush=True)
    if prism("sweep", given.study, "--store", str(folder / "undisturbed"), "tracking=none", *common).returncode:
        return 1
    subprocess.run([CLUSTER, "up"], check=True)
    os.environ["SLURM_CONF"] = str(folder / "slurm" / "slurm.conf")
    lab = Lab(folder, given.study, random.Random(given.seed), Server(f"sqlite:///{folder / 'mlflow.db'}", folder))
    try:
        lab.server.start()
        again = [given.study, *REQUEST, f"tracking.uri={lab.server.uri}", "--store", str(folder / "disturbed"), *common]
        if prism("sweep", *again).returncode:
            return 1
        lab.disturb(given.faults)
        lab.mend(all_of_it=True)
        sweeps = sweep_until_done(lab, again)
        prism("status", given.study, "--store", str(folder / "disturbed"))
        found = checks(Store.open(folder / "undisturbed", folder / "data"), lab.store, given.study, lab.server.uri)
        return told(lab, sweeps, found)
    finally:
        lab.server.stop()
        if not given.keep:
            subprocess.run([CLUSTER, "down"], check=False)
            shutil.rmtree(folder, ignore_errors=True)


def run_a_snapshot(folder: Path) -> None:
    """Starts this script again on a copy of the package, so that a tree that is worked on does not disturb it too."""
    if os.environ.get("PYTHONPATH", "").startswith(str(folder)):
        return
    os.environ["PYTHONPATH"] = str(snapshot(Store.open(folder / "code")))
    where = [] if "--folder" in sys.argv else ["--folder", str(folder)]
    os.execv(sys.executable, [sys.executable, *sys.argv, *where])


def told(lab: Lab, sweeps: int, found: Sequence[Check]) -> int:
    """Prints the tables; 0 if everything is true."""
    print("\n| fault | times |\n|---|---|")
    for kind, count in sorted(Counter(fault.kind for fault in lab.faults).items()):
        print(f"| {kind.replace('_', ' ')} | {count} |")
    print(f"\n{len(lab.faults)} faults; swept again {sweeps} times after them\n\n| at the end | |\n|---|---|")
    for check in found:
        print(f"| {check.what} | {'yes' if check.holds else 'NO'}{': ' if check.detail else ''}{check.detail} |")
    print(json.dumps({"faults": len(lab.faults), "holds": all(check.holds for check in found)}))
    return 0 if all(check.holds for check in found) else 1


if __name__ == "__main__":
    sys.exit(main())
