"""Pickles that hold nothing but plain data.

Python's own `pickle.load` runs what a pickle tells it to. Here a pickle can build lists, tuples, dicts, sets, texts and
numbers, for which it needs no name of anything; one that names a class or a function is refused before it is found.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import DataError


class PlainUnpickler(pickle.Unpickler):
    """Reads plain data only."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses: plain data has no classes."""
        raise pickle.UnpicklingError(f"it wants {module}.{name}, and plain data needs no such thing")


def plain_pickle_of(path: Path) -> Any:
    """What a pickle of plain data holds; Python 2's texts are read as UTF-8. Raises DataError."""
    try:
        with path.open("rb") as stream:
            return PlainUnpickler(stream, encoding="utf-8").load()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, MemoryError,
        OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise DataError(f"{path} is no pickle of plain data: {error}; nothing in it was run") from error
