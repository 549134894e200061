"""Which examples are asked about: nested, seeded, the same whatever the order of the index."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_evaluation import benchmark

from prism_sweeps.config.errors import DataError
from prism_sweeps.evaluation.benchmarks import Example
from prism_sweeps.evaluation.samples import sample_of

EXAMPLES = [
    Example(f"{number:03x}", Path("x.png"), "x.png", "what?", ("A",), tags={"split": "odd" if number % 3 else "even"})
    for number in range(200)
]


def ids(index, **changes):
    return [example.id for example in sample_of(index, benchmark(**changes))]


def test_all_without_a_number_and_the_first_by_default():
    assert ids(EXAMPLES) == [example.id for example in EXAMPLES]
    assert ids(EXAMPLES, sampling="random") == ids(EXAMPLES)
    assert ids(EXAMPLES, examples=5) == [example.id for example in EXAMPLES[:5]]


def test_random_samples_are_nested_and_do_not_depend_on_the_order_of_the_index():
    mixed = random.Random(1).sample(EXAMPLES, len(EXAMPLES))
    before: set[str] = set()
    for count in (1, 10, 50, 199, 200, 1000):
        drawn = ids(EXAMPLES, sampling="random", examples=count)
        assert len(drawn) == len(set(drawn)) == min(count, 200)
        assert before <= set(drawn)
        assert drawn == sorted(drawn)  # the order of the index
        assert set(ids(mixed, sampling="random", examples=count)) == set(drawn)
        before = set(drawn)
    assert ids(EXAMPLES, sampling="random", examples=10) != ids(EXAMPLES, examples=10)


def test_a_number_of_each_value_of_a_tag():
    chosen = sample_of(EXAMPLES, benchmark(sampling="random", examples=40, each="split"))
    assert Counter(example.tags["split"] for example in chosen) == {"odd": 40, "even": 40}
    fewer = {example.id for example in sample_of(EXAMPLES, benchmark(sampling="random", examples=12, each="split"))}
    assert fewer < {example.id for example in chosen}
    with pytest.raises(DataError, match=r"each 'splits' are wanted.*did you mean 'split'"):
        ids(EXAMPLES, examples=4, each="splits")
    lone = [replace(EXAMPLES[0], tags={}), *EXAMPLES[1:]]
    with pytest.raises(DataError, match="example '000' has no such tag"):
        ids(lone, examples=4, each="split")
