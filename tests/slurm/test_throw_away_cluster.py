"""The throw-away SLURM itself. The tests are steps in the life of one cluster: each begins and ends with it usable."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from lab import CLUSTER, Lab

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("_debian")]

CGROUPS = Path("/sys/fs/cgroup/memory")


def files_of_others() -> dict[str, bytes | None]:
    """What SLURM and its packages could change on a machine that the cluster leaves alone."""
    paths = [Path("/etc/hosts"), Path("/etc/slurm/slurm.conf"), Path("/usr/sbin/policy-rc.d")]
    return {str(path): path.read_bytes() if path.exists() else None for path in paths}


def mounts_of(lab: Lab) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(lab.folder) in line]


def cgroups_of(lab: Lab) -> list[Path]:
    return list(CGROUPS.glob(f"slurm_{lab.prefix}*"))


def processes_of(lab: Lab) -> list[int]:
    """Processes that have to do with the cluster: daemons, what jobs started, commands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(lab.folder) in told:
            found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def before() -> dict[str, bytes | None]:
    return files_of_others()


@pytest.fixture(scope="module")
def lab(before: object, own_cluster: Lab) -> Lab:
    return own_cluster


@pytest.fixture(scope="module")
def overdue(lab: Lab) -> str:
    """A job whose time is up in a moment. SLURM looks at time limits every 30 seconds, so it is begun early."""
    job = lab.submit("sleep 600", "--time=60")
    lab.wait_for(job, "RUNNING")
    lab.slurm("scontrol", "update", f"JobId={job}", "EndTime=now+2")
    return job


