"""An index from official files: found or fetched, read, counted, its images looked for, written whole or not at all."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.suite import Benchmark, Origin
from prism_sweeps.data.indexes.about import ABOUT, INDEX, check_bytes, check_made_for, write_about
from prism_sweeps.data.indexes.finding import Place, official_paths
from prism_sweeps.data.indexes.readers import reader_of
from prism_sweeps.data.indexes.rows import Row, index_line, with_ids
from prism_sweeps.data.prepare import Progress, locked, prepare

ALL = "all"
"""In `Origin.counts`: every example."""
NAMED = 3
"""Missing images that an error names."""


def ensure_index(
    benchmark: Benchmark, data_root: Path, place: Place, progress: Progress, check: Callable[[Path], object]
) -> Path:
    """The folder of the benchmark's index: made now if it is not there as declared, or if `place` names a folder.

    `check` is told the folder when it is whole, before it gets to its place, and may raise. Of several processes that
    ask at a time one makes it and the others wait. Raises DataError for files or images that are missing, for other
    counts than declared, and where the folder holds what is not ours; ConfigError for a benchmark without `origin`, or
    a reader that does not exist.
    """
    origin = origin_of(benchmark)
    folder = data_root / benchmark.index
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if place.folder is None and is_made(folder, benchmark):
            return folder
        refuse_foreign(folder)
        paths = official_paths(benchmark.name, origin, place, progress)

        def make(temporary: Path, workers: int, progress: Progress) -> None:
            images = make_index(temporary, benchmark, paths, progress)
            for name, path in images.items():
                (temporary / name).symlink_to(link_to(path, folder, place.downloads))
            try:
                check(temporary)
            except DataError as error:
                told = str(error).replace(str(temporary / INDEX), INDEX)  # which is gone when this is read
                raise DataError(f"what reader '{origin.reader}' makes cannot be asked: {told}") from error

        prepare(make, folder, 1, progress)
    return folder


def origin_of(benchmark: Benchmark) -> Origin:
    """Raises ConfigError where the benchmark does not say what it is made from."""
    if benchmark.origin is None:
        raise ConfigError(f"{benchmark.name} does not say what its index is made from: its declaration has no `origin`")
    reader_of(benchmark.origin.reader)
    strange = [name for name in benchmark.origin.images if name in (INDEX, ABOUT, "", ".", "..") or "/" in name]
    if strange:
        raise ConfigError(f"{benchmark.name}: origin.images.'{strange[0]}' cannot be the name of a folder")
    return benchmark.origin


def is_made(folder: Path, benchmark: Benchmark) -> bool:
    """Whether the index is there as declared, or one of the user's own."""
    try:
        check_made_for(folder, benchmark)
        check_bytes(folder, (folder / INDEX).read_bytes())
    except DataError:
        return False
    return True


def refuse_foreign(folder: Path) -> None:
    """Raises DataError for a folder that holds what was not made here, and would be lost."""
    if not folder.exists():
        return
    ours = {INDEX, ABOUT} if (folder / ABOUT).exists() else set()
    foreign = [path.name for path in sorted(folder.iterdir()) if path.name not in ours and not path.is_symlink()]
    if foreign:
        raise DataError(
            f"{folder}, where the index belongs, holds what was not made here ({', '.join(foreign[:NAMED])}): move it "
            "to another place. Official files may lie anywhere: --from FOLDER"
        )


def make_index(folder: Path, benchmark: Benchmark, paths: Mapping[str, Path], progress: Progress) -> dict[str, Path]:
    """Writes index and about.json into `folder`; what the index calls a folder of images -> where that is."""
    origin = origin_of(benchmark)
    files = {name: paths[name] for name in origin.files}
    images = {name: paths[name] for name in origin.images}
    progress(0, 1, "reading")
    rows = list(with_ids(rows_read(origin.reader, files)))
    check_counts(rows, benchmark)
    check_images(rows, images, benchmark)
    with (folder / INDEX).open("wb") as stream:
        stream.writelines(index_line(row) for row in rows)
        stream.flush()
        os.fsync(stream.fileno())
    write_about(folder, benchmark, len(rows), files, images)
    progress(1, 1, f"{len(rows):,} examples")
    return images


