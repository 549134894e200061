"""Following a study until nothing changes by itself any more."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from desk import GRID, Desk
from ends import done, failed
from rich.console import Console
from rich.text import Text

from prism_sweeps.commands import watching
from prism_sweeps.commands.opening import read_outline


def in_turn(*steps: Callable[[], object]) -> Callable[[float], None]:
    """A pause in which the next of these happens."""
    left = list(steps)

    def pause(seconds: float) -> None:
        assert left, "it should have ended"
        left.pop(0)()

    return pause


def all_done(desk: Desk) -> None:
    plan = desk.plan()
    done(desk.store, *(job for name, job in plan.jobs.items() if desk.store.job(name).state()["status"] != "done"))
    for name in [name for name, job in desk.slurm.live().items() if not job["name"].endswith("-report")]:
        desk.slurm.finish(name)


def test_a_pipe_gets_a_line_for_every_change_and_no_other(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    written = io.StringIO()
    pause = in_turn(lambda: None, lambda: done(desk.store, job), lambda: all_done(desk))
    found = watching.follow(desk.store, read_outline(desk.store, "nano/tiny"), 1.0, watching.LineScreen(written), pause)
    lines = written.getvalue().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["14 queued jobs", "13 queued, 1 done jobs", "14 done jobs"]
    assert found.counts() == {"done": 14}


def test_failures_are_told_when_they_happen(desk: Desk) -> None:
    desk.sweep()
    job = desk.train()
    written = io.StringIO()

    def fail() -> None:
        failed(desk.store, job, final=True)
        desk.slurm.cancel(*(name for name in desk.slurm.live()))

    watching.follow(desk.store, read_outline(desk.store, "nano/tiny"), 1.0, watching.LineScreen(written), in_turn(fail))
    assert f"failed {job.title}: RuntimeError: no such luck" in written.getvalue()


def test_between_two_jobs_of_a_local_sweep_it_looks_once_more(desk: Desk) -> None:
    from prism_sweeps.planning.plan import make_plan

    plan = make_plan(list(GRID))
    desk.store.study(plan.study).write_plan(plan.to_plain())
    done(desk.store, desk.train())
    outline = read_outline(desk.store, "nano/tiny")

    def follow(*steps: Callable[[], object]) -> dict[str, int]:
        screen = watching.LineScreen(io.StringIO())
        return watching.follow(desk.store, outline, 1.0, screen, in_turn(*steps)).counts()

    with pytest.raises(AssertionError, match="should have ended"):
        follow()
    assert follow(lambda: None) == {"new": 13, "done": 1}
    assert follow(lambda: all_done(desk)) == {"done": 14}


@pytest.mark.parametrize(("bad", "code"), [(False, 0), (True, 1)])
def test_sweep_waits_and_its_exit_code_tells_how_it_went(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, bad: bool, code: int
) -> None:
    def pause(seconds: float) -> None:
        if bad:
            failed(desk.store, desk.train(), final=True)
            desk.slurm.cancel(*desk.slurm.live())
        else:
            all_done(desk)

    follow = watching.follow
    monkeypatch.setattr(watching, "follow", lambda *given: follow(*given, pause))
    said = desk.prism("sweep", *GRID, "cluster=slurm", "--wait")
    assert said.code == code
    assert "14 jobs submitted" in said.out
    assert ("RuntimeError: no such luck" in said.out) is bad
    assert desk.updated == ["nano/tiny"]


def test_ctrl_c_leaves_the_jobs_and_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "follow", interrupt)
    said = desk.prism("sweep", *GRID, "cluster=slurm", "--wait")
    assert said.code == 130
    assert "the jobs go on" in said.err
    assert "prism status nano/tiny --watch" in said.err
    assert desk.slurm.live()


def test_status_watch_tells_by_its_exit_code(desk: Desk) -> None:
    desk.sweep()
    all_done(desk)
    assert desk.prism("status", "nano/tiny", "--watch", "1").code == 0
    assert desk.prism("status", "nano/tiny", "--watch", "1", "--json").json["counts"] == {"done": 14}


def test_the_live_table_fits_the_screen(desk: Desk) -> None:
    desk.sweep()
    written = io.StringIO()
    screen = watching.LiveScreen(Console(file=written, force_terminal=True, width=160, height=20))
    outline = read_outline(desk.store, "nano/tiny")
    watching.follow(desk.store, outline, 1.0, screen, in_turn(lambda: all_done(desk)))
    plain = Text.from_ansi(written.getvalue()).plain
    assert "14 queued jobs" in plain
    assert "Ctrl-C stops watching" in plain


def test_a_pause_that_is_none_is_refused(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        desk.prism("status", "--watch", "nano/tiny")
    assert "STUDY stands before --watch" in capsys.readouterr().err
