"""Plans handed to the double of SLURM: what is submitted, in which order it may run, and that it is so once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from ends import done, failed, interrupted
from sweeps import SMALL, TWO_STAGES, Planned, Sweeps, run_in_order, train

from prism_sweeps.config.schema import Engine
from prism_sweeps.launching.slurm import submit
from prism_sweeps.launching.slurm.submit import Submitted
from prism_sweeps.launching.standing import look
from prism_sweeps.planning.allocations import shape
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store

# ---- what is submitted


def test_a_plan_becomes_arrays_that_run_in_its_order(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES)
    result = sweep(plan)
    assert set(result.jobs) == set(plan.jobs)
    assert result.allocations == 5  # one align, two finetunings, and the evaluations of each model together
    assert result.calls == 3
    sweep.each_once(plan.jobs)
    align = sweep.of(plan, "^align: ")
    array = next(job for job in sweep.slurm.jobs.values() if job["task"] == 1 and "afterok" in job["dependency"])
    assert array["dependency"] == f"afterok:{align}"
    assert array["options"]["array"] == "0-1%2"
    evaluations = next(job for job in sweep.slurm.jobs.values() if "aftercorr" in job["dependency"])
    assert evaluations["dependency"] == f"aftercorr:{array['base']}"
    report = sweep.slurm.jobs[result.last_job or ""]
    assert report["dependency"] == f"afterany:{align}:{array['base']}:{evaluations['base']}"
    assert report["name"] == f"prism-{plan.study}-report"
    run_in_order(sweep, plan)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("more", [(), ("cluster.jobs_per_allocation=3",), ("cluster.max_parallel=2",)])
def test_every_job_runs_after_its_parents(sweep: Sweeps, planned: Planned, more: tuple[str, ...], seed: int) -> None:
    plan = planned("nano/tiny", SMALL, *more)
    sweep(plan)
    run_in_order(sweep, plan, seed)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


def test_a_failure_ends_what_needs_it_and_nothing_else(sweep: Sweeps, planned: Planned) -> None:
    plan = planned("nano/tiny", SMALL)
    sweep(plan)
    bad = next(name for name, job in plan.jobs.items() if job.title.startswith("align"))
    run_in_order(sweep, plan, how=lambda name: "FAILED" if name == bad else "COMPLETED")
    assert sweep.states(plan) == {"failed": 1, "skipped": 3, "done": len(plan.jobs) - 4}


def test_a_second_sweep_submits_nothing(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES)
    sweep(plan)
    journal = (sweep.store.root / submissions.FILE).read_bytes()
    for _ in range(2):
        assert sweep(plan) == Submitted(standings=look(plan, sweep.store))
        sweep.end(plan, sweep.of(plan, "^align: ")) if not sweep.states(plan)["done"] else None
    assert (sweep.store.root / submissions.FILE).read_bytes() == journal
    assert sweep.states(plan) == {"queued": 6, "done": 1}


def test_added_cells_are_submitted_behind_queued_jobs_of_the_first(sweep: Sweeps, planned: Planned) -> None:
    first, second = planned(*TWO_STAGES[:2]), planned(*TWO_STAGES)
    sweep(first)
    result = sweep(second)
    assert set(result.jobs) == set(second.jobs) - set(first.jobs)
    align = sweep.of(first, "^align: ")
    finetune = sweep.slurm.jobs[sweep.of(second, "^align > finetune.*lora")]
    assert finetune["dependency"] == f"afterok:{align}"
    assert {name: len(ids) for name, ids in sweep.live().items()} == dict.fromkeys(second.jobs, 1)
    assert len(sweep.reports()) == 2


def test_what_is_done_needs_no_dependency_and_splits_no_array(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(SMALL, "stages=nano-two-stage", "seed=1,2,3")
    done(sweep.store, *(plan.jobs[name] for name in train(plan)))
    result = sweep(plan)
    assert (result.allocations, result.calls) == (3, 1)
    assert {job["dependency"] for name, job in sweep.slurm.jobs.items() if name != result.last_job} == {""}


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (lambda s, p, i: (failed(s.store, p.jobs[train(p)[0]]), s.slurm.finish(i, "FAILED", "1:0")), "failed"),
        (lambda s, p, i: s.slurm.cancel(i), "cancelled"),
        (lambda s, p, i: (interrupted(s.store, p.jobs[train(p)[0]]), s.slurm.cancel(i)), "cancelled"),
        (lambda s, p, i: s.slurm.finish(i, "TIMEOUT"), "lost"),
        (lambda s, p, i: s.slurm.finish(i, "NODE_FAIL"), "lost"),
        (lambda s, p, i: s.slurm.finish(i, "FAILED", "1:0"), "lost"),
        (lambda s, p, i: (s.slurm.cancel(i), s.slurm.purge(), s.slurm.set(accounts=False)), "lost"),
    ],
    ids=["failed", "cancelled", "interrupted", "timeout", "node", "died", "forgotten"],
)
def test_what_ended_badly_is_submitted_again_with_all_that_needs_it(
    end: Callable[[Sweeps, Plan, str], object], word: str, sweep: Sweeps, planned: Planned
) -> None:
    plan = planned(*TWO_STAGES[:2])
    sweep(plan)
    end(sweep, plan, sweep.of(plan, "^align: "))
    assert sweep.states(plan) == {word: 1, "skipped": len(plan.jobs) - 1}
    assert set(sweep(plan).jobs) == set(plan.jobs)
    sweep.each_once(plan.jobs, reports=2)  # that of the first submission is about to begin
    assert not sweep(plan).jobs
    run_in_order(sweep, plan)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


def test_a_sweep_forgives_failures(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES[:2])
    record = failed(sweep.store, plan.jobs[train(plan)[0]], final=True)
    sweep(plan)
    assert (record.state()["failures"], record.state()["final"]) == (0, False)
    assert sweep.states(plan) == {"queued": len(plan.jobs)}


def test_a_job_between_two_tries_is_not_submitted_again(sweep: Sweeps, planned: Planned) -> None:
    """Its record says failed for the seconds in which its allocation starts it anew."""
    plan = planned(*TWO_STAGES[:2], "engine.retries=1")
    sweep(plan)
    align = sweep.of(plan, "^align: ")
    sweep.slurm.start(align)
    failed(sweep.store, plan.jobs[train(plan)[0]])
    assert sweep.states(plan) == {"queued": len(plan.jobs)}
    assert not sweep(plan).jobs
    failed(sweep.store, plan.jobs[train(plan)[0]])  # for good, now
    assert sweep.states(plan) == {"failed": 1, "skipped": len(plan.jobs) - 1}


def test_what_waits_for_a_packed_job_that_failed_is_submitted_anew_and_once(sweep: Sweeps, planned: Planned) -> None:
    """It depends on the end of the allocation alone, so SLURM would start it."""
    plan = planned(SMALL, "seed=1,2", "cluster.overrides={train:{jobs_per_allocation:2}}", "engine.retries=0")
    sweep(plan)
    bad, good = train(plan)
    allocation = submissions.read(sweep.store.root).newest()[bad].slurm_id
    sweep.slurm.start(allocation)
    failed(sweep.store, plan.jobs[bad])
    assert sweep.states(plan) == {"failed": 1, "skipped": 2, "queued": 3}
    assert set(sweep(plan).jobs) == {bad, *(name for name, job in plan.jobs.items() if bad in job.parents)}
    live = sweep.live()
    assert {name: len(ids) for name, ids in live.items()} == {name: 2 if name == bad else 1 for name in plan.jobs}
    assert good in live


def test_running_and_queued_jobs_are_left_alone(sweep: Sweeps, planned: Planned) -> None:
    plan = planned("nano/tiny", SMALL)
    sweep(plan)
    running = sweep.of(plan, "^align: nano-clip")
    sweep.slurm.start(running)
    record = sweep.store.job(next(name for name in plan.jobs if plan.jobs[name].title.startswith("align: nano-clip")))
    with record.claim():
        record.begin(plan.jobs[record.fingerprint], Engine())
        record.beat(2, 9, "loss 1.5")
        assert not sweep(plan).jobs
        standing = look(plan, sweep.store)[record.fingerprint]
    assert (standing.state, standing.done, standing.total, standing.text) == ("running", 2, 9, "loss 1.5")
    sweep.slurm.preempt(running)
    assert not sweep(plan).jobs


def test_a_job_that_a_sweep_here_has_done_meanwhile(sweep: Sweeps, planned: Planned) -> None:
    """It stays in the queue, where it finds its record done; nothing of it is submitted anew."""
    plan = planned(*TWO_STAGES[:2])
    sweep(plan)
    done(sweep.store, plan.jobs[train(plan)[0]])
    sweep.slurm.cancel(sweep.of(plan, "^align: "))
    result = sweep(plan)
    assert set(result.jobs) == set(plan.jobs) - {train(plan)[0]}
    assert sweep.slurm.jobs[sweep.of(plan, "^align > ")]["dependency"] == ""


def test_a_shared_stage_is_submitted_once_over_two_studies(sweep: Sweeps, planned: Planned) -> None:
    first = planned(SMALL, "stages=nano-two-stage", "tuning=full")
    second = planned(SMALL, "stages=nano-two-stage", "tuning=lora")
    first.study, second.study = "one", "two"
    sweep(first)
    result = sweep(second)
    align = train(first)[0]
    assert align in second.jobs
    assert align not in result.jobs
    slurm_id = submissions.read(sweep.store.root).newest()[align].slurm_id
    assert sweep.slurm.jobs[sweep.of(second, "^align > finetune")]["dependency"] == f"afterok:{slurm_id}"
    assert {name: len(ids) for name, ids in sweep.live().items()} == dict.fromkeys({**first.jobs, **second.jobs}, 1)
    assert len(sweep.reports()) == 2


def test_a_choice_of_jobs(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES)
    align = train(plan)[0]
    result = sweep(plan, wanted=lambda name, standing: name == align and standing.state == "new")
    assert result.jobs == [align]


def test_without_a_report(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(SMALL, "cluster.report=false")
    assert sweep(plan).last_job is None
    assert sweep.reports() == []
    assert not sweep(plan).jobs


def test_a_report_job_that_is_gone_is_made_up_for(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(*TWO_STAGES)
    first = sweep(plan)
    sweep.slurm.cancel(first.last_job or "")
    result = sweep(plan)
    assert not result.jobs
    assert sweep.reports() == [result.last_job]
    assert sweep.slurm.jobs[result.last_job or ""]["dependency"] == sweep.slurm.jobs[first.last_job or ""]["dependency"]


def test_a_cluster_that_was_made_anew_counts_from_one(sweep: Sweeps, planned: Planned) -> None:
    """A job of somebody else's has the id that one of ours had."""
    ours, theirs = planned(SMALL), planned(SMALL, "seed=2")
    sweep(ours)
    sweep.slurm.set(jobs={}, next=1)
    other = Sweeps(sweep.slurm, Store.open(sweep.store.root / "other"))
    other(theirs)
    assert set(sweep.slurm.jobs) & set(submissions.read(sweep.store.root).batches)
    assert sweep.states(ours) == {"lost": 1, "skipped": 2}
    assert set(sweep(ours).jobs) == set(ours.jobs)
    assert other.states(theirs) == {"queued": len(theirs.jobs)}


