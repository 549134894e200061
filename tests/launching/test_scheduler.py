"""SLURM's commands as data. The texts are those that SLURM 22.05.8 printed on launch/slurm/cluster.sh; where one is not
to be had there, its origin is said. `tests/slurm/test_contract.py` reads the real ones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.slurm import scheduler
from prism_sweeps.launching.slurm.scheduler import Ended, Queued, SchedulerDown


def submitted(*options: str) -> str:
    text = subprocess.run(["sbatch", *options, "--wrap=true"], check=True, capture_output=True, text=True).stdout
    return text.split()[-1]


def test_the_queue_has_tasks_one_by_one_and_comments_with_anything_in_them(slurm: FakeSlurm) -> None:
    one = submitted("--comment=prism-a|b")
    array = submitted("--array=0-2%2", "--comment=prism-c", f"--dependency=afterok:{one}")
    slurm.start(one)
    found = scheduler.queue(["root", "root"])
    assert found[one] == Queued(one, "RUNNING", "None", "n1", "prism-a|b", "root")
    assert [name for name in found if name != one] == [f"{array}_{task}" for task in range(3)]
    assert found[f"{array}_2"] == Queued(f"{array}_2", "PENDING", "Dependency", "", "prism-c", "root")
    assert found[f"{array}_2"].waiting
    assert not found[f"{array}_2"].active
    assert found[one].active


def test_ended_jobs_are_in_the_queue_until_slurm_forgets_them(slurm: FakeSlurm) -> None:
    one = submitted()
    slurm.finish(one, "FAILED", "3:0")
    assert (scheduler.queue(["root"])[one].state, scheduler.queue(["root"])[one].reason) == (
        "FAILED",
        "NonZeroExitCode",
    )
    slurm.purge()
    assert scheduler.queue(["root"]) == {}
    assert scheduler.history([one])[one] == Ended(one, "FAILED", "3:0", "n1")


def test_nobody_has_no_queue_and_an_unknown_user_does_not_hide_the_others(slurm: FakeSlurm) -> None:
    one = submitted()
    assert scheduler.queue([]) == {}
    assert not slurm.calls("squeue")
    assert list(scheduler.queue(["gone-away", "root"])) == [one]


def test_a_users_own_views_do_not_change_what_is_read(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    (slurm.bin / "squeue").write_text(f"#!/bin/sh\nenv > {seen}\n")
    for name in ("SQUEUE_PARTITION", "SQUEUE_STATES", "SACCT_FORMAT", "SINFO_FORMAT"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    scheduler.queue(["root"])
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert not names & {"SQUEUE_PARTITION", "SQUEUE_STATES", "SACCT_FORMAT", "SINFO_FORMAT"}
    assert "SLURM_CONF" in names


def test_history_is_of_the_last_attempt(slurm: FakeSlurm) -> None:
    """Rows of a requeued job, seen: 55_0|REQUEUED|0:0|n1, its steps, then 55_0|RUNNING|0:0|n2."""
    one = submitted()
    slurm.start(one)
    slurm.node_fail(one)
    with slurm.world() as world:
        world.jobs[one]["reason"] = "None"
    slurm.finish(one, "COMPLETED")
    assert scheduler.history([one])[one].state == "COMPLETED"


def test_an_out_of_memory_kill_is_found_in_the_steps(slurm: FakeSlurm) -> None:
    """Seen: 57|FAILED|1:0|n1, 57.batch|FAILED|1:0|n1, 57.0|OUT_OF_MEMORY|0:125|n1."""
    one, other = submitted(), submitted()
    slurm.finish(one, "FAILED", "1:0", step="OUT_OF_MEMORY")
    slurm.finish(other, "CANCELLED", "0:0", step="OUT_OF_MEMORY")
    found = scheduler.history([one, other])
    assert (found[one].state, found[one].exit_code) == ("OUT_OF_MEMORY", "1:0")
    assert found[other].state == "CANCELLED"


def test_who_cancelled_is_told(slurm: FakeSlurm) -> None:
    one = submitted()
    scheduler.cancel([one])
    assert (scheduler.history([one])[one].state, scheduler.history([one])[one].by) == ("CANCELLED", "0")


def test_tasks_that_never_began_share_a_row(slurm: FakeSlurm) -> None:
    """Seen: 827_[0-3%2]|CANCELLED by 0|0:0|None assigned, for --jobs=827 and not for --jobs=827_1."""
    array = submitted("--array=0-4%2")
    slurm.finish(f"{array}_1")
    scheduler.cancel([array])
    found = scheduler.history([f"{array}_0", f"{array}_1", f"{array}_4"])
    assert {name: each.state for name, each in found.items()} == {
        f"{array}_0": "CANCELLED",
        f"{array}_1": "COMPLETED",
        f"{array}_4": "CANCELLED",
    }
    assert found[f"{array}_4"].by == "0"


@pytest.mark.parametrize(
    ("row", "tasks"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-2]", ["12_0", "12_1", "12_2"]),
        ("829_[1-3,5%1]", ["829_1", "829_2", "829_3", "829_5"]),
        ("12_[7]", ["12_7"]),
    ],
)
def test_ids_of_a_row(row: str, tasks: list[str]) -> None:
    assert scheduler.tasks_in(row) == tasks


def test_a_cluster_without_accounts_has_no_history(slurm: FakeSlurm) -> None:
    """Seen, exit status 1: Slurm accounting storage is disabled."""
    one = submitted()
    slurm.set(accounts=False)
    assert scheduler.history([one]) == {}


def test_many_ids_are_asked_for_in_several_commands(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [submitted() for _ in range(5)]
    for each in ids:
        slurm.finish(each)
    monkeypatch.setattr(scheduler, "CHUNK", 2)
    assert sorted(scheduler.history(ids)) == sorted(ids)
    assert len(slurm.calls("sacct")) == 3
    scheduler.cancel(ids)
    assert [len(call) - 1 for call in slurm.calls("scancel")] == [2, 2, 1]


@pytest.mark.parametrize(
    ("text", "state", "by"),
    [("CANCELLED by 1000", "CANCELLED", "1000"), ("CANCELLED", "CANCELLED", ""), ("NODE_FAIL", "NODE_FAIL", "")],
)
def test_words_of_sacct(text: str, state: str, by: str) -> None:
    found: dict[str, Ended] = {}
    scheduler._note_attempt(found, "3", text, "0:0", "n1")
    assert (found["3"].state, found["3"].by) == (state, by)


def test_cancelling_what_is_gone_is_no_error(slurm: FakeSlurm) -> None:
    """Seen: scancel --quiet of an ended and of an unknown id says nothing and exits with 0."""
    one, array = submitted(), submitted("--array=0-1")
    scheduler.cancel([one, array, "999"])
    scheduler.cancel([one])
    assert not slurm.live()
    with pytest.raises(LaunchError, match="Invalid job id x"):
        scheduler.cancel(["x"])


@pytest.mark.parametrize(
    "text",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",  # seen, squeue
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",  # seen
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",  # slurm_errno.c
        "sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job, sleeping and retrying",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",  # slurm_errno.c
        "sinfo: error: slurm_receive_msg: Connection refused",
    ],
)
def test_what_says_that_slurm_may_answer_later(text: str, slurm: FakeSlurm) -> None:
    slurm.fault(text, "squeue", 1, prefix=False)
    with pytest.raises(SchedulerDown, match="squeue: "):
        scheduler.queue(["root"])
    assert scheduler.queue(["root"]) == {}


def test_other_errors_are_no_reason_to_wait(slurm: FakeSlurm) -> None:
    slurm.fault("squeue: error: Invalid job state specified", "squeue", 1, prefix=False)
    with pytest.raises(LaunchError, match="Invalid job state") as caught:
        scheduler.queue(["root"])
    assert not isinstance(caught.value, SchedulerDown)


def test_a_command_that_hangs_is_given_up(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    (slurm.bin / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(scheduler, "SECONDS", 0.1)
    with pytest.raises(SchedulerDown, match="squeue has not answered"):
        scheduler.queue(["root"])


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not scheduler.available()
    with pytest.raises(LaunchError, match=r"no squeue on PATH.*module load slurm.*cluster=local"):
        scheduler.queue(["root"])


def test_asking_patiently(slurm: FakeSlurm) -> None:
    said: list[str] = []
    slurm.down(times=3, command="squeue")
    assert scheduler.patiently(lambda: scheduler.queue(["root"]), said.append) == {}
    assert len(said) == 3
    assert "trying again in" in said[0]
    slurm.down(times=50, command="squeue")
    with pytest.raises(SchedulerDown):
        scheduler.patiently(lambda: scheduler.queue(["root"]), said.append)


def test_partitions(slurm: FakeSlurm) -> None:
    """The first two rows are those of launch/slurm/cluster.sh; the others follow sinfo(1): a partition of two kinds of
    nodes has two rows, %L of one that sets no default time is n/a."""
    slurm.set(
        partitions=[
            "main|main*|infinite|1:00:00|4|gpu:8|16|1/3/0/4",
            "short|short|10:00|10:00|4|gpu:8|16|1/3/0/4",
            "gpu|gpu|2-00:00:00|n/a|3|gpu:a100:4(S:0-1)|64+|1/2/0/3",
            "gpu|gpu|2-00:00:00|n/a|2|gpu:h100:8(S:0-1),nvme:2|96|1/1/0/2",
            "cpu|cpu|infinite|infinite|9|(null)|128|0/0/9/9",
        ]
    )
    found = scheduler.partitions()
    assert [name for name, each in found.items() if each.default] == ["main"]
    assert (found["main"].limit, found["main"].default_time, found["main"].gpus) == (None, 60, 8)
    assert (found["short"].limit, found["short"].default_time) == (10, 10)
    assert (found["gpu"].limit, found["gpu"].default_time, found["gpu"].nodes) == (2880, 2880, 5)
    assert (found["gpu"].gpus, found["gpu"].cpus) == (8, 96)
    assert (found["cpu"].gpus, found["cpu"].usable, found["cpu"].default_time) == (0, 0, None)


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:a100:4(S:0-1),gpu:h100:2,nvme:1", 6),
        ("nvme:4", 0),
        ("gpu:a100:4(IDX:0-3)", 4),
    ],
)
def test_gpus_of_a_node(gres: str, count: int) -> None:
    assert scheduler.gpus_in(gres) == count


def test_how_large_an_array_may_be(slurm: FakeSlurm) -> None:
    slurm.set(largest=1001)
    assert scheduler.largest_array() == 1000
    (slurm.bin / "scontrol").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(ConfigError, match="MaxArraySize"):
        scheduler.largest_array()


def test_the_double_is_used(slurm: FakeSlurm) -> None:
    scheduler.queue(["root"])
    assert slurm.calls("squeue")
    assert os.environ["PATH"].startswith(str(slurm.bin))


def test_names_that_cannot_be_looked_up_are_no_empty_queue(slurm: FakeSlurm, tmp_path: Path):
    """squeue 22.05: `squeue --user=nobody-here` prints `squeue: error: Invalid user: nobody-here` and ends with 0."""
    (slurm.bin / "squeue").write_text("#!/bin/sh\necho 'squeue: error: Invalid user: root' >&2\n")
    with pytest.raises(scheduler.SchedulerDown, match="Invalid user: root"):
        scheduler.queue(["root"])
