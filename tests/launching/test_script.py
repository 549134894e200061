"""Batch scripts as text, and the shell in them for real.

The scripts under recorded/ are compared word by word. To record them anew after a change that is meant:

    PRISM_RECORD=1 python -m pytest tests/launching/test_script.py -n 0

and read what `git diff` says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from sweeps import Planned, Sweeps

from prism_sweeps.config.schema import Cluster, Request
from prism_sweeps.launching.slurm.script import ATTEMPTS, executor_for, parameters
from prism_sweeps.tracking.records import Store

RECORDED = Path(__file__).parent / "recorded"
ASKED = r"-m prism_sweeps\.launching\.slurm\.after"
SHELL = re.compile(rf"# The tasks are told.*?\(trap '' TERM; (.*?{ASKED}).*?\n\}}\n", re.DOTALL)
"""The shell around the tasks, and who is asked after them."""
SMALL = "suite=easy-vqa"
TRAINING = lambda options: "afterok" not in str(options.get("dependency")) and options["job-name"] == "prism-study"  # noqa: E731
SCRIPTS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, object]], bool]]] = {
    "single": ((SMALL,), TRAINING),
    "array": ((SMALL, "seed=1,2,3"), TRAINING),
    "dependent": ((SMALL,), lambda options: "afterok" in str(options.get("dependency"))),
    "packed": ((SMALL, "seed=1,2", "cluster.jobs_per_allocation=2", "cluster.gpus_per_node=2"), TRAINING),
    "lane": ((SMALL, "cluster.max_parallel=2"), lambda options: options["job-name"] == "prism-study-lane-1"),
    "nodes": (
        (SMALL, "cluster.partition=main", "cluster.nodes=2", "cluster.gpus_per_node=8", "cluster.cpus_per_task=2",
         "cluster.memory=400G", "cluster.time=1-12:30:00", "cluster.notice_seconds=300"),
        TRAINING,
    ),
    "report": ((SMALL, "cluster.gpus_per_node=8"), lambda options: options["job-name"] == "prism-study-report"),
    "container": (
        (SMALL, "cluster.container=apptainer exec --nv image.sif", "cluster.python=/opt/our python/bin/python",
         "cluster.setup=['module load cuda','export HF_HOME=/scratch/hf']", "cluster.account=us", "cluster.qos=high",
         "cluster.constraint='a100&nvlink'", "cluster.exclude='n[7-9]'",
         "cluster.options={mail_type: FAIL, exclusive: true, gres: 'scratch:100G'}"),
        TRAINING,
    ),
}  # fmt: skip


def script(name: str, sweep: Sweeps, planned: Planned) -> str:
    words, chosen = SCRIPTS[name]
    plan = planned(*words)
    plan.study = "study"
    sweep(plan)
    return next(job["text"] for job in sweep.slurm.jobs.values() if chosen(job["options"]))


def placed(text: str, store: Store) -> str:
    """With placeholders for what differs from one submission to the next."""
    text = text.replace(str(store.root), "$STORE").replace(sys.executable, "$PYTHON")
    text = re.sub(r"prism-[0-9a-f]{12}$", "prism-$BATCH", text, flags=re.MULTILINE)
    return re.sub(r"(slurm.after \$STORE) [0-9a-f]{12}", r"\1 $BATCH", text)


def parted(text: str) -> tuple[str, str]:
    """The script without the shell that all have alike, but for whom it asks; and that shell."""
    found = SHELL.search(text)
    assert found is not None
    return text.replace(found[0], f"# attempts.sh, asking {found[1]}\n"), found[0].replace(found[1], "$ASKED")


def compared(name: str, text: str) -> None:
    path = RECORDED / f"{name}.sh"
    if "PRISM_RECORD" in os.environ:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"see the top of {__file__}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_as_recorded(name: str, sweep: Sweeps, planned: Planned) -> None:
    own, shell = parted(placed(script(name, sweep, planned), sweep.store))
    compared(name, own)
    compared("attempts", shell)


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_it(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_that_are_recorded_are_compared() -> None:
    assert {path.stem for path in RECORDED.glob("*.sh")} == {*SCRIPTS, "attempts"}


@pytest.mark.parametrize(
    ("time", "minutes", "asked"),
    [
        ("30", 30, "30"),
        ("0:30", 1, "0:30"),
        ("1-00", 1440, "1-00"),
        (None, None, None),
        ("UNLIMITED", None, "UNLIMITED"),
    ],
)
def test_times_are_as_they_were_asked_for(time: str | None, minutes: int | None, asked: str | None) -> None:
    """submitit counts whole minutes; SLURM is told what was said."""
    found = parameters(Request(time=time), packed=False)
    assert found["time"] == minutes
    assert found["additional_parameters"].get("time") == asked


def test_a_store_whose_path_has_spaces(slurm: FakeSlurm, tmp_path: Path) -> None:
    root = tmp_path / "our $HOME store"
    executor = executor_for(
        Request(), Cluster("slurm", "slurm"), root / "slurm" / "a study", root / "snapshots" / "x", root, "abc",
        "prism-x", [], packed=False, tasks=1,
    )  # fmt: skip
    (root / "slurm" / "a study").mkdir(parents=True)
    executor.submit(print, "hello")
    (job,) = slurm.jobs.values()
    assert job["options"]["output"] == str(root / "slurm" / "a study" / "%j_0_log.out")
    seen = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}\nsrun() {{ printf '%s\\n' \"$@\"; }}\n{job['text']}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"--output={root / 'slurm' / 'a study' / '%j_%t_log.out'}" in seen.splitlines()


# ---- the shell around the tasks


class Shell:
    """`prism_attempts` with commands that do and say what a test tells them to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env = folder, {"SLURM_JOB_ID": "77", "PATH": f"{folder}:/bin:/usr/bin"}
        self.command("squeue", "echo RUNNING,None")
        self.command("scontrol", "")
        self.command("sbatch", "echo 'sbatch: Job 3 to start' >&2")

    def command(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.folder}/calls\n{body}\n')
        path.chmod(0o755)

    def says(self, name: str, lines: Sequence[str], code: Sequence[int] = ()) -> None:
        """A command whose first call prints the first line and ends with the first code, and so on."""
        for number, line in enumerate(lines, 1):
            (self.folder / f"{name}.{number}").write_text(f"echo '{line}'\nexit {code[number - 1] if code else 0}\n")
        counted = f"n=$(grep -c '^{name} ' {self.folder}/calls); . {self.folder}/{name}.$n"
        self.command(name, counted)

    def run(self, *setup: str, command: str = "task -c 3", before: str = "") -> subprocess.CompletedProcess[str]:
        function = ATTEMPTS.format(python="python", store="/the/store", batch="abc")
        lines = [
            f'sleep() {{ echo "sleep $1" >> {self.folder}/calls; }}',
            *setup,
            function,
            before,
            f"prism_attempts {command}",
        ]
        return subprocess.run(
            ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, env=self.env, timeout=30, check=False
        )

    def calls(self) -> list[str]:
        return [re.sub(r" \d+ (\d+)$", r" SECONDS \1", line) if "after" in line else line for line in self.lines()]

    def lines(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    folder = tmp_path / "shell"
    folder.mkdir()
    return Shell(folder)


def asked(code: int, tries: int, task: int = 0, restarts: int = 0) -> str:
    return f"python -m prism_sweeps.launching.slurm.after /the/store abc {task} {code} {tries} SECONDS {restarts}"


def test_tasks_that_end_well_end_the_job(shell: Shell) -> None:
    shell.says("task", [""])
    assert shell.run().returncode == 0
    assert shell.calls() == ["task -c 3"]


def test_again(shell: Shell) -> None:
    shell.says("task", ["", "", ""], [1, 137, 0])
    shell.says("python", ["again", "again"])
    done = shell.run()
    assert done.returncode == 0
    assert shell.calls() == ["task -c 3", asked(1, 1), "task -c 3", asked(137, 2), "task -c 3"]
    assert "prism: again, after exit code 137" in done.stdout


def test_how_often_it_was_queued_again_is_handed_on(shell: Shell) -> None:
    shell.env["SLURM_RESTART_COUNT"] = "6"
    shell.says("task", [""], [143])
    shell.says("python", ["end"])
    assert shell.run().returncode == 143
    assert shell.calls() == ["task -c 3", asked(143, 1, restarts=6)]


@pytest.mark.parametrize("word", ["end", "", "nonsense"])
def test_end_keeps_the_exit_code(word: str, shell: Shell) -> None:
    shell.says("task", [""], [7])
    shell.says("python", [word])
    assert shell.run().returncode == 7
    assert len(shell.calls()) == 2


@pytest.mark.parametrize("word", ["INFO: unmounting the image", "", "Requeue n7"])
def test_what_made_room_goes_back_into_the_queue_whatever_the_answer(word: str, shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", [word])
    shell.run()
    assert shell.calls()[3:] == ["scontrol requeue 77", "sleep 300"]


def test_what_made_room_and_has_nothing_left_ends(shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", ["end"])
    assert shell.run().returncode == 75
    assert len(shell.calls()) == 2


def test_what_a_container_says_before_is_no_answer(shell: Shell) -> None:
    shell.says("task", ["", ""], [1, 75])
    shell.says("python", ["Welcome to the image\n\nagain", "end of the line\nrequeue n7"])
    shell.run()
    assert shell.calls()[2] == "task -c 3"
    assert shell.calls()[-3:] == ["scontrol requeue 77", "scontrol update JobId=77 ExcNodeList=n7", "sleep 300"]


def test_back_into_the_queue(shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", ["requeue"])
    done = shell.run()
    assert shell.calls()[2:] == [
        "squeue --noheader --jobs=77 --format=%T,%r", "scontrol requeue 77", "sleep 300",
    ]  # fmt: skip
    assert done.returncode == 75
    assert "prism: back into the queue, after exit code 75\n" in done.stdout


def test_a_task_of_an_array_goes_back_by_its_own_id(shell: Shell) -> None:
    """The last task's SLURM_JOB_ID is the whole array's number."""
    shell.env |= {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "4"}
    shell.says("task", [""], [75])
    shell.says("python", ["requeue"])
    shell.run()
    assert shell.calls()[1:4] == [
        asked(75, 1, task=4),
        "squeue --noheader --jobs=77_4 --format=%T,%r",
        "scontrol requeue 77_4",
    ]


def test_back_into_the_queue_but_not_there(shell: Shell) -> None:
    shell.says("task", [""], [1])
    shell.says("python", ["requeue n7,n1"])
    done = shell.run()
    assert shell.calls()[2:] == [
        "sbatch --test-only --exclude=n7,n1 bash", "squeue --noheader --jobs=77 --format=%T,%r", "scontrol requeue 77",
        "scontrol update JobId=77 ExcNodeList=n7,n1", "sleep 300",
    ]  # fmt: skip
    assert "not on n7,n1" in done.stdout


def test_a_node_without_another_beside_it(shell: Shell) -> None:
    """Seen: scontrol update takes an ExcNodeList of all nodes, and the job waits for ever, BadConstraints."""
    shell.says("task", ["", ""], [1, 0])
    shell.says("python", ["requeue n1"])
    shell.command("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    done = shell.run()
    assert done.returncode == 0
    assert shell.calls()[2:] == ["sbatch --test-only --exclude=n1 bash", "task -c 3"]
    assert "prism: again, after exit code 1; there is no other node" in done.stdout


@pytest.mark.parametrize(
    ("state", "goes"),
    [
        ("RUNNING,None", True),
        ("COMPLETING,TimeLimit", True),
        ("COMPLETING,None", False),
        ("COMPLETING,Preempted", False),
        ("", True),
    ],
)
def test_a_job_that_somebody_has_cancelled_stays_cancelled(state: str, goes: bool, shell: Shell) -> None:
    """Seen: scancel, tasks that end in order with 75, scontrol requeue: the job ran again. What is being ended says
    COMPLETING,None then, and COMPLETING,TimeLimit at its time limit; during the notice before either it is RUNNING."""
    shell.says("task", [""], [75])
    shell.says("python", ["requeue"])
    shell.command("squeue", f"echo '{state}'" if state else "exit 1")
    done = shell.run()
    assert ("scontrol requeue 77" in shell.calls()) == goes
    assert done.returncode == 75


def test_a_controller_that_is_away_is_asked_again(shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", ["requeue"])
    shell.says("scontrol", ["Unexpected message received for job 77", "", ""], [1, 0, 0])
    shell.run()
    look = "squeue --noheader --jobs=77 --format=%T,%r"
    assert shell.calls()[3:] == ["scontrol requeue 77", "sleep 5", look, "scontrol requeue 77", "sleep 300"]


def test_a_controller_that_stays_away_is_asked_as_long_as_the_job_lasts(shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", ["requeue n7"])
    shell.says("scontrol", ["Unable to contact slurm controller (connect failure)"] * 12 + ["", ""], [1] * 12 + [0, 0])
    assert shell.run().returncode == 75
    pauses = [int(call.split()[1]) for call in shell.calls() if call.startswith("sleep")]
    assert pauses == [5, 10, 15, 20, 25, *[30] * 7, 300]
    assert shell.calls()[-3:] == ["scontrol requeue 77", "scontrol update JobId=77 ExcNodeList=n7", "sleep 300"]


def test_a_job_that_is_cancelled_while_the_controller_is_asked_stays_cancelled(shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", ["requeue"])
    shell.says("squeue", ["RUNNING,None", "", "COMPLETING,None"], [0, 1, 0])
    shell.command("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    done = shell.run()
    assert done.returncode == 75
    assert shell.calls().count("scontrol requeue 77") == 2
    assert shell.calls()[-1].startswith("squeue")
    assert "SLURM is ending it" in done.stdout


@pytest.mark.parametrize(
    "said",
    [
        "Invalid job id specified for job 77",
        "Access/permission denied for job 77",
        "Requested operation is presently disabled for job 77",
        "scontrol: command not found",
    ],
)
def test_what_can_never_be_queued_again_gives_its_nodes_back(said: str, shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", ["requeue n7"])
    shell.command("scontrol", f"echo '{said}' >&2; exit 1")
    done = shell.run()
    assert done.returncode == 75
    assert shell.calls()[-1] == "scontrol requeue 77"
    assert said in done.stdout


def test_a_controller_that_took_it_and_could_not_say_so(shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.says("python", ["requeue n7"])
    answers = ["Socket timed out on send/recv operation", "Job is pending execution for job 77", ""]
    shell.says("scontrol", answers, [1, 1, 0])
    shell.run()
    assert shell.calls()[-2:] == ["scontrol update JobId=77 ExcNodeList=n7", "sleep 300"]


@pytest.mark.parametrize("code", [1, 139])
def test_when_it_cannot_be_told_what_to_do_the_exit_code_is_kept(code: int, shell: Shell) -> None:
    shell.says("task", [""], [9])
    shell.command("python", f"echo again; exit {code}")
    assert shell.run().returncode == 9
    assert len(shell.calls()) == 2


def test_what_made_room_goes_back_into_the_queue_also_when_nobody_can_say_so(shell: Shell) -> None:
    shell.says("task", [""], [75])
    shell.command("python", "exit 1")
    shell.run()
    assert shell.calls()[-2:] == ["scontrol requeue 77", "sleep 300"]


def test_signals_are_for_the_tasks(shell: Shell) -> None:
    """The shell gets them too, and stays to ask what is next."""
    shell.command("task", "kill -TERM $PPID; kill -USR2 $PPID; exit 75")
    shell.command("python", "kill -TERM $PPID; echo end")
    assert shell.run().returncode == 75
    assert [line.split()[0] for line in shell.calls()] == ["task", "python"]


@pytest.mark.parametrize("strict", ["set -e", "set -u", "set -euo pipefail"])
def test_a_strict_shell(strict: str, shell: Shell) -> None:
    """By the user's own setup."""
    shell.says("task", ["", ""], [1, 75])
    shell.says("python", ["again", "requeue"])
    done = shell.run(strict)
    assert shell.calls()[-2:] == ["scontrol requeue 77", "sleep 300"]
    assert done.returncode == 75
    assert done.stderr == ""


def test_the_whole_script_of_a_job(sweep: Sweeps, planned: Planned, tmp_path: Path) -> None:
    """On the double: the tasks fail once, then end well; by the real `after`, which is asked by a real Python."""
    plan = planned(SMALL, f"cluster.python={tmp_path / 'python'}", "cluster.setup=['export MINE=yes']")
    (tmp_path / "python").write_text(
        f"""#!/bin/bash
if [[ $* == *submitit* ]]; then
    echo "$MINE $SLURM_PROCID $SUBMITIT_EXECUTOR ${{SRUN_CPUS_PER_TASK-unset}} $PYTHONPATH" >> {tmp_path}/seen
    [ $(wc -l < {tmp_path}/seen) -gt 1 ]; exit $?
fi
PYTHONPATH= exec {sys.executable} "$@"
"""
    )
    (tmp_path / "python").chmod(0o755)
    sweep(plan)
    training = min(sweep.slurm.live(), key=int)
    done = sweep.slurm.run(training, SLURM_CPUS_PER_TASK="3", PYTHONPATH="/theirs")
    assert done.returncode == 0, done.stderr
    assert "prism: again, after exit code 1" in done.stdout
    snapshot = sweep.store.root / "snapshots" / "now"
    assert (tmp_path / "seen").read_text() == f"yes 0 slurm 3 {snapshot}:/theirs\n" * 2
    assert sweep.slurm.jobs[training]["state"] == "COMPLETED"
