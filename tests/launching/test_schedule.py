"""The order of jobs, without processes."""

from __future__ import annotations

import itertools

from fake_jobs import by_name, score, train

from prism_sweeps.launching.schedule import Schedule, tails


def drain(schedule: Schedule, loaded: str | None = None) -> list[str]:
    """What one worker does from beginning to end."""
    done = []
    while job := schedule.next_for(loaded):
        schedule.status[job.fingerprint] = "done"
        loaded = job.fingerprint if job.kind == "train" else job.parents[0]
        done.append(job.fingerprint)
    return done


def test_jobs_come_after_their_parents_and_all_come() -> None:
    jobs = by_name(score("e1", "t2"), train("t2", "t1"), train("t1"), score("e0", "t1"))
    found = drain(Schedule(jobs, workers=1, retries=0))
    assert sorted(found) == sorted(jobs)
    assert found.index("t1") < found.index("t2") < found.index("e1")


def test_tails_are_the_heaviest_chain() -> None:
    jobs = by_name(train("a"), train("b", "a"), score("x", "b"), score("y", "a"))
    assert tails(jobs, {"a": 2, "b": 3, "x": 1, "y": 10}) == {"a": 12, "b": 4, "x": 1, "y": 10}


def test_a_long_chain_starts_before_a_short_one() -> None:
    jobs = by_name(train("short"), train("long"), train("long2", "long"), train("long3", "long2"))
    first = Schedule(jobs, workers=2, retries=0).next_for(None)
    assert first is not None
    assert first.fingerprint == "long"


def test_evaluations_follow_their_model_while_much_is_left() -> None:
    trains = [train(f"t{index}") for index in range(8)]
    scores = [score(f"e{index}-{number}", f"t{index}") for index in range(8) for number in range(3)]
    found = drain(Schedule(by_name(*trains, *scores), workers=1, retries=0))
    models = [name[1] for name in found]
    # Each model is loaded once but for the last few, where a chain that is long against the rest goes first.
    assert sum(a != b for a, b in itertools.pairwise(models)) <= 10
    assert found[1].startswith("e")


def test_the_last_chain_is_not_kept_waiting_by_evaluations() -> None:
    jobs = by_name(*(score(f"e{index}", "done") for index in range(9)), train("t"))
    schedule = Schedule(jobs, workers=2, retries=0)
    job = schedule.next_for("done")
    assert job is not None
    assert job.fingerprint == "t"


def test_a_failure_skips_what_needs_it_and_nothing_else() -> None:
    jobs = by_name(train("a"), train("b", "a"), score("x", "b"), train("c"), score("y", "c"))
    schedule = Schedule(jobs, workers=1, retries=1)
    assert schedule.failed("a", final=False)
    assert schedule.status["a"] == "waiting"
    assert not schedule.failed("a", final=False)
    assert schedule.status == {"a": "failed", "b": "skipped", "x": "skipped", "c": "waiting", "y": "waiting"}
    assert drain(schedule) == ["c", "y"]
    assert schedule.over()
    assert not Schedule(jobs, workers=1, retries=5).failed("a", final=True)
