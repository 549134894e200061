"""prism evaluate --power: what differences benchmarks can show, before anything is scored."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prism_sweeps.commands.opening import default_store
from prism_sweeps.commands.output import console, numbered, print_json, table
from prism_sweeps.config.compose import DesignSpace, assignment, design_space
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.scorers import scorer
from prism_sweeps.planning.datasets import benchmark_examples
from prism_sweeps.planning.grid import values_of
from prism_sweeps.planning.jobs import shortened
from prism_sweeps.reporting.power import Seen, detectable, examples_for, seen, standard_error
from prism_sweeps.reporting.scored import Evaluated, of_studies
from prism_sweeps.tracking.records import Store

ALPHA, POWER, DIFFERENCE = 0.05, 0.8, 1.0
ACCURACY, DISCORDANCE = 70.0, 0.2
"""Where nothing was scored yet: percent, and the share of examples that one of two models alone has right."""
MODELS = 6
"""So many that were scored last tell of a benchmark: 15 pairs."""
OPTIONS = ("alpha", "power_target", "discordance", "accuracy", "difference")
WHOLE = "whole"

Question = tuple[str, ...]
"""What tells a benchmark's questions and scores from others, however many of them are asked."""


@dataclass(frozen=True)
class Setting:
    """What is asked of the numbers; None: what the store says, else what is assumed."""

    alpha: float
    power: float
    difference: float
    """Percentage points."""
    accuracy: float | None
    """Percent."""
    discordance: float | None


@dataclass(frozen=True)
class Outlook:
    """One benchmark of one size; scores in percent, differences in points, unknown is None.

    `needed`: examples that a difference of the setting needs. `assumed`: which numbers nothing in the store tells.
    """

    benchmark: str
    part: str
    examples: int | None
    accuracy: float
    standard_error: float | None
    discordance: float
    design_effect: float
    detectable: float | None
    needed: int | None
    models: int
    assumed: list[str]


def refuse_options(arguments: Namespace) -> None:
    """Raises ConfigError for an option that means nothing without --power."""
    for name in OPTIONS:
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} belongs to --power")


def run(arguments: Namespace) -> int:
    setting = setting_of(arguments)
    parts = benchmarks_of(arguments.overrides, design_space(arguments.config_dir))
    store = default_store(arguments)
    known = told_by(store, [benchmark for _, benchmark in parts])
    rows = [outlook(part, benchmark, known.get(question(benchmark)), setting) for part, benchmark in parts]
    if arguments.json:
        told = {"alpha": setting.alpha, "power": setting.power, "difference": setting.difference}
        print_json({**told, "store": str(store.root), "rows": [dataclasses.asdict(row) for row in rows]})
    else:
        show(rows, setting)
    return 0


def setting_of(arguments: Namespace) -> Setting:
    def checked(name: str, default: float | None, top: float) -> float | None:
        value = getattr(arguments, name)
        if value is not None and not 0 < value < top:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: it lies between 0 and {top:g}")
        return default if value is None else float(value)

    return Setting(
        alpha=checked("alpha", ALPHA, 1) or ALPHA,
        power=checked("power_target", POWER, 1) or POWER,
        difference=checked("difference", DIFFERENCE, 100) or DIFFERENCE,
        accuracy=checked("accuracy", None, 100),
        discordance=checked("discordance", None, 1),
    )


# ---- which benchmarks


def benchmarks_of(arguments: Sequence[str], space: DesignSpace) -> list[tuple[str, Benchmark]]:
    """(suite, or `whole`) and benchmark: whole, and where a suite takes a part of it that too. Each once."""
    names = [text for text in arguments if "=" not in text]
    suites, inside = suites_of([text for text in arguments if "=" in text], space)
    found = [(WHOLE, space.benchmark(name)) for name in names]
    for suite in suites or ([] if names else [space.default_choices["suite"]]):
        content = space.part("suite", suite, inside)
        for benchmark in content.benchmarks.values():
            whole = dataclasses.replace(benchmark, examples=None, each=None)
            cut = shortened(benchmark, content.examples)
            found += [(WHOLE, whole), *([(suite, cut)] if cut.examples is not None else [])]
    return sorted_by_name(found)


def suites_of(overrides: Sequence[str], space: DesignSpace) -> tuple[list[str], dict[str, Any]]:
    """The suites that are named, and what is changed inside them."""
    suites, inside = [], {}
    for text in overrides:
        override = assignment(space.files.parse(text))
        key = override.key_or_group
        if key == "suite":
            suites = [space.choice("suite", value) for value in values_of(override)]
        elif key.startswith("suite."):
            inside[key] = override.value()
        else:
            raise ConfigError(f"'{text}': --power speaks of benchmarks; give suite=NAME, or names of benchmarks")
    return suites, inside


