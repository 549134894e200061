"""prism cancel: what it takes out of the queue, what ends with it, and what it leaves to others."""

from __future__ import annotations

import fcntl
import os

import pytest
from desk import GRID, Desk
from ends import begun, done

from prism_sweeps.commands import output, submitting
from prism_sweeps.tracking import submissions


def live(desk: Desk) -> set[str]:
    return set(desk.slurm.live())


def test_a_study_leaves_the_queue_with_its_report(desk: Desk) -> None:
    plan = desk.sweep()
    first = desk.train()
    desk.slurm.start(desk.slurm_id(first))
    said = desk.prism("cancel", "nano/tiny", "--yes")
    assert said.code == 0
    assert "running: a checkpoint is written first" in said.out
    assert f"{len(plan.jobs)} jobs cancelled and the report job" in said.out
    assert not live(desk)
    assert desk.prism("status", "nano/tiny", "--json").json["counts"].get("cancelled")


def test_the_report_is_cancelled_before_what_it_waits_for(desk: Desk) -> None:
    desk.sweep()
    (report,) = submissions.read(desk.store.root).last_jobs["nano/tiny"]
    desk.prism("cancel", "nano/tiny", "--yes")
    assert report in desk.slurm.calls("scancel")[0]
    assert len(desk.slurm.calls("scancel")) == 2


def test_nobody_can_be_asked_in_a_pipe(desk: Desk) -> None:
    desk.sweep()
    before = live(desk)
    said = desk.prism("cancel", "nano/tiny")
    assert said.code == 2
    assert "say --yes" in said.err
    assert live(desk) == before


