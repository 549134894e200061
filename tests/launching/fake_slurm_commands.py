"""The commands of the double of SLURM, see `fake_slurm.py`. Imports little: a call takes 20 ms of a core.

The state is one file, held locked by whoever reads it. Jobs are kept task by task. Nothing starts or ends by itself but
what waits in vain (`--kill-on-invalid-dep`). Texts are those of SLURM 22.05.
"""

# pathlib costs more than all the rest
# ruff: noqa: PTH105, PTH123
from __future__ import annotations

import fcntl
import marshal
import os
import sys

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "srun")
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
)
PREFIX = {
    "squeue": "slurm_load_jobs error: ",
    "sinfo": "slurm_load_partitions: ",
    "scancel": "scancel: error: Kill job error on job id 1: ",
    "scontrol": "slurm_load_ctl_conf error: ",
    "sbatch": "sbatch: error: Batch job submission failed: ",
}
LETTERS = {"%i": "id", "%T": "state", "%N": "nodes", "%u": "user", "%r": "reason", "%k": "comment"}


class World:
    """The state, held locked while it is changed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        with open(f"{folder}/state", "rb") as stream:
            self.state = marshal.load(stream)
        self.jobs: dict[str, dict] = self.state["jobs"]

    def close(self) -> None:
        with open(f"{self.folder}/state.new", "wb") as stream:
            marshal.dump(self.state, stream)
        os.replace(f"{self.folder}/state.new", f"{self.folder}/state")
        os.close(self.lock)

    # ---- dependencies

    def tasks(self, name: str) -> list[dict]:
        """A job, a task, or all tasks of an array."""
        return [self.jobs[name]] if name in self.jobs else [j for j in self.jobs.values() if j["base"] == name]

    def verdict(self, job: dict) -> str:
        """ready | wait | never: what a waiting job's dependencies come to."""
        found = "ready"
        for part in filter(None, job["dependency"].split(",")):
            kind, *names = part.split(":")
            if kind == "singleton":
                older = [j for j in self.jobs.values() if j["number"] < job["number"] and j["base"] != job["base"]]
                same = [j for j in older if (j["name"], j["user"]) == (job["name"], job["user"])]
                verdict = "wait" if any(j["state"] not in ENDED for j in same) else "ready"
            else:
                if kind == "aftercorr":
                    names = [f"{name}_{job['task']}" for name in names]
                # SLURM counts jobs that it has forgotten as met.
                states = [j["state"] for name in names for j in self.tasks(name) if not j["purged"]]
                verdict = self.met(kind, states)
            found = max(found, verdict, key=("ready", "wait", "never").index)
        return found

    @staticmethod
    def met(kind: str, states: list[str]) -> str:
        if any(state not in ENDED for state in states):
            failed = [state for state in states if state in ENDED and state != "COMPLETED"]
            return "never" if kind != "afterany" and failed else "wait"
        return "ready" if kind == "afterany" or all(state == "COMPLETED" for state in states) else "never"

    def settle(self) -> None:
        """What follows from what has happened: reasons, and ends of those that wait in vain."""
        changed = True
        while changed:
            changed = False
            for job in self.jobs.values():
                if job["state"] != "PENDING":
                    continue
                verdict = self.verdict(job)
                job["reason"] = {"ready": "None", "wait": "Dependency", "never": "DependencyNeverSatisfied"}[verdict]
                if verdict == "never" and job["kill"]:
                    job["state"], changed = "CANCELLED", True

    def startable(self) -> list[str]:
        self.settle()
        found = []
        for name, job in self.jobs.items():
            running = sum(j["state"] == "RUNNING" for j in self.tasks(job["base"]))
            if job["state"] == "PENDING" and job["reason"] == "None" and running < job["at_once"]:
                found.append(name)
        return found


# ---- the commands


