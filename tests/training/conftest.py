from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_training as tiny
import torch

from prism_sweeps.tracking.records import Store


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With 48 conversations in it."""
    return tiny.open_store(tmp_path / "store")