@pytest.mark.parametrize(("answer", "cancelled"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_on_a_terminal_it_asks(desk: Desk, monkeypatch: pytest.MonkeyPatch, answer: str, cancelled: bool) -> None:
    desk.sweep()
    terminal(monkeypatch, answer)
    said = desk.prism("cancel", "nano/tiny")
    assert "cancel 14 jobs in 10 allocations? [y/N]" in said.err
    assert bool(live(desk)) is not cancelled


def terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Somebody who gives this answer."""

    class Somebody:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.setattr("sys.stdin", Somebody())
    for module in (output, submitting):
        monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)


def test_a_cell_leaves_what_other_cells_need(desk: Desk) -> None:
    desk.sweep("stages=nano-two-stage", "tuning=full,lora")
    shared = desk.train()
    one = next(cell for cell in desk.plan().cells if cell.overrides == {"tuning": "lora"})
    assert shared.fingerprint in one.train
    said = desk.prism("cancel", "nano/tiny", "--cell", one.id, "--yes")
    assert said.code == 0, said.err
    assert f"SLURM job {desk.slurm_id(shared)} stays" in said.out
    assert "--even-shared cancels it" in said.out
    assert desk.slurm_id(shared) in live(desk)
    assert desk.slurm_id(one.train[-1]) not in live(desk)
    assert submissions.read(desk.store.root).last_jobs["nano/tiny"][0] in live(desk)
    desk.prism("cancel", "nano/tiny", "--cell", one.id, "--even-shared", "--yes")
    assert desk.slurm_id(shared) not in live(desk)


def test_what_another_study_needs_stays(desk: Desk) -> None:
    desk.sweep()
    assert desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip", "--name", "other").code == 0
    theirs = {desk.slurm_id(name) for name in desk.plan("other").jobs}
    assert theirs < live(desk)
    said = desk.prism("cancel", "nano/tiny", "--yes", "--json").json
    assert {tuple(each["needed_by"]) for each in said["kept"]} == {("study other",)}
    assert (
        {each["slurm_id"] for each in said["kept"]}
        == theirs
        == live(desk) - {name for name, job in desk.slurm.live().items() if job["name"].endswith("-report")}
    )
    assert said["report_jobs"] == []
    said = desk.prism("cancel", "nano/tiny", "--yes", "--even-shared", "--json").json
    assert {each["slurm_id"] for each in said["cancelled"]} == theirs


def test_one_job_of_an_allocation_ends_the_others(desk: Desk) -> None:
    desk.sweep("cluster.jobs_per_allocation=4")
    job = desk.train()
    other = desk.train(backbone="nano-in1k")
    assert desk.slurm_id(job) == desk.slurm_id(other)
    said = desk.prism("cancel", "nano/tiny", "--job", job.fingerprint[:8], "--yes")
    assert "is one allocation: with it end also" in said.out
    assert other.title in said.out
    assert desk.slurm_id(job) not in live(desk)


def test_jobs_are_called_by_slurms_number_too(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    said = desk.prism("cancel", "nano/tiny", "--job", desk.slurm_id(job), "--yes", "--json").json
    assert [each["jobs"] for each in said["cancelled"]] == [[job.fingerprint]]
    said = desk.prism("cancel", "nano/tiny", "--job", "ffffffff")
    assert said.code == 2
    assert "no job 'ffffffff' in nano/tiny" in said.err


def test_done_jobs_are_none_to_cancel(desk: Desk) -> None:
    plan = desk.sweep()
    done(desk.store, *plan.jobs.values())
    said = desk.prism("cancel", "nano/tiny", "--yes")
    assert said.code == 0
    assert "nothing of nano/tiny to cancel" in said.out


def test_a_local_job_is_its_terminals(desk: Desk) -> None:
    from prism_sweeps.planning.plan import make_plan

    plan = make_plan(list(GRID))
    desk.store.study(plan.study).write_plan(plan.to_plain())
    record = begun(desk.store, desk.train())
    descriptor = os.open(record.path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    said = desk.prism("cancel", "nano/tiny")
    os.close(descriptor)
    assert said.code == 0
    assert f"process {os.getpid()} on" in said.out
    assert "Ctrl-C in its terminal" in said.out


def test_nothing_is_cancelled_while_slurm_is_down(desk: Desk) -> None:
    desk.sweep()
    desk.slurm.down(times=100)
    said = desk.prism("cancel", "nano/tiny", "--yes")
    assert said.code == 2
    assert "squeue" in said.err


# ---- removed cells


def removed(desk: Desk) -> set[str]:
    """Sweeps both towers, then one; the jobs that are in the queue for nothing."""
    before = desk.sweep()
    said = desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip")
    assert said.code == 0, said.err
    gone = set(before.jobs) - set(desk.plan().jobs)
    assert len(gone) == 7
    assert "7 jobs of removed cells still queued or running; to cancel: prism cancel nano/tiny --removed" in said.out
    return gone


def test_jobs_of_removed_cells_are_cancelled_alone(desk: Desk) -> None:
    gone = removed(desk)
    assert set(desk.prism("status", "nano/tiny", "--json").json["removed"]) == gone
    said = desk.prism("cancel", "nano/tiny", "--removed", "--yes")
    assert said.code == 0, said.err
    newest = submissions.read(desk.store.root).newest()
    assert not {newest[name].slurm_id for name in gone} & live(desk)
    assert {newest[name].slurm_id for name in desk.plan().jobs} <= live(desk)
    assert "of removed cells" not in desk.prism("status", "nano/tiny").out


def test_removed_jobs_that_another_study_needs_are_none(desk: Desk) -> None:
    desk.sweep()
    assert desk.prism("sweep", *GRID, "cluster=slurm", "--name", "other").code == 0
    said = desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip")
    assert "of removed cells" not in said.out


def test_cells_that_come_back_are_not_removed_any_more(desk: Desk) -> None:
    removed(desk)
    assert "of removed cells" not in desk.prism("sweep", *GRID, "cluster=slurm").out
    assert desk.prism("status", "nano/tiny", "--json").json["removed"] == []


def test_on_a_terminal_a_sweep_asks_about_them(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.sweep()
    terminal(monkeypatch, "y\n")
    said = desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip")
    assert "7 jobs of removed cells are still queued or running; cancel them? [y/N]" in said.err
    assert "of removed cells" not in said.out
    assert desk.prism("status", "nano/tiny", "--json").json["removed"] == []


def test_added_cells_are_submitted_alone(desk: Desk) -> None:
    assert desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip").code == 0
    first = set(desk.plan().jobs)
    said = desk.prism("sweep", *GRID, "cluster=slurm", "--json").json
    assert set(said["submitted"]) == set(desk.plan().jobs) - first
    assert said["removed"] == []


@pytest.mark.parametrize("comment", ["prism-somebodyelse", "(null)", ""])
def test_jobs_of_a_cluster_made_anew_are_not_its_own(desk: Desk, comment: str) -> None:
    """It gives ids from the beginning again, so those of the journal may be another's jobs by now."""
    desk.sweep()
    with desk.slurm.world() as world:
        for job in world.jobs.values():
            job["comment"] = comment
    before = live(desk)
    said = desk.prism("cancel", "nano/tiny", "--yes")
    assert "nothing of nano/tiny to cancel" in said.out
    assert ("does not carry this store's mark" in said.out) is not comment.startswith("prism-")
    assert live(desk) == before