def sorted_by_name(found: Sequence[tuple[str, Benchmark]]) -> list[tuple[str, Benchmark]]:
    """The parts of one benchmark beside each other, in the order in which benchmarks are first named."""
    by_name: dict[str, dict[str, tuple[str, Benchmark]]] = defaultdict(dict)
    for part, benchmark in found:
        by_name[benchmark.name].setdefault(part, (part, benchmark))
    return [each for parts in by_name.values() for each in parts.values()]


# ---- what is known of them


def question(benchmark: Benchmark) -> Question:
    return benchmark.index, benchmark.version, benchmark.prompt, benchmark.scorer


def told_by(store: Store, benchmarks: Sequence[Benchmark]) -> dict[Question, Seen]:
    """What the models that were scored last show of these benchmarks."""
    wanted = {question(benchmark) for benchmark in benchmarks}
    models: dict[Question, dict[tuple[str, str], Evaluated]] = defaultdict(dict)
    for one in of_studies(store):
        key = question(one.spec.benchmark)
        if one.spec.condition == "real" and key in wanted and len(models[key]) < MODELS:
            models[key].setdefault(one.model, one)
    return {
        key: seen([one.record.read_predictions() for one in found.values()], scorer(key[-1]).equal_splits)
        for key, found in models.items()
    }


def outlook(part: str, benchmark: Benchmark, known: Seen | None, setting: Setting) -> Outlook:
    """One row. What the arguments say comes before what the store tells, and that before what is assumed."""
    assumed: list[str] = []

    def value(name: str, given: float | None, default: float) -> float:
        told = math.nan if known is None else float(getattr(known, name))
        if given is None and math.isnan(told):
            assumed.append(name)
            return default
        return told if given is None else given

    accuracy = value("accuracy", setting.accuracy and setting.accuracy / 100, ACCURACY / 100)
    spread = value("spread", None, 1.0)
    discordance = value("discordance", setting.discordance, DISCORDANCE)
    effect = value("design_effect", None, 1.0)
    examples = benchmark_examples(benchmark)
    smallest = examples and detectable(examples, discordance, effect, setting.alpha, setting.power)
    return Outlook(
        benchmark=benchmark.name,
        part=part,
        examples=examples,
        accuracy=100 * accuracy,
        standard_error=None if examples is None else 100 * standard_error(accuracy, examples, spread),
        discordance=discordance,
        design_effect=effect,
        detectable=100 * smallest if smallest else None,
        needed=examples_for(setting.difference / 100, discordance, effect, setting.alpha, setting.power),
        models=0 if known is None else known.models,
        assumed=assumed,
    )


# ---- in words


def show(rows: Sequence[Outlook], setting: Setting) -> None:
    needed = f"n for {setting.difference:g}"
    columns = ("benchmark", "part", "n", "score", "SE", "discordance", "design effect", "shows", needed, "known from")
    screen = console()
    screen.print(table("", columns, map(shown, rows), right=columns[2:-1]))
    for line in explained(rows, setting):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)


def shown(row: Outlook) -> tuple[str, ...]:
    return (
        row.benchmark,
        row.part,
        "?" if row.examples is None else f"{row.examples:,}",
        f"{row.accuracy:.1f}",
        "?" if row.standard_error is None else f"± {row.standard_error:.2f}",
        f"{row.discordance:.3f}",
        f"{row.design_effect:.2f}",
        "?" if row.examples is None else "none" if row.detectable is None else f"{row.detectable:.2f}",
        "none does" if row.needed is None else f"{row.needed:,}",
        origin(row),
    )


def origin(row: Outlook) -> str:
    told = numbered(row.models, "model") if row.models else ""
    names = ", ".join(name.replace("_", " ") for name in row.assumed if name != "spread")
    return "; ".join(filter(None, (told, f"assumed: {names}" if names else "")))


def explained(rows: Sequence[Outlook], setting: Setting) -> list[str]:
    gap = f"{setting.difference:g} {'point' if setting.difference == 1 else 'points'}"
    lines = [
        "shows: the smallest difference, in points, of two models on the same examples that is found in "
        f"{100 * setting.power:g} % of such comparisons,",
        f"two-sided at {100 * setting.alpha:g} % (Connor 1987; Miller 2024); n for {setting.difference:g}: "
        f"how many examples show {gap}",
        "discordance: the share of examples that one of the two alone has right (soft scores: mean squared difference)",
        "design effect: how many questions that share images say as much as one that does not",
        "Another seed of a model is no part of this: prism report says what seeds differ by",
    ]
    if any("design_effect" in row.assumed for row in rows):
        lines.append("Assumed are independent questions: where several share an image, more of them are needed")
    return lines
