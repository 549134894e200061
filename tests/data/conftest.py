"""Where official files are, and what is declared about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from prism_sweeps.config.compose import design_space


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """A folder with `official`, `conf` and a store; nothing of it was read before."""
    design_space.cache_clear()
    for name in ("official", "conf/benchmark"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path
