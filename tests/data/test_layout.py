from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.data.layout import Passes, check_ranks, packed, padded, reference_groups, shares


def flat(passes: Passes) -> list[int]:
    return [i for process in passes for one in process for i in one]


def total(indices: list[int], lengths: list[int]) -> int:
    return sum(lengths[i] for i in indices)


@st.composite
def batches(draw: st.DrawFn, longest: int = 300) -> tuple[list[int], list[int], int]:
    """Indices, some of them twice, the lengths they point into, and a number of processes that divides them."""
    ranks = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=40))
    size = ranks * draw(st.integers(1, 8))
    indices = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=size, max_size=size))
    return indices, lengths, ranks


# ---- processes


@pytest.mark.parametrize(("global_batch", "ranks"), [(12, 1), (12, 4), (12, 12)])
def test_divisors_share_out_a_batch(global_batch: int, ranks: int):
    check_ranks(global_batch, ranks)


@pytest.mark.parametrize(("global_batch", "ranks"), [(12, 5), (12, 24), (12, 0)])
def test_other_numbers_of_processes_are_errors(global_batch: int, ranks: int):
    expected = rf"global_batch of 12 cannot .* {ranks} processes.*these divide 12: 1, 2, 3, 4, 6, 12"
    with pytest.raises(ConfigError, match=expected):
        check_ranks(global_batch, ranks)
    for cut in (padded, packed):
        with pytest.raises(ConfigError, match=expected):
            cut(range(global_batch), [1] * global_batch, ranks, 10)


# ---- padded


def test_one_process_takes_the_longest_first():
    assert padded([4, 2, 0, 1, 3], [5, 9, 5, 7, 1], 1, 2) == [[[1, 3], [2, 0], [4]]]
    assert padded([4, 2, 0, 1, 3], [5, 9, 5, 7, 1], 1, 0) == [[[1, 3, 2, 0, 4]]]


