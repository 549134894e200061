"""A scorer of one's own, which a benchmark names as `package.module:name`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from numbers import Real
from typing import Any

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.own_code import own_code
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.scoring.golds import answers_or_box
from prism_sweeps.evaluation.scoring.rows import Row, Scorer


@cache
def own_scorer(name: str) -> Scorer:
    """The Scorer `name`, or one made of the function `name`: (answer, gold) -> 0..1.

    For a function, `gold` is the list of the example's answers, or its box where it has none. What a function says is
    kept under its name, so one that says something else wants another name. Raises ConfigError that names what is
    missing; what goes wrong inside of the module is raised as it is.
    """
    found = own_code("scorer", name)
    if isinstance(found, Scorer):
        return found
    if not callable(found):
        raise ConfigError(
            f"scorer '{name}': of type {type(found).__name__}; a Scorer or a function of answer and gold is wanted"
        )
    return Scorer(scored_by(found, name), answers_or_box)


def scored_by(function: Callable[[str, Any], Any], name: str) -> Callable[[Row, Benchmark], float]:
    """The function as a score, with its values checked."""

    def score(row: Row, benchmark: Benchmark) -> float:
        value = function(row["answer"], row["gold"])
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise ConfigError(
                f"scorer '{name}': it said {value!r} of example '{row['id']}'; a number of 0..1 is wanted"
            )
        return float(value)

    return score
