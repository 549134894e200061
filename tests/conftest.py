"""Before anything else imports torch: one thread, no hub, no telemetry, and the package's cure for torchvision."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import prism_sweeps  # noqa: E402, F401

# A loaded machine is slow, not wrong.
settings.register_profile("prism", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("prism")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)
