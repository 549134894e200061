"""Errors a user can act on: what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 80
"""Valid names that an error lists at most."""


class PrismError(Exception):
    """Base of every error that is the user's to mend; the command line prints its text without a traceback."""


class ConfigError(PrismError):
    """A choice, key or value that the design space does not have, or a combination that cannot work."""


class DataError(PrismError):
    """A file of the data that is missing or malformed; the text names file and position."""


class StoreError(PrismError):
    """A record on disk that cannot be read or written."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The clause that ends an error about an unknown `name`: the closest valid one, then all, or the first of many."""
    choices = sorted(valid)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    more = f" and {len(choices) - LISTED} more" if len(choices) > LISTED else ""
    return f"{hint}valid: {', '.join(choices[:LISTED]) if choices else '(none)'}{more}"
