"""Models of others and pictures, made once for all tests of a file."""

from pathlib import Path

import numpy as np
import pytest
import tiny_hf
from PIL import Image
from transformers import logging as transformers_logging

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make(root / kind) for kind, make in tiny_hf.FOLDERS.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    root, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = [root / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        Image.fromarray(drawn.integers(0, 255, (40 + 10 * number, 52, 3), dtype=np.uint8)).save(file)
    return files
