"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.tracking.files import explained, make_folder, sync_folder


def check_free(to: Path) -> None:
    """Raises ConfigError when `to` is a file or a folder that holds something."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to}: exists already and is not an empty folder; nothing was written, name another")


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `to` when the block ends well and vanishes otherwise.

    Raises ConfigError when `to` is taken and StoreError when the disk refuses.
    """
    check_free(to)
    to = to.resolve()
    make_folder(to.parent)
    with explained("write", to, "nothing of it was kept"):
        folder = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}.tmp-"))
        try:
            yield folder
            folder.chmod(0o755)
            for path in folder.rglob("*"):
                if path.is_file():
                    path.chmod(0o644)  # safetensors makes files for their owner alone
                    _flush(path)
            check_free(to)  # it took minutes to get here
            folder.replace(to)
            sync_folder(to.parent)
        except SafetensorError as error:
            raise StoreError(f"cannot write {to}: {error}; nothing of it was kept") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
