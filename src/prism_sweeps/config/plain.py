"""Schema and spec objects as JSON-able data, and back with their types checked."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import Cell
from prism_sweeps.config.specs import BaselineSpec, EvaluationSpec, StageSpec

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Dataclasses, dicts and lists as dicts with string keys and lists: what JSON and YAML can hold."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def from_plain(kind: type[T], value: Any, where: str = "") -> T:
    """The `kind` that `plain` wrote as `value`; a missing, unknown or mistyped entry is a ConfigError."""
    return cast(T, _build(kind, value, where or kind.__name__))


def cell_from_plain(value: Mapping[str, Any]) -> Cell:
    """The cell that `plain` wrote."""
    return from_plain(Cell, value, "cell")


def spec_from_plain(value: Mapping[str, Any]) -> StageSpec | EvaluationSpec | BaselineSpec:
    """The spec that `plain` wrote, told apart by its `kind`; a finished model's by its `content`."""
    evaluation = BaselineSpec if "content" in value else EvaluationSpec
    kinds: dict[str, type[StageSpec] | type[EvaluationSpec] | type[BaselineSpec]] = {
        "train": StageSpec,
        "evaluate": evaluation,
    }
    kind = value.get("kind")
    if kind not in kinds:
        raise ConfigError(f"spec: kind is {kind!r}; {nearest(str(kind), kinds)}")
    return from_plain(kinds[kind], value, "spec")


@cache
def _types(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _build(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _build(next(k for k in get_args(kind) if k is not type(None)), value, where)
    if origin is list:
        (item,) = get_args(kind)
        return [_build(item, each, f"{where}[{i}]") for i, each in enumerate(_typed(list, value, where))]
    if origin is dict:
        key, item = get_args(kind)
        entries = _typed(dict, value, where)
        return {_key(key, k, where): _build(item, each, f"{where}.{k}") for k, each in entries.items()}
    if is_dataclass(kind):
        if isinstance(value, cast(type, kind)):
            return value  # built before, for others that hold it too
        return _build_object(kind, _typed(dict, value, where), where)
    if kind is float and type(value) is int:
        return float(value)
    return _typed(kind, value, where)


def _build_object(kind: Any, entries: dict[str, Any], where: str) -> Any:
    known = _types(kind)
    for name in entries:
        if name not in known:
            raise ConfigError(f"{where}: unknown key '{name}'; {nearest(str(name), known)}")
    try:
        return kind(**{name: _build(known[name], each, f"{where}.{name}") for name, each in entries.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition('() ')[2]}") from error


def _key(kind: Any, key: Any, where: str) -> Any:
    # JSON turns the integer keys of a weights table into strings.
    if kind is int and isinstance(key, str) and key.isdecimal():
        return int(key)
    return _typed(kind, key, where)


def _typed(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: {value!r} is a {type(value).__name__}, not a {kind.__name__}")
    return value
