"""What the double of tests/launching says is what SLURM says: the launcher's own functions read a real one here, and
the shell of its batch scripts runs on it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Request
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm.preflight import check_by_slurm, checked
from prism_sweeps.launching.slurm.scheduler import SchedulerDown
from prism_sweeps.launching.slurm.script import ATTEMPTS
from prism_sweeps.planning.allocations import shape
from prism_sweeps.tracking.submissions import me

pytestmark = pytest.mark.slurm

SMALL = ("--mem=100",)


@pytest.fixture
def ids(cluster: Lab) -> Iterator[list[str]]:
    """Jobs of a test, which end with it."""
    found: list[str] = []
    yield found
    scheduler.cancel(found)


def test_partitions_and_arrays(cluster: Lab) -> None:
    found = scheduler.partitions()
    assert [name for name, each in found.items() if each.default] == ["main"]
    assert (found["main"].limit, found["main"].default_time) == (None, 60)
    assert (found["short"].limit, found["short"].default_time) == (10, 10)
    assert (found["main"].nodes, found["main"].gpus, found["main"].cpus, found["main"].usable) == (4, 8, 16, 4)
    assert scheduler.largest_array() == 2000


def test_the_queue_and_the_history_of_an_array_that_never_began(cluster: Lab, ids: list[str]) -> None:
    parent = cluster.submit("true", *SMALL, "--hold")
    array = cluster.submit(
        "true",
        *SMALL,
        "--array=0-3%2",
        f"--dependency=afterok:{parent}",
        "--kill-on-invalid-dep=yes",
        "--comment=prism-a|b",
    )
    ids += [parent, array]
    cluster.wait_until(lambda: scheduler.queue([me()])[f"{array}_2"].reason == "Dependency")
    found = scheduler.queue([me()])[f"{array}_2"]
    assert (found.state, found.nodes, found.comment, found.user) == ("PENDING", "", "prism-a|b", me())
    scheduler.cancel([array, "99999999"])
    scheduler.cancel([array])
    assert scheduler.queue([me()])[f"{array}_2"].state == "CANCELLED"
    cluster.wait_until(lambda: len(scheduler.history([f"{array}_0", f"{array}_3"])) == 2)
    ended = scheduler.history([f"{array}_3"])[f"{array}_3"]
    assert (ended.state, ended.by) == ("CANCELLED", str(os.getuid()))


def test_children_of_a_failed_task_are_cancelled_and_the_others_run(cluster: Lab, ids: list[str]) -> None:
    script = 'exit "$SLURM_ARRAY_TASK_ID"'
    array = cluster.submit(script, *SMALL, "--array=0-1")
    child = cluster.submit(
        "true", *SMALL, "--array=0-1", f"--dependency=aftercorr:{array}", "--kill-on-invalid-dep=yes"
    )
    ids += [array, child]
    cluster.wait_until(lambda: scheduler.queue([me()])[f"{child}_1"].state == "CANCELLED")
    cluster.wait_until(lambda: scheduler.queue([me()])[f"{child}_0"].state == "COMPLETED")
    queue = scheduler.queue([me()])
    assert queue[f"{child}_1"].reason == "DependencyNeverSatisfied"
    assert (queue[f"{array}_1"].state, queue[f"{array}_1"].reason) == ("FAILED", "NonZeroExitCode")
    cluster.wait_until(lambda: f"{array}_1" in scheduler.history([f"{array}_1"]))  # accounts come a moment later
    ended = scheduler.history([f"{array}_1"])[f"{array}_1"]
    assert (ended.state, ended.exit_code) == ("FAILED", "1:0")


def test_what_is_read_of_a_job_that_needed_too_much_memory(cluster: Lab, ids: list[str]) -> None:
    """Where memory is limited. SLURM itself says FAILED."""
    if "memory     limited" not in cluster.cluster("status"):
        pytest.skip("memory is not limited on this machine")
    job = cluster.submit("srun python3 -c 'bytearray(300_000_000)'", "--mem=50")
    ids.append(job)
    cluster.wait_for(job, "FAILED")
    cluster.wait_until(lambda: (found := scheduler.history([job]).get(job)) and found.state == "OUT_OF_MEMORY")


def test_unknown_users_do_not_hide_others(cluster: Lab, ids: list[str]) -> None:
    job = cluster.submit("true", *SMALL, "--hold")
    ids.append(job)
    assert job in scheduler.queue([me(), "nobody-of-this-name"])


@pytest.mark.parametrize(
    "command",
    [
        ["squeue", "--noheader"],
        ["sinfo"],
        ["scontrol", "show", "config"],
        ["sbatch", "--wrap=true"],
        ["sbatch", "--test-only", "--wrap=true"],
        ["scancel", "--quiet", "1"],
    ],
    ids=" ".join,
)
def test_a_controller_that_does_not_answer(
    command: list[str], cluster: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none at this port."""
    conf = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", Path(cluster.slurm_conf).read_text())
    conf = re.sub(r"SlurmctldTimeout=\d+", "SlurmctldTimeout=2", conf)  # for so long it is tried
    (tmp_path / "slurm.conf").write_text(f"{conf}\nMessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SchedulerDown, match="Unable to contact slurm controller"):
        scheduler.call(command)


def test_a_cluster_without_accounts(cluster: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = re.sub(r"(?m)^AccountingStorage.*$", "", Path(cluster.slurm_conf).read_text())
    (tmp_path / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert scheduler.history(["1"]) == {}
    with pytest.raises(LaunchError, match="Slurm accounting storage is disabled"):
        scheduler.call(["sacct", "--jobs=1"])


def test_requests_that_it_takes(cluster: Lab) -> None:
    requests = [
        Request(),
        Request(partition="short", time="0:05:00"),
        Request(partition="main,preempt", nodes=4, gpus_per_node=8, cpus_per_task=2, memory="60G", exclude=None),
        Request(jobs_per_allocation=4, gpus_per_node=4, options={"exclusive": True, "mail_type": "NONE"}),
    ]
    found = checked(requests)
    assert [found[shape(each)].time for each in requests] == ["01:00:00", "0:05:00", "01:00:00", "01:00:00"]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Request(memory="900G"), "Requested node configuration is not available"),
        (Request(exclude="n[1-4]"), "Requested node configuration is not available"),
        (Request(constraint="h100"), "Invalid feature specification"),
        (Request(options={"bogus": 3}), "unrecognized option '--bogus=3'$"),
    ],
)
def test_requests_that_only_it_can_refuse(request_: Request, text: str, cluster: Lab) -> None:
    nodes = cluster.prefix + "[1-4]"
    request_.exclude = nodes if request_.exclude else None
    with pytest.raises(ConfigError, match=text):
        check_by_slurm(request_, enough=True)