def sbatch(world: World, arguments: list[str]) -> int:
    script = arguments[-1] if not arguments[-1].startswith("-") else None
    text = ""
    if script:
        with open(script) as stream:
            text = stream.read()
    flags = [unquoted(line) for line in text.splitlines() if line.startswith("#SBATCH ")]
    flags += [each for each in arguments if each.startswith("-")]
    options = {
        key.lstrip("-"): value if equal else True for key, equal, value in (flag.partition("=") for flag in flags)
    }
    test = "test-only" in options
    last, _, at_once = str(options.get("array", "")).removeprefix("0-").partition("%")
    known = {row.split("|")[0] for row in world.state["partitions"]}
    problem = None
    for name in filter(None, str(options.get("partition") or "").split(",")):
        if name not in known:
            print(f"sbatch: error: invalid partition specified: {name}", file=sys.stderr)
            problem = "Invalid partition name specified"
    if last and int(last) >= world.state["largest"]:
        problem = "Invalid job array specification"
    if problem:
        print(
            f"{'allocation failure' if test else 'sbatch: error: Batch job submission failed'}: {problem}",
            file=sys.stderr,
        )
        return 1
    there = sum(job["state"] not in ENDED for job in world.jobs.values())
    if not test and there + (int(last) + 1 if last else 1) > world.state.get("most", 10**6):
        print(
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates "
            "accounting/QOS policy (job submit limit, user's size and/or time limits)",
            file=sys.stderr,
        )
        return 1
    number = world.state["next"]
    world.state["next"] += 1
    if test:
        print(f"sbatch: dict {number} to start at 2026-01-01T00:00:00 using 1 processors on nodes n1", file=sys.stderr)
        return 0
    tasks = list(range(int(last) + 1)) if last else [None]
    for task in tasks:
        name = str(number) if task is None else f"{number}_{task}"
        world.jobs[name] = {
            "id": name, "base": str(number), "number": number, "task": task, "state": "PENDING", "reason": "None",
            "nodes": "", "comment": options.get("comment", "(null)"), "user": world.state["users"][0],
            "name": options.get("job-name", "wrap"), "dependency": str(options.get("dependency", "")),
            "kill": options.get("kill-on-invalid-dep") == "yes", "at_once": int(at_once or 10**6),
            "options": options, "text": text, "exit": "0:0", "by": None, "attempts": [], "steps": [], "restarts": 0,
            "purged": False, "exclude": options.get("exclude", ""), "environment": {
                key: value for key, value in os.environ.items() if key.startswith(("SLURM", "SRUN"))
            },
        }  # fmt: skip
    world.settle()
    print(f"Submitted batch job {number}")
    return 0


def unquoted(line: str) -> str:
    """The option of a line of a script."""
    option = line.removeprefix("#SBATCH ")
    if "'" not in option:
        return option
    import shlex

    return shlex.split(option)[0]


def squeue(world: World, arguments: list[str]) -> int:
    options = dict(each.partition("=")[::2] for each in arguments)
    wanted = list(world.jobs.values())
    if "--user" in options:
        users = options["--user"].split(",")
        for user in users:
            if user not in world.state["users"]:
                print(f"squeue: error: Invalid user: {user}", file=sys.stderr)
        wanted = [job for job in wanted if job["user"] in users]
    if "--jobs" in options:
        wanted = world.tasks(options["--jobs"])
        if not wanted:
            print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
            return 1
    if options.get("--states") is None:
        wanted = [job for job in wanted if job["state"] not in ENDED]
    mark = "|" if "|" in options["--format"] else ","
    for job in wanted:
        if not job["purged"]:
            print(mark.join(job[LETTERS[letter]] for letter in options["--format"].split(mark)))
    return 0


