"""What the fields of the schema say about themselves."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from omegaconf import MISSING

LOCAL = {"changes_result": False}
"""Metadata of a field that cannot change a result."""

ORDERED = {"ordered": True}
"""Metadata of a dict whose order is part of its meaning."""

WEIGHTS = {"weights": True}
"""Metadata of a field that says where weights are: what they hold counts, not only where."""


def local(default: Any = MISSING) -> Any:
    """A field that cannot change a result."""
    return field(default=default, metadata=LOCAL)