# ---- the shell of a batch script


def script(folder: Path, tasks: str, answer: str) -> str:
    """A batch script whose tasks and whose Python are these shell lines."""
    python = folder / "python"
    python.write_text(f"#!/bin/bash\n{answer}\n")
    python.chmod(0o755)
    path = folder / "script.sh"
    function = ATTEMPTS.format(python=python, store="/store", batch="abc")
    path.write_text(f"#!/bin/bash\necho begin\n{function}\nprism_attempts bash -c {shlex.quote(tasks)}\n")
    return str(path)


def submit(cluster: Lab, path: str, *options: str) -> str:
    out = Path(path).with_suffix(".out")
    return cluster.slurm(
        "sbatch", "--parsable", *SMALL, "--requeue", f"--output={out}", "--open-mode=append", *options, path
    )


def begins(path: str) -> int:
    out = Path(path).with_suffix(".out")
    return out.read_text().splitlines().count("begin") if out.exists() else 0


def test_a_job_that_is_cancelled_while_it_runs_stays_cancelled(cluster: Lab, ids: list[str], tmp_path: Path) -> None:
    """Its tasks end in order, and it asks to be queued again."""
    tasks = f"srun bash -c 'trap \"exit 75\" TERM; touch {tmp_path}/working; sleep 60 & wait'"
    path = script(tmp_path, tasks, "echo requeue")
    job = submit(cluster, path)
    ids.append(job)
    cluster.wait_for(job, "RUNNING")
    cluster.wait_until((tmp_path / "working").exists)
    scheduler.cancel([job])
    cluster.wait_for(job, "CANCELLED")
    assert "SLURM is ending it" in Path(path).with_suffix(".out").read_text()
    assert scheduler.queue([me()])[job].state == "CANCELLED"


def test_a_job_goes_back_into_the_queue_and_runs_elsewhere(cluster: Lab, ids: list[str], tmp_path: Path) -> None:
    once = f"[ -e {tmp_path}/been ] || {{ hostname > {tmp_path}/been; exit 1; }}; hostname > {tmp_path}/now"
    path = script(tmp_path, once, f"echo requeue $(cat {tmp_path}/been)")
    job = submit(cluster, path)
    ids.append(job)
    cluster.wait_for(job, "COMPLETED")
    assert begins(path) == 2
    assert (tmp_path / "been").read_text() != (tmp_path / "now").read_text()
    cluster.wait_until(lambda: cluster.attempts(job) == ["REQUEUED", "COMPLETED"])
    assert scheduler.history([job])[job].state == "COMPLETED"


def test_a_job_is_not_kept_away_from_all_nodes(cluster: Lab, ids: list[str], tmp_path: Path) -> None:
    once = f"[ -e {tmp_path}/been ] || {{ touch {tmp_path}/been; exit 1; }}"
    path = script(tmp_path, once, f"echo requeue {cluster.prefix}[1-4]")
    job = submit(cluster, path)
    ids.append(job)
    cluster.wait_for(job, "COMPLETED")
    assert "again, after exit code 1; there is no other node" in Path(path).with_suffix(".out").read_text()
    assert begins(path) == 1