@given(batches(), st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_processes_get_passes_of_like_length_at_the_same_time(
    batch: tuple[list[int], list[int], int], micro_batch: int
):
    indices, lengths, ranks = batch
    passes = padded(indices, lengths, ranks, micro_batch)
    assert len(passes) == ranks
    assert sorted(flat(passes)) == sorted(indices)
    share = len(indices) // ranks
    assert all(sum(map(len, process)) == share for process in passes)
    assert {len(process) for process in passes} == {-(-share // (micro_batch or share))}
    assert all(len(one) <= (micro_batch or share) for process in passes for one in process)
    at_once = [[lengths[i] for process in passes for i in process[time]] for time in range(len(passes[0]))]
    for earlier, later in pairwise(at_once):
        assert min(earlier) >= max(later)


# ---- packed


@given(batches(), st.integers(300, 1500))
@settings(max_examples=150, deadline=None)
def test_rows_hold_every_example_and_no_more_than_they_may(batch: tuple[list[int], list[int], int], row_tokens: int):
    indices, lengths, ranks = batch
    passes = packed(indices, lengths, ranks, row_tokens)
    assert len(passes) == ranks
    assert len({len(process) for process in passes}) == 1
    assert sorted(flat(passes)) == sorted(indices)
    assert all(one and total(one, lengths) <= row_tokens for process in passes for one in process)
    at_once = [[total(process[time], lengths) for process in passes] for time in range(len(passes[0]))]
    for earlier, later in pairwise(at_once):
        assert min(earlier) >= max(later)


def fewest_rows(lengths: list[int], room: int) -> int:
    """By trying all ways to put them."""

    @cache
    def rest(left: tuple[int, ...], spaces: tuple[int, ...]) -> int:
        if not left:
            return len(spaces)
        size, others = left[0], left[1:]
        ways = [rest(others, (*spaces, room - size))]
        for at, space in enumerate(spaces):
            if size <= space:
                ways.append(rest(others, tuple(sorted((*spaces[:at], space - size, *spaces[at + 1 :])))))
        return min(ways)

    return rest(tuple(lengths), ())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_rows_are_hardly_more_than_the_fewest(lengths: list[int]):
    """Best-fit decreasing needs no more than 11/9 of the fewest, and 6/9 (Dosa 2007, for first fit; Johnson 1974)."""
    found = len(packed(range(len(lengths)), lengths, 1, 30)[0])
    assert found <= 11 / 9 * fewest_rows(lengths, 30) + 6 / 9


def test_rows_are_about_equally_full():
    lengths = [600 + 37 * index % 101 for index in range(120)]
    passes = packed(range(120), lengths, 8, 4096)
    sums = [total(one, lengths) for process in passes for one in process]
    assert len(sums) == 24  # examples of 650 fill 19.04
    assert max(sums) < 1.02 * min(sums)
    loads = [sum(total(one, lengths) for one in process) for process in passes]
    assert max(loads) < 1.01 * min(loads)


@pytest.mark.parametrize(
    ("lengths", "row_tokens", "rows"),
    [
        ([6, 6, 4, 4, 4], 12, [[0, 1], [2, 3, 4]]),  # emptiest first: 14 and 10
        ([7, 6, 3, 2, 2], 10, [[0, 2], [1, 3, 4]]),  # emptiest first: 11 and 9; worst fit: three rows
    ],
)
def test_a_packing_that_only_best_fit_finds_is_used(lengths: list[int], row_tokens: int, rows: list[list[int]]):
    assert sorted(sorted(one) for one in packed(range(5), lengths, 1, row_tokens)[0]) == rows


def test_best_fit_s_rows_are_split_up_where_there_must_be_more():
    """It makes 8 of these, and three processes need 9, into which emptiest first does not fit them."""
    lengths = [9, 6, 6, 6, 5, 5, 5, 5, 5, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    passes = packed(range(18), lengths, 3, 12)
    assert [len(process) for process in passes] == [3, 3, 3]
    assert sorted(flat(passes)) == list(range(18))
    assert all(one and total(one, lengths) <= 12 for process in passes for one in process)


def test_rows_are_as_many_for_every_process():
    assert packed(range(4), [100, 1, 1, 1], 4, 200) == [[[0]], [[1]], [[2]], [[3]]]
    passes = packed(range(6), [10, 10, 10, 1, 1, 1], 3, 1000)
    assert [len(process) for process in passes] == [1, 1, 1]
    assert {total(process[0], [10, 10, 10, 1, 1, 1]) for process in passes} == {11}


def test_examples_longer_than_a_row_are_errors():
    with pytest.raises(
        ConfigError, match=r"row_tokens is 64, but an example takes 70 positions; give at least as many"
    ):
        packed([0, 1], [70, 5], 1, 64)


# ---- shares


@given(batches(), st.lists(st.integers(1, 50), min_size=40, max_size=40))
@settings(max_examples=60, deadline=None)
def test_shares_of_a_batch_sum_up_to_one(batch: tuple[list[int], list[int], int], supervised: list[int]):
    indices, words, groups = batch
    for loss, micro_batch in (("token-mean", None), ("micro-batch-mean", len(indices) // groups)):
        found = shares(indices, supervised, words, loss, micro_batch)
        assert len(found) == len(indices)
        summed = sum(share * supervised[i] for share, i in zip(found, indices, strict=True))
        assert summed == pytest.approx(1, rel=1e-12)


def greedy(words: list[int], count: int) -> list[list[int]]:
    """The published way: a full bucket's load becomes infinite."""
    found: list[list[int]] = [[] for _ in range(count)]
    loads = np.zeros(count)
    for place in sorted(range(len(words)), key=words.__getitem__, reverse=True):
        emptiest = int(np.argmin(loads))
        found[emptiest].append(place)
        loads[emptiest] = np.inf if len(found[emptiest]) == len(words) // count else loads[emptiest] + words[place]
    return found


@given(batches())
@settings(max_examples=100, deadline=None)
def test_groups_are_the_reference_s(batch: tuple[list[int], list[int], int]):
    indices, lengths, count = batch
    words = [lengths[i] - 1 for i in indices]
    assert reference_groups(words, len(words) // count) == greedy(words, count)


@pytest.mark.parametrize(("loss", "micro_batch"), [("token-mean", None), ("micro-batch-mean", 2)])
def test_weighted_tokens_give_torch_s_means(loss: str, micro_batch: int | None):
    supervised, words = [3, 1, 7, 2, 5, 1], [9, 2, 30, 4, 8, 4]
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(count, 11, generator=generator) for count in supervised]
    targets = [torch.randint(11, (count,), generator=generator) for count in supervised]

    def mean(places: list[int]) -> torch.Tensor:
        return F.cross_entropy(torch.cat([logits[i] for i in places]), torch.cat([targets[i] for i in places]))

    groups = [list(range(6))] if micro_batch is None else [[2, 1], [0, 5], [4, 3]]
    expected = torch.stack([mean(group) for group in groups]).mean()
    weights = shares(range(6), supervised, words, loss, micro_batch)
    found = sum(
        weight * F.cross_entropy(x, y, reduction="sum") for weight, x, y in zip(weights, logits, targets, strict=True)
    )
    assert torch.allclose(torch.as_tensor(found), expected, atol=1e-6)


def test_an_example_that_stands_twice_has_a_share_for_each():
    """It is in two groups, one of 5 tokens and one of 10."""
    found = shares([0, 0, 1, 2], [4, 1, 6], [5, 3, 2], "micro-batch-mean", 2)
    assert reference_groups([5, 5, 3, 2], 2) == [[0, 2], [1, 3]]
    assert found == [1 / 10, 1 / 20, 1 / 10, 1 / 20]
