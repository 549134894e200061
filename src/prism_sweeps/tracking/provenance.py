"""What a job was told and what it ran on: for its record, so that a result can be traced."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import subprocess
from functools import cache
from pathlib import Path

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import Job

COMMIT = "COMMIT"
"""File beside a snapshot of this package that tells which commit it was taken of."""
LIBRARIES = ("prism-sweeps", "torch", "torchvision", "timm", "open_clip_torch", "transformers", "tokenizers")


def config_text(job: Job, engine: Engine) -> str:
    """What a job was told, on what, as YAML."""
    import yaml

    plain = {"job": dataclasses.asdict(job), "engine": dataclasses.asdict(engine), "libraries": library_versions()}
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


@cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@cache
def source_commit() -> str | None:
    """The git commit of this code, with `-dirty` after it when files differ; None outside of a working copy."""
    folder = Path(__file__).parent
    kept = folder.parents[1] / COMMIT
    if kept.is_file():
        return kept.read_text(encoding="utf-8").strip()
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
