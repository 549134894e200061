"""Which finished model of others is meant, and what tells it from every other."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import ConfigError

KEY = "model"
SCHEMES = ("hf", "vllm")
COUNTED = (".json", ".jinja", ".model", ".txt", ".safetensors")
"""Endings of a folder's files that have a part in its answers: config, processor, tokenizer, weights."""
NOT_COUNTED = re.compile(r"\..*|checkpoint-\d+|trainer_state\.json|LICENSE\.txt|README\.txt")
"""Names of files and folders inside that have none, whatever their ending: caches, and what training left."""


def split(model: str) -> tuple[str, str]:
    """`hf:NAME` -> hf, NAME. Raises ConfigError."""
    scheme, _, name = model.partition(":")
    if scheme not in SCHEMES or not name:
        raise ConfigError(
            f"{KEY}={model}: should be hf:NAME_OR_FOLDER or vllm:NAME_OR_FOLDER, e.g. hf:llava-hf/llava-1.5-7b-hf"
        )
    return scheme, name


def normal(model: str) -> str:
    """With the absolute path of a folder. Raises ConfigError for a folder that is not there."""
    scheme, name = split(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return f"{scheme}:{folder.resolve()}"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"{KEY}={model}: no such folder, and no name on the hub, which would be OWNER/NAME")
    return model


def content_of(model: str) -> str:
    """What tells a model from every other: `sha256:` and a hash of a folder's files, or the commit of one of the hub.

    All of a folder's files that count are read whole, weights too: fine-tuned models differ in nothing else. That takes
    some seconds for a 7B model; in one process each file is read once, as long as its size and time stay.

    Raises ConfigError for a folder that holds no model in safetensors files, and for a name that cannot be resolved.
    """
    name = split(model)[1]
    return folder_content(Path(name)) if Path(name).is_dir() else hub_commit(name)


def folder_content(folder: Path) -> str:
    """`sha256:` and a hash over names and contents of the files that count. Raises ConfigError."""
    check_folder(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix in COUNTED and path.is_file())
    names = {path: path.relative_to(folder) for path in files}
    counted = {path: name for path, name in names.items() if not any(map(NOT_COUNTED.fullmatch, name.parts))}
    hashes = [[name.as_posix(), file_hash(path, *stamp(path))] for path, name in counted.items()]
    return "sha256:" + hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def check_folder(folder: Path) -> None:
    """Raises ConfigError unless it is one of a model in safetensors files."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"'{folder}' holds no model: no config.json; a folder that save_pretrained wrote is meant")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{folder}': its config.json cannot be read: {error}") from error
    if "prism" in config:
        raise ConfigError(
            f"'{folder}' is in this package's own format; for transformers and vLLM write it once more: "
            f"prism export {folder} --format llava --to FOLDER"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"'{folder}' has no .safetensors file, and no other weights are read, as these could run code; load them "
            "yourself once with transformers and call save_pretrained(FOLDER)"
        )


def stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@cache
def file_hash(path: Path, size: int, changed: int) -> str:
    """Of its content; `size` and `changed` say which one, so that it is not read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hub_commit(name: str) -> str:
    """The commit that a hub name stands for: the one in this machine's cache, else the newest one.

    Raises ConfigError where neither the cache nor the hub tells.
    """
    import huggingface_hub
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,  # of whatever it speaks HTTP with, which changes with its major version
        RepositoryNotFoundError,
    )

    remedy = f"fetch it where there is a network (hf download {name}), or give its folder: {KEY}=hf:FOLDER"
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent.name
        commit: Any = huggingface_hub.HfApi().model_info(name, timeout=30).sha
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{KEY}=hf:{name}: neither a folder nor a model of the hub that may be read") from error
    except (HTTPError, OSError) as error:
        raise ConfigError(
            f"{KEY}=hf:{name}: not in this machine's cache, and the hub is out of reach; {remedy}"
        ) from error
    if not commit:
        raise ConfigError(f"{KEY}=hf:{name}: the hub does not say which commit it has; {remedy}")
    return str(commit)