@pytest.fixture(scope="module")
def orphan(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A job that wrote the name of its node, the third or fourth, which then died.

    SLURM takes half a minute to notice.
    """
    output = tmp_path_factory.mktemp("orphan") / "out"
    script = 'hostname; [ "$SLURM_RESTART_COUNT" ] || srun sleep 4321'
    job = lab.submit(script, f"--exclude={lab.prefix}[1-2]", "--open-mode=append", output=output)
    lab.wait_until(lambda: output.exists() and output.read_text() and "4321" in sleepers())
    lab.cluster("kill-node", output.read_text().strip())
    return job, output


def sleepers() -> str:
    return subprocess.run(["pgrep", "-a", "sleep"], capture_output=True, text=True, check=False).stdout


def test_up_again_changes_nothing(lab: Lab):
    status, written = lab.cluster("status"), Path(lab.slurm_conf).stat().st_mtime_ns
    assert lab.cluster("up") == "cluster.sh: is up\n"
    assert lab.cluster("status") == status
    assert Path(lab.slurm_conf).stat().st_mtime_ns == written


def test_a_job_knows_its_node_and_gpus_and_the_accounts_know_the_job(lab: Lab, overdue: str, tmp_path: Path):
    job = lab.submit(
        "srun sh -c 'echo $(hostname) $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $(getent ahostsv4 $(hostname))'",
        *("--nodes=2", "--gpus-per-node=3", "--wait"),
        output=tmp_path / "out",
    )
    rows = sorted(line.split()[:4] for line in (tmp_path / "out").read_text().splitlines())
    names = [row[0] for row in rows]
    assert len(set(names)) == 2
    assert set(names) <= {f"{lab.prefix}{number}" for number in (1, 2, 3, 4)}
    assert rows == [[name, name, "0,1,2", "127.0.0.1"] for name in names]
    lab.wait_until(lambda: lab.attempts(job) == ["COMPLETED"])
    assert "gres/gpu=6" in lab.slurm("sacct", "-n", "-P", "-X", "-j", job, "-o", "AllocTRES")


def test_partition_short_is_known_to_be_short(lab: Lab):
    assert lab.slurm("sinfo", "--noheader", "--partition=short", "--format=%l %a %D") == "10:00 up 4"
    job = lab.submit("true", "--partition=short", "--time=11")
    lab.wait_until(lambda: lab.slurm("squeue", "-h", "-j", job, "-o", "%T %r") == "PENDING PartitionTimeLimit")
    lab.slurm("scancel", job)


def test_a_job_that_takes_more_memory_than_it_asked_for_is_killed(lab: Lab):
    if "unlimited" in lab.try_cluster("status").stdout:
        pytest.skip("version 1 of cgroups is not mounted")
    job = lab.submit("srun python3 -c \"len(b'x' * 2**29)\"", "--mem=200")
    lab.wait_until(lambda: "OUT_OF_MEMORY" in lab.slurm("sacct", "-n", "-P", "-j", job, "-o", "State"))


WAITS = """
[ "$SLURM_RESTART_COUNT" ] && echo again && exit
trap "echo asked" USR2
echo began
sleep 600 & wait
sleep 600
"""


def test_preempted_jobs_are_asked_and_then_requeued_or_cancelled(lab: Lab, orphan: object, tmp_path: Path):
    nodes = {"preempt": f"{lab.prefix}1", "killable": f"{lab.prefix}2"}
    options = ("--gpus-per-node=6", "--signal=B:USR2@60", "--open-mode=append")
    low = {
        name: lab.submit(WAITS, f"--partition={name}", f"--nodelist={node}", *options, output=tmp_path / name)
        for name, node in nodes.items()
    }
    lab.wait_until(lambda: all((tmp_path / name).exists() and words(tmp_path / name) for name in low))
    high = lab.submit("true", f"--nodelist={lab.prefix}[1-2]", "--gpus-per-node=6")
    lab.wait_for(low["preempt"], "COMPLETED")
    assert lab.state(high) == "COMPLETED"
    assert lab.state(low["killable"]) == "PREEMPTED"
    assert words(tmp_path / "preempt") == ["began", "asked", "again"]
    assert words(tmp_path / "killable") == ["began", "asked"]
    lab.wait_until(lambda: lab.attempts(low["preempt"]) == ["PREEMPTED", "COMPLETED"])


def words(output: Path) -> list[str]:
    return [line for line in output.read_text().splitlines() if line in ("began", "asked", "again")]


def test_a_job_on_a_node_that_dies_runs_again_elsewhere(lab: Lab, orphan: tuple[str, Path]):
    job, output = orphan
    assert "4321" not in sleepers()
    assert lab.try_cluster("status").returncode == 1
    lab.wait_for(job, "COMPLETED")
    first, second = output.read_text().split()
    assert {first, second} == {f"{lab.prefix}3", f"{lab.prefix}4"}
    lab.cluster("start-node", first)
    lab.wait_until(lambda: lab.try_cluster("status").returncode == 0)


def test_jobs_survive_a_controller_that_stops(lab: Lab, tmp_path: Path):
    job = lab.submit(f"until [ -e {tmp_path}/go ]; do sleep 0.2; done")
    lab.wait_for(job, "RUNNING")
    lab.cluster("stop-ctl")
    assert "slurmctld  stopped" in lab.try_cluster("status").stdout
    lab.cluster("start-ctl")
    assert lab.state(job) == "RUNNING"
    lab.cluster("restart-ctl")
    (tmp_path / "go").touch()
    lab.wait_for(job, "COMPLETED")
    assert lab.slurm("scontrol", "-o", "show", "job", job).count(" Restarts=0 ") == 1


def test_a_job_is_ended_when_its_time_is_up(lab: Lab, overdue: str):
    lab.wait_for(overdue, "TIMEOUT")


def test_a_folder_of_somebody_elses_is_neither_filled_nor_deleted(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    for verb in ("up", "down"):
        refused = Lab(tmp_path, prefix="other").try_cluster(verb)
        assert refused.returncode == 1
        assert f"{tmp_path} " in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_clusters_do_not_share_names_of_nodes(lab: Lab, tmp_path: Path):
    second = Lab(tmp_path / "second", lab.prefix)
    try:
        refused = second.try_cluster("up")
        assert refused.returncode == 1
        assert "PRISM_SLURM_PREFIX" in refused.stderr
        assert not second.folder.exists()
    finally:
        second.cluster("down")


def test_an_empty_name_of_the_folder_is_not_the_shared_cluster():
    # Verbs that would do no harm if they were not refused.
    for verb in ("status", "env"):
        done = subprocess.run(
            [CLUSTER, verb], env=os.environ | {"PRISM_SLURM_LAB": ""}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "PRISM_SLURM_LAB is ''" in done.stderr
        assert done.stdout == ""


def test_all_daemons_killed_as_by_a_reboot_come_up_again(lab: Lab):
    done = lab.submit("true")
    lab.wait_until(lambda: lab.attempts(done) == ["COMPLETED"])
    for process in processes_of(lab):
        os.kill(process, signal.SIGKILL)
    lab.cluster("up")
    lab.submit("true", "--nodes=4", "--wait")
    # A controller that was killed may not have written down that the job ended; then it runs once more.
    assert "COMPLETED" in lab.attempts(done)


def test_the_last_one_down_leaves_nothing_of_a_cluster_in_pieces(lab: Lab, before: dict[str, bytes | None]):
    lab.submit("setsid sleep 5432 & srun sleep 5432", "--nodes=4")
    lab.wait_until(lambda: sleepers().count("5432") == 5)
    lab.cluster("kill-node", f"{lab.prefix}2")
    for name in ("slurmctld", "munged"):
        pid = next(line.split()[-1] for line in lab.try_cluster("status").stdout.splitlines() if line.startswith(name))
        os.kill(int(pid), signal.SIGKILL)
    assert "5432" in sleepers()
    lab.cluster("down")
    assert "5432" not in sleepers()
    assert processes_of(lab) == []
    assert not lab.folder.exists()
    assert mounts_of(lab) == []
    assert cgroups_of(lab) == []
    assert files_of_others() == before
    lab.cluster("down")
