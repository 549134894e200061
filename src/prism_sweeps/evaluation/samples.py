"""Which examples of an index are asked about, where not all are."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from prism_sweeps.config.errors import DataError, nearest
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.benchmarks import Example

SEED = 21
"""That of vlm-evaluation's slim sets."""


def sample_of(examples: Sequence[Example], benchmark: Benchmark) -> list[Example]:
    """Those the benchmark asks about, in the order of the index.

    A random sample is the beginning of one shuffled list of all ids, which depends on the ids alone: a larger sample
    contains a smaller one, whatever the order of the index. With `each` every value of that tag has such a list. Raises
    DataError where no example has that tag.
    """
    if benchmark.examples is None:
        return list(examples)
    strata: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        strata[stratum_of(example, benchmark)].append(example)
    chosen = {
        example.id for stratum in strata.values() for example in ordered(stratum, benchmark)[: benchmark.examples]
    }
    return [example for example in examples if example.id in chosen]


def stratum_of(example: Example, benchmark: Benchmark) -> str:
    if benchmark.each is None:
        return ""
    if benchmark.each not in example.tags:
        raise DataError(
            f"{benchmark.name}: so many examples of each '{benchmark.each}' are wanted, and example '{example.id}' has "
            f"no such tag; {nearest(benchmark.each, example.tags)}"
        )
    return str(example.tags[benchmark.each])


def ordered(examples: Sequence[Example], benchmark: Benchmark) -> list[Example]:
    """The order of which a sample is the beginning."""
    if benchmark.sampling == "first":
        return list(examples)
    shuffled = sorted(examples, key=lambda example: example.id)
    random.Random(SEED).shuffle(shuffled)
    return shuffled
