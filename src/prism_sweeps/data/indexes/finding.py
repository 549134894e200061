"""Where the official files of a benchmark are: in a folder of the user's, among the downloads, or to be fetched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.suite import OfficialFile, Origin
from prism_sweeps.data.downloading import check_new, check_sha256, fetch
from prism_sweeps.data.prepare import Progress, locked
from prism_sweeps.data.unpacking import unpack

DOWNLOADS = "downloads"
"""Folder under the data root."""
DEPTH = 5
"""Folders below the user's own that are searched."""


@dataclass(frozen=True)
class Place:
    """Where official files may come from."""

    downloads: Path
    """Under the data root: what has to be fetched or unpacked gets there."""
    folder: Path | None = None
    """The user's own (`--from`), which is only read."""
    online: bool = True
    """Whether what is not there is fetched."""


def official_paths(benchmark: str, origin: Origin, place: Place, progress: Progress) -> dict[str, Path]:
    """Each name of `origin.files` and `origin.images` -> its path; unpacked or fetched now where it has to be.

    Raises DataError that lists all that is missing, with its address and where it was looked for.
    """
    wanted = {**origin.files, **origin.images}
    listed = listing(place.folder, wanted.values())
    paths = {name: path_now(file, place, listed) for name, file in wanted.items()}
    for name, path in paths.items():
        if path is not None:
            check_sha256(path, wanted[name].sha256, str(path))
    packed = {name: packed_now(file, place, listed) for name, file in wanted.items() if paths[name] is None}
    absent = {name: wanted[name] for name, archive in packed.items() if archive is None}
    if absent and not (place.online and all(file.url for file in absent.values())):
        raise DataError(told(f"{benchmark} needs what is not there", benchmark, absent, place))
    for name, archive in packed.items():
        try:
            paths[name] = bring(wanted[name], archive, place, progress)
        except DataError as error:
            if archive is not None:
                raise
            raise DataError(told(f"{benchmark}: {error}", benchmark, absent, place)) from error
    for file in absent.values():
        if file.archive:
            (place.downloads / file.archive).unlink(missing_ok=True)
    return {name: path for name, path in paths.items() if path is not None}


def path_now(file: OfficialFile, place: Place, listed: Sequence[Path]) -> Path | None:
    """Where the file is, unpacked."""
    if place.folder is not None and (found := match([file.path, *file.also], place.folder, listed)):
        return found
    downloaded = place.downloads / file.path
    return downloaded if downloaded.exists() else None


def packed_now(file: OfficialFile, place: Place, listed: Sequence[Path]) -> Path | None:
    """The archive with the file in it, where there is one."""
    if not file.archive:
        return None
    names = [file.archive, PurePosixPath(file.archive).name]
    if place.folder is not None and (found := match(names, place.folder, listed)):
        return found
    downloaded = place.downloads / file.archive
    return downloaded if downloaded.exists() else None


def bring(file: OfficialFile, archive: Path | None, place: Place, progress: Progress) -> Path:
    """The file among the downloads, out of `archive`, or fetched."""
    target = place.downloads / file.path
    if file.archive is None:
        return fetch(str(file.url), target, progress, file.sha256)
    if target.exists():  # another process, which needed it too, was faster, and may have removed the archive
        return target
    packed = archive or fetch(str(file.url), place.downloads / file.archive, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            unpack(packed, PurePosixPath(file.path), target, progress)
            check_new(target, file.sha256, f"{file.path} of {packed}")
    return target


def listing(folder: Path | None, files: Iterable[OfficialFile]) -> list[Path]:
    """All under `folder` whose name is one of those wanted; what is wanted is not searched itself."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise DataError(f"--from {folder}: no such folder")
    names = {PurePosixPath(name).name for file in files for name in (file.path, *file.also, file.archive or file.path)}
    found: list[Path] = []
    for parent, folders, others in os.walk(folder, followlinks=True):
        here = Path(parent)
        found += [here / name for name in (*folders, *others) if name in names]
        deep = len(here.relative_to(folder).parts) >= DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if name not in names and not name.startswith("."))
    return found


def match(names: Sequence[str], folder: Path, listed: Sequence[Path]) -> Path | None:
    """The path that the first possible of `names` fits: in `folder` itself, else anywhere under it.

    Raises DataError where several fit.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
        parts = PurePosixPath(name).parts
        found = [path for path in listed if path.relative_to(folder).parts[-len(parts) :] == parts]
        if len(found) > 1:
            raise DataError(
                f"--from {folder}: which one is {name}? {', '.join(map(str, sorted(found)))}; give a folder that has "
                "only the right one"
            )
        if found:
            return found[0]
    return None


def told(why: str, benchmark: str, absent: Mapping[str, OfficialFile], place: Place) -> str:
    """`why`, what is missing, and how it gets there."""
    lines = [why]
    for name, file in absent.items():
        names = dict.fromkeys([file.path, *file.also, *([file.archive] if file.archive else [])])
        packed = f" (in {PurePosixPath(file.archive).name})" if file.archive else ""
        lines += [f"  {name}: {PurePosixPath(file.path).name}{packed}", f"    from {file.url or '(no address)'}"]
        if place.folder is not None:
            lines.append(f"    not in {place.folder}, nor {DEPTH} folders deep in it, as {' or '.join(names)}")
        lines.append(f"    not at {place.downloads / file.path}")
    lines.append(
        "Put them into a folder, on any machine that reaches these addresses, and run\n"
        f"  prism data prepare {benchmark} --from FOLDER\n"
        "Archives may stay packed."
        + ("" if place.online else " With --download, or without --from, what is missing is fetched.")
    )
    return "\n".join(lines)
