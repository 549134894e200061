"""prism logs: by whatever a job is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from desk import Desk
from ends import begun, done, failed

from prism_sweeps.commands import logs
from prism_sweeps.launching.outputs import written_since
from prism_sweeps.planning.outline import outlined
from prism_sweeps.tracking import submissions


def written(desk: Desk) -> tuple[str, str]:
    """A training job with a log of its own and SLURM's output: its fingerprint and SLURM id."""
    job = desk.train()
    slurm_id = desk.slurm_id(job)
    desk.slurm.start(slurm_id)
    begun(desk.store, job).log.write_text("".join(f"own {number}\n" for number in range(100)))
    for rank in range(2):
        output = desk.store.root / "slurm/nano/tiny" / f"{slurm_id}_{rank}_log.out"
        output.write_text(f"of process {rank}\n")
    return job.fingerprint, slurm_id


def test_a_job_has_its_log_and_slurms_output(desk: Desk) -> None:
    desk.sweep()
    name, slurm_id = written(desk)
    for what in (name, name[:4], slurm_id):
        said = desk.prism("logs", what, "-n", "3")
        assert said.code == 0, said.err
        assert "own 97\nown 98\nown 99" in said.out
        assert "own 96" not in said.out
        assert f"==> {desk.store.job(name).log} <==" in said.out
        assert "of process 0" in said.out
        assert "of process 1" in said.out


def test_a_cell_has_those_of_all_its_jobs(desk: Desk) -> None:
    desk.sweep()
    name, _ = written(desk)
    cell = desk.cell()
    desk.store.job(cell.evaluate[0]).path.mkdir(parents=True)
    desk.store.job(cell.evaluate[0]).log.write_text("of the evaluation\n")
    said = desk.prism("logs", cell.id[:6], "--study", "nano/tiny")
    assert name in said.out
    assert "of the evaluation" in said.out


def test_a_study_shows_what_failed(desk: Desk) -> None:
    desk.sweep()
    assert "nothing of nano/tiny has failed" in desk.prism("logs", "nano/tiny").out
    name, slurm_id = written(desk)
    failed(desk.store, desk.plan().jobs[name], final=True)
    desk.slurm.finish(slurm_id, "FAILED", "1:0")
    shown = desk.prism("logs", "nano/tiny").out
    assert "own 99" in shown
    assert shown.count("==>") == 3


def test_the_report_job_has_a_log_too(desk: Desk) -> None:
    desk.sweep()
    (report,) = submissions.read(desk.store.root).last_jobs["nano/tiny"]
    (desk.store.root / "slurm/nano/tiny" / f"{report}_0_log.out").write_text("13 jobs submitted again\n")
    assert "13 jobs submitted again" in desk.prism("logs", report).out


def test_a_job_that_has_written_nothing(desk: Desk) -> None:
    desk.sweep()
    assert "nothing written yet" in desk.prism("logs", desk.train().fingerprint).out


@pytest.mark.parametrize("what", ["zzzz", "abc", "99999"])
def test_what_is_nothing_is_told(desk: Desk, what: str) -> None:
    desk.sweep()
    said = desk.prism("logs", what)
    assert said.code == 2
    assert f"'{what}' is no study, cell, job or SLURM id" in said.err


def test_a_study_cannot_be_followed(desk: Desk) -> None:
    desk.sweep()
    said = desk.prism("logs", "nano/tiny", "-f")
    assert said.code == 2
    assert "name a cell, a job" in said.err


def test_following_goes_on_over_attempts_until_the_job_has_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.sweep()
    name, slurm_id = written(desk)
    job = desk.plan().jobs[name]
    record = desk.store.job(name)
    monkeypatch.setattr(logs, "LOOKS", 1)

    def add(text: str) -> None:
        with record.log.open("a") as log:
            log.write(text)

    def again() -> None:
        desk.slurm.again(slurm_id)
        add("interrupted\n")

    def end() -> None:
        add("and last\n")
        done(desk.store, job)
        desk.slurm.finish(slurm_id)

    steps: list[Callable[[], None]] = [lambda: add("more\n"), again, lambda: desk.slurm.start(slurm_id), end]
    outline = outlined(desk.plan())
    jobs = {name: outline.jobs[name]}
    desk.capture.readouterr()
    logs.follow(desk.store, jobs, lambda: logs.paths_of(jobs, desk.store), lambda seconds: steps.pop(0)())
    said = desk.capture.readouterr()
    assert not steps
    assert [line for line in said.out.splitlines() if "==>" not in line] == ["more", "interrupted", "and last"]
    assert f"{job.title} done" in said.err


def test_a_file_that_became_shorter_is_read_from_its_start(desk: Desk) -> None:
    path = desk.store.root / "x"
    path.write_text("abcdef")
    assert written_since(path, 4) == ("ef", 6)
    path.write_text("xy")
    assert written_since(path, 6) == ("xy", 2)
    assert written_since(desk.store.root / "none", 6) == ("", 0)
