"""Grids: a study's blocks and the command line's overrides, as the points they stand for.

A point is what a cell changes of the study's base: group -> choice, or dotted key -> value. The base alone is the
baseline cell, `{}`, which every grid has as its first point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override

from prism_sweeps.config.compose import DesignSpace, assignment
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import AXES, GROUPS, Block, Study

Point = dict[str, Any]

VARY = ("product", "one-at-a-time", "together")
PLACE = ("engine", "cluster", "tracking", "store")
"""Where a plan runs: the same for all its cells, so no axis."""


@dataclass
class Grid:
    """A study with the command line's overrides put in."""

    study: Study
    crossed: dict[str, list[Any]] = field(default_factory=dict)
    """Axes of the command line: every point of the study is run with each of their values."""

    def points(self) -> list[Point]:
        """All points, the baseline first, each once."""
        blocks = [Point()] + [point for block in self.study.grid for point in block_points(block)]
        crossed = [dict(zip(self.crossed, values, strict=True)) for values in product(*self.crossed.values())]
        return list({repr({**inner, **outer}): {**inner, **outer} for inner in blocks for outer in crossed}.values())


def block_points(block: Block) -> list[Point]:
    """The points of one block of a study's grid."""
    if block.vary not in VARY:
        raise ConfigError(f"grid: vary is '{block.vary}'; {nearest(block.vary, VARY)}")
    for key, values in block.axes.items():
        _check_axis(key, values)
    keys, lists = list(block.axes), list(block.axes.values())
    if block.vary == "one-at-a-time":
        return [{key: value} for key, values in block.axes.items() for value in values]
    if block.vary == "together" and len({len(values) for values in lists}) > 1:
        lengths = ", ".join(f"{key} {len(values)}" for key, values in block.axes.items())
        raise ConfigError(f"grid: axes that vary together need equally many values, but have: {lengths}")
    rows: Iterable[tuple[Any, ...]] = zip(*lists, strict=True) if block.vary == "together" else product(*lists)
    return [dict(zip(keys, row, strict=True)) for row in rows]


def with_overrides(study: Study, overrides: Sequence[str], space: DesignSpace) -> Grid:
    """`study` with command-line overrides in Hydra's grammar.

    One value changes the base of every cell; where a block crosses or pairs that axis, the axis is held at it. Several
    values (`a,b`, `range()`, `choice()`, `glob()`) take the axis out of the blocks and cross it with all of them; the
    first is the baseline's. `seed=...` sets the seeds.
    """
    grid = Grid(replace(study, base=dict(study.base)))
    seen: set[str] = set()
    for text in overrides:
        override = assignment(space.files.parse(text))
        key = override.key_or_group
        if key in seen:
            raise ConfigError(f"'{key}' is given twice")
        seen.add(key)
        _apply(grid, key, values_of(override))
    return grid


def values_of(override: Override) -> list[Any]:
    """The values an override stands for, in order; a range without end or without order is a ConfigError."""
    if not override.is_sweep_override():
        return [override.value()]
    text, sweep = override.input_line, override.value()
    if isinstance(sweep, IntervalSweep):
        raise ConfigError(f"'{text}': interval() has no countable values; use range() or choice()")
    if getattr(sweep, "shuffle", False):
        raise ConfigError(f"'{text}': a plan has a fixed order; leave shuffle() out")
    values = [Override._convert_value(value) for value in override.sweep_iterator()]
    if not values:
        raise ConfigError(f"'{text}' matches nothing" if isinstance(sweep, Glob) else f"'{text}' has no values")
    return values


def _apply(grid: Grid, key: str, values: list[Any]) -> None:
    study = grid.study
    if key == "seed":
        study.seeds = values
        return
    study.base[key] = values[0]
    if len(values) > 1:
        _check_axis(key, values)
        grid.crossed[key] = values
    study.grid = [_without(block, key, held=len(values) == 1) for block in study.grid]


def _without(block: Block, key: str, held: bool) -> Block:
    # Held at one value, an axis that is varied one at a time still is, around the new baseline.
    if held and block.vary == "one-at-a-time":
        return block
    return replace(block, axes={each: values for each, values in block.axes.items() if each != key})


def _check_axis(key: str, values: Sequence[Any]) -> None:
    if key == "seed":
        raise ConfigError("grid: 'seed' is no axis; list the study's `seeds`")
    if key.partition(".")[0] in PLACE:
        raise ConfigError(
            f"grid: '{key}' says where a plan runs and is the same for all of it; axes: {', '.join(AXES)}"
        )
    if not values:
        raise ConfigError(f"grid: axis '{key}' has no values")


def check_rules(study: Study, space: DesignSpace) -> None:
    """Raise ConfigError for `base` and `exclude` entries that no cell could match, and for missing seeds."""
    if "seed" in study.base:
        raise ConfigError("base: 'seed' belongs under `seeds`")
    if not study.seeds:
        raise ConfigError("seeds: none given")
    for rule in study.exclude:
        if not rule:
            raise ConfigError("exclude: an empty rule would leave out every cell")
        for key, value in rule.items():
            if key in GROUPS:
                space.choice(key, value)
            elif key.partition(".")[0] not in (*GROUPS, "seed"):
                raise ConfigError(f"exclude: unknown key '{key}'; {nearest(key, [*GROUPS, 'seed'])}")


def matches(rule: Mapping[str, Any], choices: Mapping[str, str], config: Mapping[str, Any]) -> bool:
    """Whether a cell (its choices and its plain config) agrees with all entries of an exclude rule."""
    return all(
        choices[key] == str(value) if key in choices else lookup(config, key) == value for key, value in rule.items()
    )


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key of a plain config; None where there is none."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node
