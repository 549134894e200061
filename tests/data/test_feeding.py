import itertools

import pytest
import torch

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.feeding import loaded_by_processes, prefetched

CPU = torch.device("cpu")


def squared(number: int) -> int:
    if number == 3:
        raise DataError("three")
    return number * number


def by_thread(items):
    return prefetched(items, squared)


def by_processes(items):
    return loaded_by_processes(items, squared, 2, CPU)


@pytest.mark.parametrize("way", [by_thread, by_processes])
def test_what_is_made_ahead_keeps_its_order_and_fails_when_it_is_due(way):
    found = way(range(6))
    assert [next(found), next(found), next(found)] == [0, 1, 4]
    with pytest.raises(DataError, match=r"^three$"):
        next(found)


@pytest.mark.parametrize("way", [by_thread, by_processes])
def test_any_part_of_the_steps_can_be_asked_for(way):
    assert list(way(range(10, 14))) == [100, 121, 144, 169]
    assert list(way(range(4, 4))) == []


def test_a_thread_reads_no_further_than_it_is_told():
    taken = []
    found = prefetched((taken.append(n) or n for n in itertools.count()), lambda n: n, ahead=2)
    assert next(found) == 0
    assert len(taken) == 3
    found.close()
