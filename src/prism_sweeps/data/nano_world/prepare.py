"""Writing the nano world to disk: training sources and benchmarks, in parallel, the same bytes every time.

A folder is complete when its `manifest.json` is there; it is written last. Work is cut into chunks of fixed size that
do not depend on the total, so the first examples of a larger set are those of a smaller one.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.nano_world.benchmarks import BENCHMARKS, PER_CHUNK, items
from prism_sweeps.data.nano_world.training_sets import SOURCES, Record, Writer, picture, render

NANO_WORLD_VERSION = "3"
SCENES_PER_CHUNK = 200
MANIFEST = "manifest.json"
Progress = Callable[[int, int, str], None]
"""Told (done, total, what is being counted)."""


def prepare_training(folder: Path, scenes: int, workers: int, progress: Progress | None = None) -> None:
    """Write `<source>/chat.json` for align, instruct, language, lvis4v and lrv, and the images they share.

    scenes: number of pictures, one instruct and one align record each. workers: processes; 1 works in this one.
    Image paths in the records are relative to `folder`. Returns at once if the folder already holds this very set;
    a folder left half-written by a kill is written anew. Raises DataError for sizes below 1.
    """
    wanted = {"version": NANO_WORLD_VERSION, "kind": "training", "scenes": _positive("scenes", scenes)}
    if _complete(folder, wanted):
        return
    jobs = [(folder, start, min(scenes, start + SCENES_PER_CHUNK)) for start in range(0, scenes, SCENES_PER_CHUNK)]
    parts: list[dict[str, list[Record]]] = []
    for part in _spread(_write_training_chunk, jobs, workers):
        parts.append(part)
        _tell(progress, min(scenes, len(parts) * SCENES_PER_CHUNK), scenes, "scenes")
    files = {}
    for source in SOURCES:
        records = [record for part in parts for record in part[source]]
        files[f"{source}/chat.json"] = ("[" + ",\n".join(map(_json, records)) + "]\n", len(records))
    _finish(folder, wanted, files)


def prepare_benchmarks(folder: Path, examples: int, workers: int, progress: Progress | None = None) -> None:
    """Write `<benchmark>/index.jsonl` and images for the twelve benchmarks, `examples` lines each.

    The rest as for `prepare_training`; image paths are relative to the benchmark's own folder.
    """
    wanted = {"version": NANO_WORLD_VERSION, "kind": "benchmarks", "examples": _positive("examples", examples)}
    if _complete(folder, wanted):
        return
    starts = range(0, examples, PER_CHUNK)
    jobs = [
        (folder, name, start // PER_CHUNK, min(PER_CHUNK, examples - start)) for name in BENCHMARKS for start in starts
    ]
    lines: dict[str, list[str]] = {name: [] for name in BENCHMARKS}
    total, done = examples * len(BENCHMARKS), 0
    for (_, name, *_), rows in zip(jobs, _spread(_write_benchmark_chunk, jobs, workers), strict=True):
        lines[name] += map(_json, rows)
        done += len(rows)
        _tell(progress, done, total, "examples")
    _finish(
        folder, wanted, {f"{name}/index.jsonl": ("\n".join(rows) + "\n", len(rows)) for name, rows in lines.items()}
    )


def _write_training_chunk(job: tuple[Path, int, int]) -> dict[str, list[Record]]:
    folder, start, stop = job
    writer = Writer()
    parts: dict[str, list[Record]] = {source: [] for source in SOURCES}
    for number in range(start, stop):
        shown = picture(number)
        _save_image(render(shown), folder / shown.path)
        for source, record in writer.records(shown).items():
            parts[source].append(record)
    return parts


def _write_benchmark_chunk(job: tuple[Path, str, int, int]) -> list[dict[str, Any]]:
    folder, name, chunk, number = job
    rows = []
    for item in itertools.islice(items(name, chunk), number):
        if item.image is not None:
            _save_image(item.image, folder / name / item.row["image"])
        rows.append(item.row)
    return rows


def _spread(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """The results in the order of the jobs."""
    if _positive("workers", workers) == 1 or len(jobs) == 1:
        yield from map(work, jobs)
        return
    # Not fork: the caller may hold threads (torch), and those do not survive it.
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, jobs)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise DataError(f"nano world: {name} must be at least 1, got {value}")
    return value


def drawn_by(folder: Path) -> str | None:
    """The version of the recipe that drew what is in `folder`; None where no manifest tells."""
    version = _manifest(folder).get("version")
    return None if version is None else str(version)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return manifest


def _complete(folder: Path, wanted: dict[str, Any]) -> bool:
    manifest = _manifest(folder)
    if any(manifest.get(key) != value for key, value in wanted.items()):
        return False
    return all((folder / path).is_file() for path in manifest["files"])


def _finish(folder: Path, wanted: dict[str, Any], files: dict[str, tuple[str, int]]) -> None:
    told = {}
    for path, (text, records) in files.items():
        _write_text(folder / path, text)
        told[path] = {"records": records, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    _write_text(folder / MANIFEST, json.dumps({**wanted, "files": told}, indent=1) + "\n")


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _tell(progress: Progress | None, done: int, total: int, what: str) -> None:
    if progress is not None:
        progress(done, total, what)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _save_image(image: Image.Image, path: Path) -> None:
    # Without fsync, which would cost more than the drawing: the manifest, written last, vouches for the images.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    image.save(temporary, "PNG", compress_level=1)
    temporary.replace(path)
