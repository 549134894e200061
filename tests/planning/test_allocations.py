"""Jobs of a plan as allocations and arrays: every job once, nothing before what it needs, as few calls as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import MODEL, STAGE

from prism_sweeps.config.schema import Cluster, Request, Source
from prism_sweeps.config.specs import EvaluationSpec, Job, StageSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.planning.allocations import Allocation, Batch, allocations_of, batches_of, lanes_of, shape


def train(name: str, *parents: str, stage: str = "finetune") -> Job:
    parent = next(iter(parents), None)
    return Job(name, name, StageSpec(stage, MODEL, STAGE, {"a": Source("x", "chat.json")}, 1, parent), list(parents))


def score(name: str, parent: str, benchmark: str = "pope") -> Job:
    told = Benchmark(benchmark, f"x/{benchmark}", prompt="{question}", answer="generate", scorer="exact")
    return Job(name, name, EvaluationSpec(MODEL, told, "real", parent), [parent])


def by_name(*jobs: Job) -> dict[str, Job]:
    return {job.fingerprint: job for job in jobs}


def cluster(**changes: object) -> Cluster:
    return Cluster(**{"name": "slurm", "kind": "slurm", **changes})  # type: ignore[arg-type]


def names(allocations: Sequence[Allocation]) -> list[str]:
    return ["+".join(each.jobs) for each in allocations]


CHAIN = by_name(
    train("align", stage="align"), train("ft1", "align"), score("a1", "ft1"), score("b1", "ft1"),
    train("ft2", "align"), score("a2", "ft2"), score("b2", "ft2"),
)  # fmt: skip


def test_a_training_has_an_allocation_and_the_evaluations_of_a_model_share_one() -> None:
    found = allocations_of(CHAIN, cluster())
    assert names(found) == ["align", "ft1", "ft2", "a1+b1", "a2+b2"]
    assert [each.needs for each in found] == [(), ("align",), ("align",), ("ft1",), ("ft2",)]
    assert {each.slots for each in found} == {1}


def test_evaluations_that_ask_for_something_else_have_their_own() -> None:
    jobs = by_name(train("ft"), score("a", "ft"), score("v", "ft", "vqav2"), score("w", "ft", "vqav2"))
    assert names(allocations_of(jobs, cluster(overrides={"vqav2": {"time": "60"}}))) == ["ft", "a", "v+w"]


def test_several_jobs_side_by_side() -> None:
    jobs = by_name(*(train(f"t{n}") for n in range(5)), *(score(f"s{n}", f"t{n}") for n in range(5)))
    found = allocations_of(jobs, cluster(jobs_per_allocation=2))
    assert names(found) == ["t0+t1", "t2+t3", "t4", "s0+s1", "s2+s3", "s4"]
    assert [each.slots for each in found] == [2, 2, 1, 2, 2, 1]
    assert found[3].needs == ("t0", "t1")


def test_only_jobs_of_one_level_and_shape_share_an_allocation() -> None:
    """Else one would wait for another of its own."""
    found = allocations_of(CHAIN, cluster(jobs_per_allocation=8))
    assert names(found) == ["align", "ft1+ft2", "a1+b1+a2+b2"]
    assert found[2].slots == 2  # as many at a time as there are models


def test_arrays_of_one_shape_and_task_by_task() -> None:
    batches = batches_of(allocations_of(CHAIN, cluster()), 1000)
    assert [names(each.allocations) for each in batches] == [["align"], ["ft1", "ft2"], ["a1+b1", "a2+b2"]]
    assert [each.task_by_task for each in batches] == [None, None, 1]


def test_evaluations_of_other_requests_are_arrays_of_their_own() -> None:
    place = cluster(overrides={"evaluate": {"time": "10"}})
    batches = batches_of(allocations_of(CHAIN, place), 1000)
    assert [len(each.allocations) for each in batches] == [1, 2, 2]
    assert {shape(each.request) for each in batches[2:]} != {shape(batches[0].request)}


def test_parts_of_an_array_wait_for_what_they_need_and_no_more() -> None:
    """Where only some tasks of the array before have a child, aftercorr will not do."""
    jobs = by_name(train("t0"), train("t1"), train("t2"), score("s0", "t0"), score("s2", "t2"))
    batches = batches_of(allocations_of(jobs, cluster()), 1000)
    assert [names(each.allocations) for each in batches] == [["t0", "t1", "t2"], ["s0"], ["s2"]]
    assert [each.task_by_task for each in batches] == [None, None, None]


def test_two_children_of_a_task_are_two_arrays() -> None:
    jobs = by_name(
        train("t0", stage="align"), train("t1", stage="align"),
        *(train(f"u{n}{m}", f"t{n}") for n in range(2) for m in range(2)),
    )  # fmt: skip
    batches = batches_of(allocations_of(jobs, cluster()), 1000)
    assert [each.task_by_task for each in batches] == [None, 0, None, None]
    assert sorted(name for each in batches for name in names(each.allocations)) == sorted(jobs)


def test_children_of_side_by_side_jobs_do_not_wait_task_by_task() -> None:
    """A task of such an array fails when one of its jobs does."""
    jobs = by_name(*(train(f"t{n}") for n in range(4)), *(score(f"s{n}", f"t{n}") for n in range(4)))
    batches = batches_of(allocations_of(jobs, cluster(jobs_per_allocation=2)), 1000)
    assert [names(each.allocations) for each in batches] == [["t0+t1", "t2+t3"], ["s0+s1"], ["s2+s3"]]
    assert {each.task_by_task for each in batches} == {None}


def test_parents_that_are_not_submitted_are_needs_too() -> None:
    jobs = {name: job for name, job in CHAIN.items() if name != "align"}
    found = allocations_of(jobs, cluster())
    assert found[0].needs == ("align",)
    assert [each.task_by_task for each in batches_of(found, 1000)] == [None, 0]


def test_large_arrays_are_cut() -> None:
    jobs = by_name(*(train(f"t{n}") for n in range(7)))
    assert [len(each.allocations) for each in batches_of(allocations_of(jobs, cluster()), 3)] == [3, 3, 1]


def test_lanes_are_evenly_long() -> None:
    found = allocations_of(by_name(*(train(f"t{n}") for n in range(6))), cluster())
    weights = {"t0": 50.0, "t1": 10.0, "t2": 10.0, "t3": 10.0, "t4": 10.0, "t5": 10.0}
    batches = lanes_of(found, 2, weights)
    assert [each.lane for each in batches] == [0, 1, 1, 1, 1, 1]
    assert [each.lane for each in lanes_of(found, 3, {})] == [0, 1, 2, 0, 1, 2]


def test_shapes() -> None:
    assert shape(Request(options={"a": 1, "b": 2})) == shape(Request(options={"b": 2, "a": 1}))
    assert shape(Request(nodes=1)) != shape(Request(nodes=2))


@st.composite
def plans(draw: st.DrawFn) -> tuple[Mapping[str, Job], Cluster, int]:
    """Any graph of trainings and evaluations, some of whose parents are not in it, on any cluster."""
    jobs: dict[str, Job] = {}
    for number in range(draw(st.integers(1, 14))):
        trained = [name for name, job in jobs.items() if job.kind == "train"]
        parent = draw(st.sampled_from([None, "outside", *trained]))
        stage = draw(st.sampled_from(["align", "finetune"]))
        if parent and draw(st.booleans()):
            jobs[f"s{number}"] = score(f"s{number}", parent, draw(st.sampled_from(["pope", "vqav2"])))
        else:
            jobs[f"t{number}"] = train(f"t{number}", *filter(None, [parent]), stage=stage)
    place = cluster(
        jobs_per_allocation=draw(st.integers(1, 3)),
        overrides={"evaluate": {"time": "10"}}
        if draw(st.booleans())
        else {"align": {"jobs_per_allocation": 1, "nodes": 2}},
    )
    return jobs, place, draw(st.integers(1, 4))


@given(plans())
def test_every_job_once_and_none_before_what_it_needs(plan: tuple[Mapping[str, Job], Cluster, int]) -> None:
    jobs, place, largest = plan
    batches = batches_of(allocations_of(jobs, place), largest)
    assert Counter(name for batch in batches for each in batch.allocations for name in each.jobs) == Counter(list(jobs))
    held: set[str] = set()
    for batch in batches:
        assert 1 <= len(batch.allocations) <= largest
        assert len({shape(each.request) for each in batch.allocations}) == 1
        for number, each in enumerate(batch.allocations):
            assert each.slots <= each.request.jobs_per_allocation
            assert set(each.needs) == {parent for name in each.jobs for parent in jobs[name].parents}
            assert {need for need in each.needs if need in jobs} <= held
            if batch.task_by_task is not None:
                assert set(each.needs) <= set(batches[batch.task_by_task].allocations[number].jobs)
            else:
                assert each.needs == batch.allocations[0].needs
        held |= {name for each in batch.allocations for name in each.jobs}


@given(plans(), st.integers(1, 4))
def test_so_it_is_in_lanes(plan: tuple[Mapping[str, Job], Cluster, int], lanes: int) -> None:
    jobs, place, _ = plan
    batches = lanes_of(allocations_of(jobs, place), lanes, {})
    held: set[str] = set()
    for batch in batches:
        (each,) = batch.allocations
        assert {need for need in each.needs if need in jobs} <= held
        assert batch.lane in range(lanes)
        held |= set(each.jobs)
    assert held == set(jobs)


def test_a_batch_asks_for_what_its_allocations_do() -> None:
    request = Request(nodes=3)
    assert Batch([Allocation(("a",), request)]).request is request


@pytest.mark.parametrize("count", [400])
def test_a_thousand_jobs_are_few_calls(count: int) -> None:
    jobs = by_name(
        *(train(f"t{n}") for n in range(count)), *(score(f"s{n}{b}", f"t{n}", b) for n in range(count) for b in "ab")
    )
    assert len(batches_of(allocations_of(jobs, cluster()), 1000)) == 2
