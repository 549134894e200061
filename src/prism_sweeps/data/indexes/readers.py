"""Readers by name: what makes rows of a benchmark's official files.

A reader is a function of the files that the declaration names (`Origin.files`, name -> path) and yields rows without
ids, see `rows.index_row`. What is wrong with a file it raises as DataError.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.data.indexes import ai2d, gqa, ocidref, pope, refcoco, tallyqa, textvqa, vizwiz, vqav2, vsr
from prism_sweeps.data.indexes.rows import Row

Reader = Callable[[Mapping[str, Path]], Iterable[Row]]

READERS: dict[str, Reader] = {
    "vqav2": vqav2.rows,
    "gqa": gqa.rows,
    "vizwiz": vizwiz.rows,
    "textvqa": textvqa.rows,
    "refcoco": refcoco.rows,
    "ocidref": ocidref.rows,
    "vsr": vsr.rows,
    "pope": pope.rows,
    "tallyqa": tallyqa.rows,
    "ai2d": ai2d.rows,
}


def reader_of(name: str) -> Reader:
    """The reader of that name, or one's own, `package.module:function`. Raises ConfigError."""
    if ":" in name:
        return own_reader(name)
    if name not in READERS:
        raise ConfigError(f"unknown reader '{name}'; {nearest(name, READERS)}, or package.module:function of one's own")
    return READERS[name]


def own_reader(name: str) -> Reader:
    """What goes wrong inside of its module is raised as it is."""
    module, _, attribute = name.partition(":")
    try:
        found: Reader | None = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"reader '{name}': its module needs {error.name}, which is not installed") from error
        raise ConfigError(
            f"reader '{name}': there is no module {error.name}; its folder belongs on PYTHONPATH, or install it"
        ) from None
    if not callable(found):
        raise ConfigError(f"reader '{name}': {module} has no function {attribute}")
    return found
