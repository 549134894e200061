"""The fingerprint: a hash of everything that changes a result and of nothing else.

Left out are fields marked `local()` and fields at their default, so that a field added later, with a default that is
what was done before, leaves old fingerprints valid. A default may therefore never be changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any

from prism_sweeps.config import weights

SCHEMA_VERSION = 1
"""Raised when old results may no longer stand for the same configuration."""

_NONE = object()

Known = dict[tuple[int, int | None], tuple[Any, Any]]
"""(id of a part, resolution) -> that part, so that its id stays its own, and its identity."""


def fingerprint(obj: Any, known: Known | None = None) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of a schema or spec object.

    Of a tower's weights only those at the resolution in use count, by content where the package ships them. A spec's
    parent counts by its fingerprint, which the spec holds. `known` remembers parts from call to call, for the many
    objects of a grid that share them; nothing in it may change meanwhile.
    """
    content = [SCHEMA_VERSION, type(obj).__name__, identity(obj, None, {} if known is None else known)]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(obj: Any, pixels: int | None, known: Known) -> Any:
    """What of `obj` changes a result, as JSON-able data; `pixels` is the resolution its towers are used at."""
    kind: type = type(obj)
    if is_dataclass(kind):
        place = (id(obj), pixels)
        if place not in known:
            known[place] = (obj, _object(obj, kind, pixels, known))
        return known[place][1]
    if isinstance(obj, Mapping):
        return {str(key): identity(value, pixels, known) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [identity(value, pixels, known) for value in obj]
    return obj


def _object(obj: Any, kind: type, pixels: int | None, known: Known) -> dict[str, Any]:
    pixels = getattr(getattr(obj, "resolution", None), "pixels", pixels)
    content = {name: _entry(each, getattr(obj, name), pixels, known) for name, each in _counted(kind).items()}
    return {name: value for name, value in content.items() if value is not _NONE}


@cache
def _counted(kind: type) -> dict[str, Field[Any]]:
    return {each.name: each for each in fields(kind) if each.metadata.get("changes_result", True)}


def _entry(each: Field[Any], value: Any, pixels: int | None, known: Known) -> Any:
    if value == _default(each):
        return _NONE
    if each.metadata.get("weights"):
        return _weights(value, pixels)
    if each.metadata.get("ordered"):
        return [[key, identity(item, pixels, known)] for key, item in value.items()]
    content = identity(value, pixels, known)
    # A group of which nothing counts is as if it were not there.
    return _NONE if content == {} and is_dataclass(value) else content


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default


def _weights(value: str | Mapping[int, str], pixels: int | None) -> Any:
    if isinstance(value, str):
        return weights.identity(value)
    if pixels is not None and pixels in value:
        return weights.identity(value[pixels])
    return {str(key): weights.identity(each) for key, each in value.items()}