def rows_read(reader: str, files: Mapping[str, Path]) -> Iterator[Row]:
    """What the reader of that name makes of the files. Raises DataError where it is no rows."""
    found = reader_of(reader)(files)
    if not isinstance(found, Iterable):
        raise DataError(f"reader '{reader}' gives {type(found).__name__}; rows are wanted, one dict each")
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise DataError(f"reader '{reader}', row {number}: a dict is wanted, not {type(row).__name__}")
        yield row


def link_to(images: Path, folder: Path, downloads: Path) -> Path:
    """What a link in `folder` leads to: relative among the downloads, so that a data root may be moved as a whole."""
    if images.resolve().is_relative_to(downloads.resolve()):
        return Path(os.path.relpath(images.resolve(), folder.parent.resolve() / folder.name))
    return images.absolute()


def check_counts(rows: Sequence[Row], benchmark: Benchmark) -> None:
    """Raises DataError where there are not as many examples as declared, with both numbers and what is known."""
    declared = origin_of(benchmark).counts
    found = counted(rows, {key.partition("=")[0] for key in declared if key != ALL})
    unsound = [
        key
        for key in dict.fromkeys([*declared, *found])
        if (declared.get(key, 0) != found.get(key, 0) if declared.get(key, 0) is not None else not found.get(key))
    ]
    if not rows or (declared and unsound):
        raise DataError(told_counts(benchmark, declared, found, unsound))


def counted(rows: Iterable[Row], tags: Iterable[str]) -> dict[str, int]:
    """Rows in all, and by the values of tags."""
    found: Counter[str] = Counter({ALL: 0})
    names = sorted(tags)
    for row in rows:
        found[ALL] += 1
        found.update(f"{tag}={row['tags'][tag]}" for tag in names if tag in (row.get("tags") or {}))
    return dict(found)


def told_counts(
    benchmark: Benchmark, declared: Mapping[str, int | None], found: Mapping[str, int], unsound: Sequence[str]
) -> str:
    """What was expected, what was found, and what to do."""
    name, note = benchmark.name, origin_of(benchmark).note.strip()
    width = max(len(key) for key in (*unsound, ALL))
    rows = [f"  {key:<{width}}  {number(declared.get(key, 0)):>9}  {found.get(key, 0):>9,}" for key in unsound]
    counts = ", ".join(f'"{key}": {found.get(key, 0)}' for key in unsound)
    return "\n".join(
        [
            f"{name}: the official files do not hold the examples that are declared:",
            f"  {'':<{width}}   expected      found",
            *rows,
            *([note] if note else []),
            "With other examples it is another benchmark, and scores on the two do not compare. If these are the files",
            f"you mean, declare one of your own, benchmark/my-{name}.yaml in a --config-dir:",
            f"  defaults: [{name}, _self_]",
            f"  name: my-{name}",
            f"  index: my-{name}",
            f"  origin: {{counts: {{{counts}}}}}",
        ]
    )


def number(count: int | None) -> str:
    """Null is some."""
    return "some" if count is None else f"{count:,}"


def check_images(rows: Iterable[Row], images: Mapping[str, Path], benchmark: Benchmark) -> None:
    """Raises DataError where images are missing: how many, which, and from where they are."""
    wanted: dict[PurePosixPath, set[str]] = defaultdict(set)
    for row in rows:
        path = PurePosixPath(str(row.get("image")))
        if len(path.parts) < 2 or path.parts[0] not in images or ".." in path.parts:
            raise DataError(
                f"{benchmark.name}: a row's image is '{path}'; FOLDER/PATH is wanted, with FOLDER one of "
                f"origin.images ({', '.join(images) or 'none'})"
            )
        wanted[path.parent].add(path.name)
    missing: dict[str, list[str]] = defaultdict(list)
    for parent, names in wanted.items():
        here = images[parent.parts[0]].joinpath(*parent.parts[1:])
        there = {entry.name for entry in os.scandir(here)} if here.is_dir() else set()
        missing[parent.parts[0]] += [str(PurePosixPath(*parent.parts[1:]) / name) for name in sorted(names - there)]
    told = [
        f"  {len(gone):,} are missing in {images[name]}: {', '.join(gone[:NAMED])}{', ...' * (len(gone) > NAMED)}\n"
        f"    they are from {origin_of(benchmark).images[name].url or '(no address)'}"
        for name, gone in missing.items()
        if gone
    ]
    if told:
        total = sum(len(names) for names in wanted.values())
        raise DataError("\n".join([f"{benchmark.name}: of its {total:,} images", *told]))
