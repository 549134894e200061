"""prism compare: two scored models on the same examples."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prism_sweeps.commands.ask import chosen
from prism_sweeps.commands.opening import default_store
from prism_sweeps.commands.output import console, label, numbered, print_json, table
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.specs import BaselineSpec
from prism_sweeps.evaluation.scorers import scorer
from prism_sweeps.reporting.paired import MCNEMAR, RESAMPLES, Paired, compare, disagreement
from prism_sweeps.reporting.scored import (
    Evaluated,
    asked_otherwise,
    incomparable,
    of_baseline,
    of_cell,
    of_studies,
)
from prism_sweeps.reporting.statistics import holm

SCHEMES = ("hf:", "vllm:")
NAMED = 3
"""Reasons that an error names."""
COLUMNS = ("benchmark", "condition", "n", "A", "B", "A - B", "SE", "95 % interval", "p", "Holm", "test", "McNemar p")
RIGHT = ("n", "A", "B", "A - B", "SE", "95 % interval", "p", "Holm", "McNemar p")
EXPLAINED = f"""\
A - B in points on the examples that both have; SE by image; interval: BCa bootstrap of {RESAMPLES:,} draws of images
p: {MCNEMAR}'s exact test where scores are 0 or 1 and no two questions share an image, else exact sign flips by image
Holm: corrected for the benchmarks under one condition; McNemar p: to compare, as if questions were independent
All of it is about these two trained models; how much another seed changes is what prism report tells of a study"""


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    name: str
    about: dict[str, Any]
    found: list[Evaluated]


@dataclass
class Compared:
    """What came out, benchmark by benchmark: rows, refusals, and what else is to be known."""

    rows: list[tuple[tuple[str, str], Paired]] = field(default_factory=list)
    refused: list[tuple[tuple[str, str], str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def run(arguments: Namespace) -> int:
    a, b = (side(arguments, text) for text in (arguments.a, arguments.b))
    if a.name == b.name:
        raise ConfigError(f"both sides are {a.name}; give two models")
    found = compared(a, b)
    if not found.rows:
        raise ConfigError(f"nothing to compare of {a.name} and {b.name}: {first_of(told(found))}")
    if arguments.json:
        print_json(as_json(a, b, found))
    else:
        show(a, b, found)
    return 0


def side(arguments: Namespace, text: str) -> Side:
    """The model that `text` names: a cell's id, overrides with blanks between them, or a finished model."""
    name = text.removeprefix("model=")
    return of_others(arguments, name) if name.startswith(SCHEMES) else of_ours(arguments, text)


def of_ours(arguments: Namespace, text: str) -> Side:
    plan, cell, store = chosen(Namespace(**vars(arguments) | {"cell": text.split()}))
    name = f"cell {cell.id} ({label(cell)}, seed {cell.seed})"
    found = of_cell(plan, cell, store)
    if not found:
        raise ConfigError(f"{name} has no evaluation that is done in {store.root}; prism evaluate scores it")
    about = {"cell": cell.id, "study": plan.study, "label": label(cell), "seed": cell.seed}
    return Side(name, about, found)


def of_others(arguments: Namespace, name: str) -> Side:
    """Of several precisions, or contents of a folder, what was scored last. Raises ConfigError."""
    store = default_store(arguments)
    scheme, _, place = name.partition(":")
    found = of_baseline(store, (name, f"{scheme}:{Path(place).expanduser().resolve()}"))
    if not found:
        known = {one.spec.model for one in of_studies(store) if isinstance(one.spec, BaselineSpec)}
        raise ConfigError(f"{name} has no evaluation that is done in {store.root}; {nearest(name, known)}")
    files, precision = found[0].model
    return Side(name, {"model": files, "precision": precision}, [one for one in found if one.model == found[0].model])


# ---- what is compared


def compared(a: Side, b: Side) -> Compared:
    """All benchmarks and conditions that both were scored on."""
    found = Compared()
    keys_a, keys_b = ({one.key for one in each.found} for each in (a, b))
    for key in dict.fromkeys(one.key for one in (*a.found, *b.found)):
        if key in keys_a & keys_b:
            add(found, key, *matching(a, b, key))
        else:
            found.remarks.append(f"{titled(key)}: only {'A' if key in keys_a else 'B'} was scored on it")
    found.rows = with_holm(found.rows)
    return found


