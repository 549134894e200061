"""What the batch script is told to do when its tasks have ended: for every way to end, and what records say then."""

from __future__ import annotations

import pytest
from ends import begun, done, failed, interrupted
from fake_jobs import score, train

from prism_sweeps.config.errors import StoreError
from prism_sweeps.config.schema import Engine, Request
from prism_sweeps.launching import run_job
from prism_sweeps.launching.run_job import last_lines
from prism_sweeps.launching.slurm.after import Attempt, answer, how, main
from prism_sweeps.launching.slurm.within import CANNOT_START
from prism_sweeps.planning.allocations import Allocation
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.files import append_rows
from prism_sweeps.tracking.records import JobRecord, Store

ONE, TWO = train("0" * 16), train("1" * 16)


def attempt(code: int, **changes: object) -> Attempt:
    usual: dict[str, object] = {"tries": 1, "seconds": 3500.0, "limit": 3600.0, "host": "n1", "retries": 2}
    return Attempt(code=code, **{**usual, **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def on_n1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "n1")


def killed(store: Store) -> JobRecord:
    """Its process is gone, and it could write nothing."""
    return begun(store, ONE)


def fails(store: Store, times: int, monkeypatch: pytest.MonkeyPatch | None = None, host: str = "n1") -> JobRecord:
    for _ in range(times):
        if monkeypatch:
            monkeypatch.setattr("socket.gethostname", lambda: host)
        record = failed(store, ONE)
    if monkeypatch:
        monkeypatch.setattr("socket.gethostname", lambda: "n1")
    return record


@pytest.mark.parametrize("code", [75, 140, 143], ids=["in order", "SIGUSR2", "SIGTERM"])
def test_told_to_make_room_it_goes_back_into_the_queue(code: int, store: Store) -> None:
    record = interrupted(store, ONE)
    assert answer(attempt(code), [record]) == "requeue"
    assert record.state()["status"] == "interrupted"
    assert record.state()["failures"] == 0


def test_told_to_make_room_before_it_began(store: Store) -> None:
    assert answer(attempt(75, seconds=5.0), [store.job(ONE.fingerprint)]) == "requeue"


@pytest.mark.parametrize("code", [1, 75, 137])
def test_nothing_is_left_to_do(code: int, store: Store) -> None:
    done(store, ONE)
    assert answer(attempt(code), [store.job(ONE.fingerprint)]) == "end"
    assert answer(attempt(code), []) == "end"  # the report job


@pytest.mark.parametrize("final", [True, False])
def test_a_failure_is_tried_again_unless_that_cannot_help(final: bool, store: Store) -> None:
    record = failed(store, ONE, "chat.json, entry 3: no image", final=final)
    assert answer(attempt(1), [record]) == ("end" if final else "again")


def test_it_is_tried_again_so_often_and_then_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for tries in (1, 2, 3):
        record = fails(store, 1, monkeypatch, host=f"n{tries}")
        answers.append(answer(attempt(1, tries=tries, host=f"n{tries}"), [record]))
    assert answers == ["again", "again", "end"]


def test_two_failures_on_one_node_send_it_to_another(store: Store) -> None:
    record = fails(store, 2)
    assert answer(attempt(1, tries=2), [record]) == "requeue n1"
    assert answer(attempt(1, tries=2, kept_away="n[1,3],m[2,3]"), [record]) == "requeue n[1,3],m[2,3],n1"
    assert answer(attempt(1, tries=2, host="n2"), [record]) == "again"


def test_it_keeps_away_from_all_such_nodes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(store, 2, monkeypatch, host="n4")
    record = fails(store, 2)
    assert answer(attempt(1, retries=5), [record]) == "requeue n1,n4"


def test_failures_that_were_forgiven_do_not_count(store: Store) -> None:
    record = fails(store, 2)
    record.forgive()
    record = fails(store, 1)
    assert answer(attempt(1), [record]) == "again"


def test_a_death_without_a_word_is_written_down(store: Store) -> None:
    record = killed(store)
    assert answer(attempt(137), [record]) == "again"
    state = record.state()
    assert (state["status"], state["failures"], state["final"]) == ("failed", 1, False)
    assert state["error"] == "its process was killed (out of memory?) on n1"
    assert "killed (out of memory?)" in last_lines(record, 1)[0]
    assert record.silence() is None


def test_what_another_process_of_the_job_has_put_down_is_the_reason(store: Store) -> None:
    record = killed(store)
    record.put_down_failure(3, "process 3 of 4: RuntimeError: CUDA error")
    answer(attempt(1), [record])
    assert record.state()["error"] == "process 3 of 4: RuntimeError: CUDA error"


class TestSeveralNodes:
    """The first node's name says nothing of where it went wrong."""

    def died(self, store: Store, monkeypatch: pytest.MonkeyPatch, where: str | None = None) -> JobRecord:
        record = killed(store)
        if where is not None:
            with monkeypatch.context() as there:
                there.setattr("socket.gethostname", lambda: where)
                record.put_down_failure(9, "process 9 of 16: RuntimeError: CUDA error")
        return record

    def test_nobody_is_blamed_where_nobody_knows(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = []
        for tries in (1, 2, 3):
            record = self.died(store, monkeypatch)
            answers.append(answer(attempt(137, tries=tries, nodes=("n1", "n2")), [record]))
        assert answers == ["again", "again", "end"]
        assert [host for host, _ in record.state()["failed_on"]] == [""] * 3
        error = "one of its processes was killed (out of memory?), on one of 2 nodes"
        assert record.state()["error"] == error

    def test_the_node_that_was_told_is_kept_away_from(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = []
        for tries in (1, 2):
            record = self.died(store, monkeypatch, "n2")
            answers.append(answer(attempt(1, tries=tries, nodes=("n1", "n2")), [record]))
        assert answers == ["again", "requeue n2"]
        assert answer(attempt(1, tries=2, nodes=("n1", "n3")), [record]) == "again"

    def test_as_slurm_says_it(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
        request = Request(nodes=2)
        batch = submissions.intend(store.root, "study", [Allocation((ONE.fingerprint,), request)], request, 5)
        for where in (None, None, "n2", "n2"):
            record = self.died(store, monkeypatch, where)
            main([str(store.root), batch, "0", "1", "1", "100", "0"])
        assert capsys.readouterr().out.splitlines() == ["again", "again", "again", "requeue n2"]
        assert [host for host, _ in record.state()["failed_on"]] == ["", "", "n2", "n2"]


@pytest.mark.parametrize(
    ("nodes", "text", "told", "host"),
    [
        ("2", "Connection closed by peer", False, ""),
        ("2", "Connection closed by peer", True, "n2"),
        ("2", "CUDA error", False, "n1"),
        ("1", "Connection closed by peer", False, "n1"),
    ],
)
def test_what_the_first_process_sees_of_it(
    nodes: str, text: str, told: bool, host: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = store.job(ONE.fingerprint)

    def work(*_: object) -> dict[str, object]:
        if told:
            monkeypatch.setattr("socket.gethostname", lambda: "n2")
            record.put_down_failure(9, "process 9 of 16: CUDA error")
        raise RuntimeError(text)

    monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
    monkeypatch.setattr(run_job, "work_to_do", lambda job, world: work)
    monkeypatch.setattr(run_job, "check_parents", lambda *_: None)
    with pytest.raises(RuntimeError):
        run_job.run_job(ONE, store, Engine(), lambda *_: None, lambda: False)
    assert [where for where, _ in record.state()["failed_on"]] == [host]


def test_the_others_hear_of_no_job_that_cannot_be_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would go on with it alone, and take what the first process says of the next one for a part of it."""

    class Others:
        size, heard = 2, list[object]()

        def told_by_first(self, message: object) -> None:
            self.heard.append(message)

    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(run_job, "work_to_do", lambda job, world: lambda *_: {"n": 0})
    monkeypatch.setattr(run_job, "check_parents", lambda *_: None)
    world = Others()
    with monkeypatch.context() as broken:
        broken.setattr(JobRecord, "beat", full)
        with pytest.raises(StoreError):
            run_job.run_job(ONE, store, Engine(), lambda *_: None, lambda: False, world)  # type: ignore[arg-type]
    assert world.heard == []
    monkeypatch.setattr(run_job, "remember_speed", lambda *_: None)
    run_job.run_job(ONE, store, Engine(), lambda *_: None, lambda: False, world)  # type: ignore[arg-type]
    assert world.heard == [ONE.fingerprint]


def test_a_job_that_somebody_else_has_taken_up_is_left_alone(store: Store) -> None:
    record = killed(store)
    with JobRecord(record.path).claim():
        assert answer(attempt(137), [record]) == "again"
    assert record.state()["failures"] == 0


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "ended with exit code 1"),
        (7, "ended with exit code 7"),
        (128 + 9, "was killed (out of memory?)"),
        (128 + 6, "was killed by signal 6"),
        (128 + 11, "was killed by signal 11"),
    ],
)
def test_exit_codes_in_words(code: int, text: str) -> None:
    assert how(code) == text


def test_tasks_that_die_before_they_begin_a_job(store: Store) -> None:
    """A broken environment, a missing module: so often as a job is tried, no more."""
    record = store.job(ONE.fingerprint)
    answers = [answer(attempt(1, tries=tries), [record]) for tries in (1, 2, 3)]
    assert answers == ["again", "again", "end"]
    assert record.state()["status"] == "new"


def test_also_when_they_do_so_after_a_failure(store: Store) -> None:
    record = fails(store, 1)
    assert [answer(attempt(1, tries=tries), [record]) for tries in (1, 2, 3, 4)] == ["again", "again", "again", "end"]


def test_one_of_several_that_fails_for_good_fails_alone(store: Store) -> None:
    """The evaluations of a model share an allocation: its last tries were spent on the first of them."""
    bad = fails(store, 3)
    others = [store.job(TWO.fingerprint), store.job("2" * 16)]
    assert answer(attempt(1, tries=3), [bad, *others]) == "again"
    failed(store, TWO, final=True)
    assert answer(attempt(1, tries=4), [bad, *others]) == "again"
    failed(store, score("2" * 16, ONE.fingerprint), final=True)
    assert answer(attempt(1, tries=5), [bad, *others]) == "end"


def test_stopped_with_nothing_left_but_failures(store: Store) -> None:
    bad = fails(store, 3)
    assert answer(attempt(75), [bad]) == "end"
    assert bad.state()["error"] == "RuntimeError: no such luck"
    assert answer(attempt(75), [bad, store.job(TWO.fingerprint)]) == "requeue"


class TestKilledBeforeTheyBegan:
    """One task of several ends at once, and `srun` kills the first, which is still starting."""

    def ask(self, code: int, restarts: int, *jobs: JobRecord) -> str:
        return answer(attempt(code, seconds=20.0, restarts=restarts), jobs)

    @pytest.mark.parametrize("code", [140, 143])
    def test_so_often_and_no_more(self, code: int, store: Store) -> None:
        jobs = [store.job(ONE.fingerprint), store.job(TWO.fingerprint)]
        assert [self.ask(code, restarts, *jobs) for restarts in range(6)] == ["requeue"] * 6
        assert {job.state()["status"] for job in jobs} == {"new"}
        assert self.ask(code, 6, *jobs) == "end"
        for job in jobs:
            state = job.state()
            assert (state["status"], state["final"]) == ("failed", True)
            assert f"ended 7 times before they began it (exit code {code})" in state["error"]
            assert "ended 7 times" in job.log.read_text()

    def test_what_ended_in_order_may_go_on(self, store: Store) -> None:
        assert self.ask(75, 40, store.job(ONE.fingerprint)) == "requeue"

    def test_so_may_a_job_that_has_begun(self, store: Store) -> None:
        assert self.ask(143, 40, interrupted(store, ONE), store.job(TWO.fingerprint)) == "requeue"

    def test_preemptions_of_a_job_that_is_done_are_not_laid_on_the_next(self, store: Store) -> None:
        """The evaluations of a model share an allocation."""
        for _ in range(9):
            interrupted(store, ONE)
        done(store, ONE)
        jobs = [store.job(ONE.fingerprint), store.job(TWO.fingerprint)]
        assert self.ask(143, 9, *jobs) == "requeue"
        assert self.ask(143, 16, *jobs) == "end"
        assert [job.state()["status"] for job in jobs] == ["done", "failed"]

    def test_somebody_elses_job_is_left_alone(self, store: Store) -> None:
        record = store.job(ONE.fingerprint)
        with JobRecord(record.path).claim():
            assert self.ask(143, 6, record) == "end"
        assert record.state()["status"] == "new"


class TestStalls:
    """A time limit too short for what comes before the first checkpoint would be met for ever."""

    def stop(self, store: Store, **changes: object) -> str:
        return answer(attempt(75, **changes), [interrupted(store, ONE)])

    def test_three_in_a_row_end_it(self, store: Store) -> None:
        assert [self.stop(store) for _ in range(3)] == ["requeue", "requeue", "end"]
        state = store.job(ONE.fingerprint).state()
        assert (state["status"], state["final"]) == ("failed", True)
        assert "stopped 3 times at its time limit without getting further than 'no checkpoint" in state["error"]
        assert "raise cluster.time" in state["error"]

    def test_a_checkpoint_between_begins_the_count_anew(self, store: Store) -> None:
        answers = []
        for step in (0, 0, 5, 5, 5):
            (store.job(ONE.fingerprint).checkpoints / f"step-{step:06d}").mkdir(parents=True, exist_ok=True)
            answers.append(self.stop(store))
        assert answers == ["requeue"] * 4 + ["end"]

    def test_answers_of_a_benchmark_are_progress_too(self, store: Store) -> None:
        record = store.job(ONE.fingerprint)
        for number in range(5):
            assert self.stop(store) == "requeue"
            append_rows(record.answers / "writer.jsonl", [{"request": str(number)}], durable=False)

    def test_preemptions_early_in_the_limit_do_not_count(self, store: Store) -> None:
        assert {self.stop(store, seconds=1000.0) for _ in range(6)} == {"requeue"}

    def test_nor_any_where_there_is_no_limit(self, store: Store) -> None:
        assert {self.stop(store, limit=None) for _ in range(6)} == {"requeue"}

    def test_the_others_of_an_allocation_go_on(self, store: Store) -> None:
        jobs = [interrupted(store, ONE), store.job(TWO.fingerprint)]
        answers = [answer(attempt(75), [interrupted(store, ONE), jobs[1]]) for _ in range(3)]
        assert answers == ["requeue"] * 3
        assert jobs[0].state()["final"]
        assert answer(attempt(75), jobs) == "requeue"


class TestMain:
    """With what was noted when the batch was submitted."""

    def intended(self, store: Store, request: Request, *jobs: str) -> str:
        return submissions.intend(store.root, "study", [Allocation((name,), request) for name in jobs], request, 2)

    def test_the_task_of_an_array(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        batch = self.intended(store, Request(exclude="n7", time="1:00:00"), TWO.fingerprint, ONE.fingerprint)
        fails(store, 2)
        main([str(store.root), batch, "1", "1", "2", "100", "0"])
        main([str(store.root), batch, "0", "75", "1", "100", "0"])
        assert capsys.readouterr().out.splitlines() == ["requeue n7,n1", "requeue"]

    @pytest.mark.parametrize(("time", "final"), [("60", True), ("1:00:00", True), (None, False), ("UNLIMITED", False)])
    def test_the_limit_is_the_requests(
        self, time: str | None, final: bool, store: Store, capsys: pytest.CaptureFixture[str]
    ) -> None:
        batch = self.intended(store, Request(time=time), ONE.fingerprint)
        for _ in range(3):
            interrupted(store, ONE)
            main([str(store.root), batch, "0", "75", "1", "3400", "0"])
        assert store.job(ONE.fingerprint).state()["final"] == final

    def test_the_report_job_is_not_tried_again(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        batch = self.intended(store, Request())
        for code in ("1", "75"):
            main([str(store.root), batch, "0", code, "1", "5", "0"])
        assert capsys.readouterr().out.splitlines() == ["end", "end"]

    def test_how_often_it_was_queued_again(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        batch = self.intended(store, Request(), ONE.fingerprint)
        for restarts in ("5", "6"):
            main([str(store.root), batch, "0", "143", "1", "5", restarts])
        assert capsys.readouterr().out.splitlines() == ["requeue", "end"]

    def test_a_batch_that_nobody_knows(self, store: Store) -> None:
        with pytest.raises(StoreError, match="does not know batch abc"):
            main([str(store.root), "abc", "0", "1", "1", "5", "0"])


def test_a_record_that_died_before_a_sign_of_life_is_tried_again(store: Store) -> None:
    """Killed between its first write and its first sign of life: it counts as a try that began nothing."""
    record = store.job(ONE.fingerprint)
    with record.claim():
        record.begin(ONE, Engine())
    assert [answer(attempt(137, tries=tries), [record]) for tries in (1, 3)] == ["again", "end"]


def test_what_cannot_start_is_not_tried_again(store: Store) -> None:
    assert answer(attempt(code=CANNOT_START), [store.job("a")]) == "end"