def sacct(world: World, arguments: list[str]) -> int:
    if not world.state["accounts"]:
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    options = dict(each.partition("=")[::2] for each in arguments)
    for name in options["--jobs"].split(","):
        never = [
            job for job in world.tasks(name) if not job["nodes"] and not job["attempts"] and job["task"] is not None
        ]
        for job in world.tasks(name):
            for state, exit_code, nodes, steps in job["attempts"]:
                rows_of(job["id"], state, exit_code, nodes, steps)
            if job not in never:
                by = f" by {job['by']}" if job["by"] is not None else ""
                rows_of(job["id"], job["state"] + by, job["exit"], job["nodes"] or "None assigned", job["steps"])
        if never and name not in world.jobs:  # they share a row, which is not found by the id of one of them
            numbers = ",".join(str(job["task"]) for job in never)
            by = f" by {never[0]['by']}" if never[0]["by"] is not None else ""
            print(f"{name}_[{numbers}%{len(never)}]|{never[0]['state']}{by}|0:0|None assigned")
    return 0


def rows_of(name: str, state: str, exit_code: str, nodes: str, steps: list[list[str]]) -> None:
    print(f"{name}|{state}|{exit_code}|{nodes}")
    for step, step_state, step_exit in steps:
        print(f"{name}.{step}|{step_state}|{step_exit}|{nodes}")


def scancel(world: World, arguments: list[str]) -> int:
    code = 0
    for name in (each for each in arguments if not each.startswith("-")):
        if not name.replace("_", "").isdigit():
            print(f"scancel: error: Invalid job id {name}", file=sys.stderr)
            code = 1
        for job in world.tasks(name):
            if job["state"] not in ENDED:
                job["state"], job["by"] = "CANCELLED", 0
    world.settle()
    return code


def scontrol(world: World, arguments: list[str]) -> int:
    if arguments[:2] == ["show", "config"]:
        print("Configuration data as of 2026-01-01T00:00:00\nMaxArraySize            = " + str(world.state["largest"]))
        return 0
    if arguments[0] == "requeue":
        name = arguments[1]
    else:
        settings = dict(each.partition("=")[::2] for each in arguments[1:])
        name = settings["dictId"]
    if not world.tasks(name):
        print(f"Invalid job id specified for job {name}", file=sys.stderr)
        return 1
    for job in world.tasks(name):
        if arguments[0] == "requeue":
            requeue(job, "REQUEUED")
        else:
            job["exclude"] = settings["ExcNodeList"]
    return 0


def requeue(job: dict, state: str) -> None:
    job["attempts"].append([state, "0:0", job["nodes"], job["steps"]])
    job |= {
        "state": "PENDING",
        "reason": "BeginTime",
        "nodes": "",
        "steps": [],
        "restarts": job["restarts"] + 1,
        "by": None,
    }


def sinfo(world: World, arguments: list[str]) -> int:
    print("\n".join(world.state["partitions"]))
    return 0


def srun(arguments: list[str]) -> int:
    """Runs the command as the only task of a step."""
    import subprocess

    command = arguments[next(n for n, each in enumerate(arguments) if not each.startswith("-")) :]
    options = dict(each.partition("=")[::2] for each in arguments[: len(arguments) - len(command)])
    environment = os.environ | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    output = options.get("--output", "/dev/stdout").replace("%t", "0").replace("%j", os.environ["SLURM_JOB_ID"])
    with open(output, "a") as stream:
        code = subprocess.run(command, stdout=stream, stderr=stream, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code


def main(command: str, folder: str, arguments: list[str]) -> int:
    if command == "srun":
        return srun(arguments)
    world = World(folder)
    try:
        world.state["calls"].append([command, *arguments])
        asked = "test-only" if "--test-only" in arguments else command
        fault = next((each for each in world.state["faults"] if each["command"] in (None, asked)), None)
        if fault and command != "sacct":
            return fail(world, fault, command, arguments)
        code: int = globals()[command](world, arguments)
        return code
    finally:
        world.close()


def fail(world: World, fault: dict, command: str, arguments: list[str]) -> int:
    fault["times"] -= 1
    if not fault["times"]:
        world.state["faults"].remove(fault)
    if fault["after"]:
        out = sys.stdout
        with open(os.devnull, "w") as sys.stdout:
            sbatch(world, arguments)
        sys.stdout = out
    print((PREFIX[command] if fault["prefix"] else "") + fault["text"], file=sys.stderr)
    return 1
