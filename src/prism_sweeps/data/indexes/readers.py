"""Readers by name: what makes rows of a benchmark's official files.

A reader is a function of the files that the declaration names (`Origin.files`, name -> path) and yields rows without
ids, see `rows.index_row`. What is wrong with a file it raises as DataError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.own_code import own_code
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
        found: Reader = own_code("reader", name)
        if not callable(found):
            raise ConfigError(f"reader '{name}': of type {type(found).__name__}; a function is wanted")
        return found
    if name not in READERS:
        raise ConfigError(f"unknown reader '{name}'; {nearest(name, READERS)}, or package.module:function of one's own")
    return READERS[name]
