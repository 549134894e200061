"""prism clean: what may go, what must stay, and nothing through links."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from desk import GRID, Desk
from ends import begun, done, interrupted

from prism_sweeps.launching import leftovers
from prism_sweeps.launching.leftovers import files_of, inside, size_of
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions


def finished(desk: Desk) -> Plan:
    """A study that has run to its end, with checkpoints left and a snapshot of the code."""
    plan = desk.sweep()
    (desk.store.root / "snapshots/now").mkdir(parents=True)
    (desk.store.root / "snapshots/now/code.py").write_text("x" * 1000)
    end(desk, plan)
    return plan


def end(desk: Desk, plan: Plan) -> None:
    done(desk.store, *plan.jobs.values())
    for job in plan.jobs.values():
        checkpoint = desk.store.job(job.fingerprint).checkpoints / "step-00000010"
        if job.kind == "train":
            checkpoint.mkdir(parents=True)
            (checkpoint / "model").write_bytes(b"x" * 5000)
            (desk.store.job(job.fingerprint).weights / "llm.safetensors").write_bytes(b"x" * 7000)
    for slurm_id in list(desk.slurm.live()):
        desk.slurm.finish(slurm_id)


def totals(desk: Desk, *options: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = desk.prism("clean", "nano/tiny", "--json", *options).json["totals"]
    return found


def test_it_shows_sizes_and_removes_nothing_by_itself(desk: Desk) -> None:
    plan = finished(desk)
    found = totals(desk)
    assert found["checkpoints"] == {"count": 6, "bytes": 6 * 5000}
    assert found["snapshots"] == {"count": 1, "bytes": 1000}
    assert found["slurm"]["count"] > 10
    assert set(found) == {"checkpoints", "snapshots", "slurm"}
    said = desk.prism("clean", "nano/tiny")
    assert "30 kB" in said.out
    assert "--weights, --unused, --features" in said.out
    assert "nothing was removed" in said.out
    assert totals(desk) == found
    assert desk.store.job(desk.train().fingerprint).checkpoints.is_dir()
    assert plan.jobs


def test_yes_removes_it_and_keeps_what_counts(desk: Desk) -> None:
    plan = finished(desk)
    (desk.store.root / "slurm/nano/tiny/notes.txt").write_text("mine")
    said = desk.prism("clean", "nano/tiny", "--yes")
    assert said.code == 0, said.err
    assert "freed" in said.out
    assert totals(desk) == {}
    for job in plan.jobs.values():
        record = desk.store.job(job.fingerprint)
        assert record.state()["status"] == "done"
        assert not record.checkpoints.exists()
        assert job.kind == "evaluate" or (record.weights / "llm.safetensors").exists()
    assert not (desk.store.root / "snapshots/now").exists()
    assert [path.name for path in (desk.store.root / "slurm/nano/tiny").iterdir()] == ["notes.txt"]
    assert desk.prism("status", "nano/tiny", "--json").json["counts"] == {"done": len(plan.jobs)}


def test_what_is_running_or_queued_is_left_alone(desk: Desk) -> None:
    desk.sweep()
    (desk.store.root / "snapshots/now").mkdir(parents=True)
    (desk.store.root / "snapshots/old").mkdir(parents=True)
    job = desk.train()
    desk.slurm.start(desk.slurm_id(job))
    record = begun(desk.store, job)
    (record.checkpoints / "step-1").mkdir(parents=True)
    (record.path / "weights.tmp-1").mkdir()
    found = desk.prism("clean", "nano/tiny", "--weights", "--unused", "--json").json
    assert [Path(each["path"]).name for each in found["can_go"]] == ["old"]


def test_leftovers_of_a_killed_attempt_go(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    record = interrupted(desk.store, job)
    desk.prism("cancel", "nano/tiny", "--yes")
    (record.path / "weights.tmp-1").mkdir()
    (record.checkpoints / "step-1").mkdir(parents=True)
    assert totals(desk)["leftovers"]["count"] == 1
    desk.prism("clean", "nano/tiny", "--yes")
    assert not (record.path / "weights.tmp-1").exists()
    assert (record.checkpoints / "step-1").exists()  # it goes on from there


def test_weights_go_once_all_that_starts_from_them_is_done(desk: Desk) -> None:
    plan = finished(desk)
    assert totals(desk, "--weights")["weights"] == {"count": 6, "bytes": 6 * 7000}
    assert desk.prism("sweep", *GRID, "cluster=slurm", "suite.conditions=[blank]", "--name", "more").code == 0
    open_parents = {name for job in desk.plan("more").jobs.values() if job.kind == "evaluate" for name in job.parents}
    found = desk.prism("clean", "nano/tiny", "--weights", "--json", "--yes").json
    aligned = {name for name, job in plan.jobs.items() if job.kind == "train"} - open_parents
    assert {Path(each["path"]).parent.name for each in found["can_go"] if each["kind"] == "weights"} == aligned
    assert aligned
    for name in open_parents:
        assert (desk.store.job(name).weights / "llm.safetensors").exists()


def test_records_that_no_study_needs_go(desk: Desk) -> None:
    before = finished(desk)
    assert desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip").code == 0
    gone = set(before.jobs) - set(desk.plan().jobs)
    assert totals(desk, "--unused")["unused"]["count"] == len(gone) == 7
    half = desk.store.root / "jobs" / ".0123456789abcdef.77.tmp"
    half.mkdir()
    desk.prism("clean", "nano/tiny", "--unused", "--yes")
    assert {path.name for path in (desk.store.root / "jobs").iterdir()} == set(desk.plan().jobs)


def test_answers_that_no_record_leads_to_go(desk: Desk) -> None:
    plan = finished(desk)
    kept, gone, orphan = folders(desk, "abc")
    scored = [name for name, job in plan.jobs.items() if job.kind == "evaluate"]
    desk.store.job(scored[0]).answers.symlink_to("../../answers/" + "a" * 16)
    stale = desk.store.job("f" * 16)
    stale.path.mkdir()
    stale.answers.symlink_to("../../answers/" + "b" * 16)
    desk.prism("clean", "nano/tiny", "--unused", "--yes")
    assert [path.exists() for path in (kept, gone, orphan, stale.path)] == [True, False, False, False]


def folders(desk: Desk, names: str) -> list[Path]:
    made = [desk.store.root / "answers" / (name * 16) for name in names]
    for each in made:
        each.mkdir(parents=True)
        (each / "writer.jsonl").write_text("{}\n")
    return made


def test_unused_records_in_the_queue_or_at_work_stay(desk: Desk) -> None:
    desk.sweep()
    begun(desk.store, desk.train(backbone="nano-in1k"))
    other = desk.train(1, backbone="nano-in1k", stages="nano-two-stage")
    assert desk.prism("sweep", *GRID, "cluster=slurm", "backbone=nano-clip").code == 0
    assert "unused" not in totals(desk, "--unused")
    desk.prism("cancel", "nano/tiny", "--removed", "--yes")
    record = begun(desk.store, other)
    descriptor = os.open(record.path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert totals(desk, "--unused")["unused"]["count"] == 1
    os.close(descriptor)
    assert totals(desk, "--unused")["unused"]["count"] == 2


def test_a_job_that_begins_meanwhile_is_left(desk: Desk) -> None:
    finished(desk)
    record = desk.store.job(desk.train().fingerprint)
    descriptor = os.open(record.path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    said = desk.prism("clean", "nano/tiny", "--yes")
    os.close(descriptor)
    assert "1 left, for somebody is at their jobs now" in said.out
    assert record.checkpoints.is_dir()


def test_nothing_goes_through_links(desk: Desk, tmp_path: Path) -> None:
    finished(desk)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    record = desk.store.job(desk.train().fingerprint)
    leftovers.shutil.rmtree(record.checkpoints)
    record.checkpoints.symlink_to(elsewhere)
    (desk.store.root / "snapshots/link").symlink_to(elsewhere)
    (desk.store.root / "features").symlink_to(elsewhere)
    said = desk.prism("clean", "nano/tiny", "--features", "--yes")
    assert said.code == 0, said.err
    assert (elsewhere / "mine").read_text() == "mine"
    assert record.checkpoints.is_symlink()
    assert (desk.store.root / "features").is_symlink()


def test_a_link_within_a_folder_is_not_followed_and_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 9000)
    folder = tmp_path / "store/folder"
    folder.mkdir(parents=True)
    (folder / "own").write_bytes(b"x" * 10)
    (folder / "link").symlink_to(tmp_path / "big")
    assert size_of(folder) == 10
    root = tmp_path / "store"
    (root / "away").symlink_to(tmp_path)
    assert inside(root, folder)
    assert not inside(root, root / "away" / "big")
    assert not inside(root, root)
    assert not inside(root, tmp_path / "big")


def test_features_are_listed_and_go_only_when_asked(desk: Desk) -> None:
    finished(desk)
    (desk.store.root / "features/key").mkdir(parents=True)
    (desk.store.root / "features/key/0.safetensors").write_bytes(b"x" * 3000)
    assert "features" not in totals(desk)
    assert desk.prism("clean", "nano/tiny", "--json").json["besides"]["features"] == 3000
    assert totals(desk, "--features")["features"] == {"count": 1, "bytes": 3000}
    record = begun(desk.store, desk.train())
    descriptor = os.open(record.path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    said = desk.prism("clean", "nano/tiny", "--features", "--yes")
    os.close(descriptor)
    assert f"features stay: job {desk.train().fingerprint} is running" in said.err
    assert (desk.store.root / "features/key/0.safetensors").exists()


def test_without_slurm_what_it_may_use_stays(desk: Desk) -> None:
    finished(desk)
    desk.slurm.down(times=100)
    said = desk.prism("clean", "nano/tiny", "--unused", "--yes")
    assert "SLURM does not answer" in said.err
    assert (desk.store.root / "snapshots/now").is_dir()
    assert list((desk.store.root / "slurm/nano/tiny").glob("*.pkl"))
    assert not desk.store.job(desk.train().fingerprint).checkpoints.exists()


def test_a_snapshot_of_unknown_use_stays(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.sweep()
    (desk.store.root / "snapshots/old").mkdir(parents=True)
    journal = submissions.read(desk.store.root)
    queue = leftovers.queue_of(journal)
    assert queue
    assert [each.path.name for each in leftovers.old_snapshots(desk.store, journal, queue)] == ["old"]
    journal.snapshots[next(iter(queue))] = ""
    assert leftovers.old_snapshots(desk.store, journal, queue) == []


def test_files_of_an_array_go_task_by_task_and_the_rest_with_the_last() -> None:
    names = ["7_0_0_log.out", "7_0_submitted.pkl", "7_1_submitted.pkl", "7_submission.sh", "70_submitted.pkl", "x"]
    files = [Path(name) for name in names]
    assert {path.name for path in files_of(files, ["7_0"])} == {"7_0_0_log.out", "7_0_submitted.pkl"}
    assert {path.name for path in files_of(files, ["7_0", "7_1"])} == set(names[:4])
    assert {path.name for path in files_of(files, ["70"])} == {"70_submitted.pkl"}
    assert files_of(files, ["1"]) == set()
