"""Real SLURM for tests. Each test file here has `pytestmark = pytest.mark.slurm`; `make test-slurm` runs them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab


@pytest.fixture(scope="session")
def _debian() -> None:
    """Where a cluster can be expected, one that does not come up is an error."""
    able = os.geteuid() == 0 and shutil.which("apt-get")
    if not able and "CI" not in os.environ:
        pytest.skip("the throw-away SLURM needs root on Debian")


@pytest.fixture(scope="session")
def cluster(_debian: None) -> Iterator[Lab]:
    """The cluster that tests share; SLURM_CONF is set. It goes down after the session if it was not up before.

    Not to be broken: see `own_cluster`.
    """
    folder = Path(os.environ.get("PRISM_SLURM_LAB", "/tmp/prism-slurm"))
    lab = Lab(folder, os.environ.get("PRISM_SLURM_PREFIX", "n"))
    was_up = " running " in lab.try_cluster("status").stdout
    try:
        lab.cluster("up")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", lab.slurm_conf)
            yield lab
    finally:
        if not was_up:
            lab.cluster("down")


@pytest.fixture(scope="module")
def own_cluster(_debian: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A second cluster, for one file of tests, which may kill what they like of it. It sets no SLURM_CONF."""
    # Other sessions on this machine have theirs.
    prefix = "own" + "".join("abcdefghij"[int(digit)] for digit in str(os.getpid()))
    lab = Lab(tmp_path_factory.mktemp("lab"), prefix)
    try:
        lab.cluster("up")
        yield lab
    finally:
        lab.cluster("down")