# ---- shapes


def test_requests_of_different_jobs(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(
        *TWO_STAGES, "cluster.gpus_per_node=4", "cluster.nodes=2", "cluster.time=4:00:00", "cluster.partition=main",
        "cluster.overrides={align: {nodes: 1, memory: 40G}, evaluate: {nodes: 1, gpus_per_node: 1, options: {qos: x}},"
        "easy-vqa: {time: '10'}, finetune_and_nano-base: {exclude: n9}, report: {nodes: 1, gpus_per_node: 0}}"
        .replace("options: {qos: x}", "options: {licenses: x}"),
    )  # fmt: skip
    result = sweep(plan)
    options = {job["name"]: [] for job in sweep.slurm.jobs.values()}
    asked = {}
    for name, batch in sweep.batches().items():
        kinds = {plan.jobs[job].kind + plan.jobs[job].title[:7] for jobs in batch["allocations"] for job in jobs}
        asked["+".join(sorted(kinds)) or "report"] = sweep.slurm.jobs[name]["options"]
    keys = ("nodes", "gpus-per-node", "ntasks-per-node", "time", "mem", "exclude", "licenses")
    found = {kind: [each.get(key) for key in keys] for kind, each in asked.items()}
    assert found == {
        "trainalign: ": ["1", "4", "4", "4:00:00", "40G", None, None],
        "trainalign >": ["2", "4", "4", "4:00:00", None, "n9", None],
        "evaluateeasy-vq": ["1", "1", "1", "10", None, None, "x"],
        "report": ["1", None, "1", "4:00:00", None, None, None],
    }
    assert len(options) == 2
    assert result.allocations == 5


def test_several_jobs_in_one_allocation(sweep: Sweeps, planned: Planned) -> None:
    plan = planned(
        SMALL, "seed=1,2,3,4,5", "cluster.overrides={train: {jobs_per_allocation: 2}}", "cluster.gpus_per_node=2"
    )
    result = sweep(plan)
    assert result.allocations == 3 + 5
    packed = sweep.slurm.jobs[submissions.read(sweep.store.root).newest()[train(plan)[0]].slurm_id]
    assert (packed["options"]["ntasks-per-node"], packed["options"]["gpus-per-node"]) == ("1", "2")
    dependencies = {job["dependency"].partition(":")[0] for job in sweep.slurm.jobs.values()}
    assert dependencies == {"", "afterany", "afterok"}  # the fifth training has an allocation of its own
    run_in_order(sweep, plan)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


def test_arrays_are_as_large_as_the_cluster_lets_them_be(sweep: Sweeps, planned: Planned) -> None:
    sweep.slurm.set(largest=3)  # of which the largest number is 2: two tasks
    plan = planned(SMALL, "seed=1,2,3,4,5")
    sweep(plan)
    sizes = Counter(job["base"] for job in sweep.slurm.jobs.values())
    assert sorted(sizes.values()) == [1, 1, 1, 2, 2, 2, 2]
    run_in_order(sweep, plan)
    assert sweep.states(plan) == {"done": len(plan.jobs)}


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_no_more_allocations_at_a_time_than_asked_for(sweep: Sweeps, planned: Planned, lanes: int) -> None:
    plan = planned("nano/tiny", SMALL, f"cluster.max_parallel={lanes}")
    weights = {name: 20.0 if job.kind == "train" else 1.0 for name, job in plan.jobs.items()}
    sweep(plan, weights=weights)
    once_more = failed(sweep.store, plan.jobs[train(plan)[0]])
    sweep.slurm.cancel(submissions.read(sweep.store.root).newest()[once_more.fingerprint].slurm_id)
    sweep(plan, weights=weights)  # into the same lanes
    side_by_side = run_in_order(sweep, plan, seed=lanes)
    reports = {name for name, job in sweep.slurm.jobs.items() if job["name"].endswith("-report")}
    assert max(len(running - reports) for running in side_by_side) == lanes
    assert sweep.states(plan) == {"done": len(plan.jobs)}


@pytest.mark.parametrize("others", [True, False], ids=["", "the only ones"])
def test_nodes_on_which_jobs_fail_are_avoided(
    others: bool, sweep: Sweeps, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(SMALL, "seed=1,2,3", "cluster.exclude=n7")
    bad, worse, good = train(plan)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "n3")
        failed(sweep.store, plan.jobs[bad])
        failed(sweep.store, plan.jobs[worse])
    done(sweep.store, plan.jobs[good])
    if not others:
        monkeypatch.setattr(submit, "checked", lambda requests: {shape(each): each for each in requests})
        sweep.slurm.fault("allocation failure: Requested node configuration is not available", "test-only", 9, False)
    sweep(plan)
    excluded = {job["options"].get("exclude") for job in sweep.slurm.live().values()}
    assert excluded == ({"n7,n3"} if others else {"n7"})
    assert "keeping away from n3: the last 2 attempts there failed" in sweep.said[0]
    assert ("some jobs cannot be kept away from n3: SLURM refuses" in sweep.said[-1]) == (not others)
