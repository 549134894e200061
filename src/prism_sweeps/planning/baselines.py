"""Plans of baselines: finished models of others on the benchmarks of a suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from prism_sweeps.config.checks import check_cell
from prism_sweeps.config.compose import assignment, compose_cell, design_space
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.fingerprint import fingerprint
from prism_sweeps.config.names import check_study_name
from prism_sweeps.config.plain import plain
from prism_sweeps.config.schema import Cell
from prism_sweeps.config.specs import BaselineSpec, Job
from prism_sweeps.config.suite import SCORER_VERSIONS
from prism_sweeps.planning.grid import PLACE, values_of
from prism_sweeps.planning.jobs import Shared
from prism_sweeps.planning.plan import Plan, PlannedCell

KEY = "model"
SCHEMES = ("hf", "vllm")
SAID = ("suite", *PLACE)
"""All that can be said of a finished model's evaluation."""
COUNTED = (".json", ".jinja", ".model", ".txt", ".safetensors")
"""Endings of a folder's files that have a part in its answers: config, processor, tokenizer, weights."""
NO_SEED = 0


def names_baselines(overrides: Sequence[str]) -> bool:
    """Whether these overrides are about finished models."""
    return any(text.partition("=")[0] == KEY for text in overrides)


def make_baseline_plan(overrides: Sequence[str], name: str | None = None, config_dir: Path | None = None) -> Plan:
    """The plan of `model=hf:A,hf:B` and overrides of suite, engine and store.

    Each model is a cell with nothing to train, the first one the baseline that others are compared with. `name` is the
    study's, by default `baseline/` and what the models are called. Raises ConfigError.
    """
    models, rest = told_apart(overrides, config_dir)
    cell, choices = compose_cell(rest, config_dir)
    check_cell(cell, choices, config_dir)
    found = {model: content_of(model) for model in models}
    jobs = {job.fingerprint: job for model, content in found.items() for job in baseline_jobs(model, content, cell)}
    cells = [planned(model, list(jobs.values()), cell, choices["suite"], model == models[0]) for model in found]
    study = name or default_name(models)
    check_study_name(study)
    return Plan(
        study=study,
        description=f"finished models: {', '.join(found)}",
        axes={KEY: list(found)} if len(found) > 1 else {},
        cells=cells,
        jobs=jobs,
        engine=cell.engine,
        tracking=cell.tracking,
        store=cell.store,
        cluster=cell.cluster,
    )


def told_apart(overrides: Sequence[str], config_dir: Path | None) -> tuple[list[str], list[str]]:
    """The models that overrides name, folders by their absolute paths, and the overrides that are left."""
    models: list[str] = []
    rest: list[str] = []
    for text in overrides:
        override = assignment(design_space(config_dir).files.parse(text))
        key = override.key_or_group
        if key == KEY:
            models += [normal(str(value)) for value in values_of(override)]
        elif key.partition(".")[0] in SAID:
            rest.append(text)
        else:
            raise ConfigError(
                f"'{text}': a finished model is as it is; beside {KEY}= only {', '.join(SAID)} can be said, and what "
                "is in them (suite.examples=100, engine.precision=bf16)"
            )
    return list(dict.fromkeys(models)), rest


def baseline_jobs(model: str, content: str, cell: Cell) -> list[Job]:
    """One per benchmark and condition."""
    jobs = []
    for benchmark, condition in product(Shared().benchmarks_of(cell.suite), cell.suite.conditions):
        version = SCORER_VERSIONS.get(benchmark.scorer, 1)
        spec = BaselineSpec(model, content, benchmark, condition, cell.engine.precision, scorer_version=version)
        shown = benchmark.name if condition == "real" else f"{benchmark.name} ({condition})"
        jobs.append(Job(fingerprint(spec), f"{shown}: {model}", spec, []))
    return jobs


def planned(model: str, jobs: Sequence[Job], cell: Cell, suite: str, first: bool) -> PlannedCell:
    """A model as a cell. It has no seed that anybody knows; 0 stands for it."""
    own = [job.fingerprint for job in jobs if isinstance(job.spec, BaselineSpec) and job.spec.model == model]
    return PlannedCell(
        id=hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8],
        choices={KEY: model, "suite": suite},
        overrides={KEY: model},
        seed=NO_SEED,
        baseline=first,
        config={KEY: model, "suite": plain(cell.suite), "engine": plain(cell.engine)},
        train=[],
        evaluate=own,
    )


def default_name(models: Sequence[str]) -> str:
    """`baseline/` and the last part of each model's name."""
    parts = ["".join(c if c.isalnum() or c in "._-" else "-" for c in Path(split(each)[1]).name) for each in models]
    return f"baseline/{'+'.join(part.lstrip('.-') or 'model' for part in parts)[:100]}"


# ---- which model that is


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
    hashes = [[path.relative_to(folder).as_posix(), file_hash(path, *stamp(path))] for path in files]
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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    remedy = f"fetch it where there is a network (hf download {name}), or give its folder: {KEY}=hf:FOLDER"
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent.name
        commit: Any = huggingface_hub.HfApi().model_info(name, timeout=30).sha
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{KEY}=hf:{name}: neither a folder nor a model of the hub that may be read") from error
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"{KEY}=hf:{name}: not in this machine's cache, and the hub is out of reach; {remedy}"
        ) from error
    if not commit:
        raise ConfigError(f"{KEY}=hf:{name}: the hub does not say which commit it has; {remedy}")
    return str(commit)