def matching(a: Side, b: Side, key: tuple[str, str]) -> tuple[Evaluated, Evaluated]:
    """Evaluations of one form of the benchmark, where a finished model was scored on several; else the last ones."""
    of_a, of_b = ([one for one in each.found if one.key == key] for each in (a, b))
    both = [(left, right) for left in of_a for right in of_b]
    return next((pair for pair in both if pair[0].spec.benchmark == pair[1].spec.benchmark), both[0])


def add(found: Compared, key: tuple[str, str], a: Evaluated, b: Evaluated) -> None:
    reason = incomparable(a, b)
    rows_a, rows_b = ([] if reason else one.record.read_predictions() for one in (a, b))
    reason = reason or disagreement(rows_a, rows_b)
    if reason:
        found.refused.append((key, reason))
        return
    row = compare(rows_a, rows_b, scorer(a.spec.benchmark.scorer).equal_splits)
    if row is None:
        found.refused.append((key, f"no example of A's {len(rows_a):,} is among B's {len(rows_b):,}"))
        return
    found.rows.append((key, row))
    found.remarks += [f"{titled(key)}: {text}" for text in (*unpaired(row), *asked_otherwise(a, b))]


def unpaired(row: Paired) -> Iterator[str]:
    for name, count in (("A", row.only_a), ("B", row.only_b)):
        if count:
            yield f"{numbered(count, 'example')} that only {name} has left out"


def with_holm(rows: Sequence[tuple[tuple[str, str], Paired]]) -> list[tuple[tuple[str, str], Paired]]:
    """Condition by condition, corrected for the benchmarks under one: another condition is another question."""
    corrected = []
    for condition in dict.fromkeys(key[1] for key, _ in rows):
        part = [(key, row) for key, row in rows if key[1] == condition]
        adjusted = holm([row.p for _, row in part])
        corrected += [(key, replace(row, p_holm=p)) for (key, row), p in zip(part, adjusted, strict=True)]
    return corrected


# ---- as data, and in words


def as_json(a: Side, b: Side, found: Compared) -> dict[str, Any]:
    return {
        "a": {"name": a.name, **a.about},
        "b": {"name": b.name, **b.about},
        "resamples": RESAMPLES,
        "rows": [{**keyed(key), **finite(dataclasses.asdict(row))} for key, row in found.rows],
        "refused": [{**keyed(key), "reason": reason} for key, reason in found.refused],
        "remarks": found.remarks,
    }


def keyed(key: tuple[str, str]) -> dict[str, str]:
    return {"benchmark": key[0], "condition": key[1]}


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def show(a: Side, b: Side, found: Compared) -> None:
    screen = console()
    rows = [shown(key, row) for key, row in found.rows]
    screen.print(table(f"A: {a.name}\nB: {b.name}", COLUMNS, rows, right=RIGHT))
    for line in (*told(found), *EXPLAINED.split("\n")):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)


def shown(key: tuple[str, str], row: Paired) -> tuple[str, ...]:
    interval = "" if math.isnan(row.low) else f"{row.low:+.2f} to {row.high:+.2f}"
    error = "" if math.isnan(row.standard_error) else f"± {row.standard_error:.2f}"
    scores = (f"{row.score_a:.2f}", f"{row.score_b:.2f}", f"{row.difference:+.2f}")
    mcnemar = "" if row.mcnemar is None else chance(row.mcnemar)
    return *key, f"{row.examples:,}", *scores, error, interval, chance(row.p), chance(row.p_holm), row.test, mcnemar


def chance(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def told(found: Compared) -> list[str]:
    return [*(f"{titled(key)} is refused: {reason}" for key, reason in found.refused), *found.remarks]


def first_of(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    return "; ".join(reasons[:NAMED]) + more


def titled(key: tuple[str, str]) -> str:
    return f"{key[0]} ({key[1]})"
