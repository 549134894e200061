"""What people call a cell or a job by: the beginning of its id or fingerprint, or a SLURM id."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.planning.outline import CellOutline, Outline
from prism_sweeps.tracking.submissions import Allotted

SHORTEST = 4
"""Letters of an id that may stand for it."""


def begins(text: str, ids: Iterable[str]) -> list[str]:
    """Those of these ids that `text` may stand for."""
    return sorted({each for each in ids if each == text or (len(text) >= SHORTEST and each.startswith(text))})


def only(text: str, ids: Collection[str], noun: str, where: str) -> str:
    """The one id that `text` stands for. Raises ConfigError for none or several."""
    found = begins(text, ids)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"'{text}' may be {', '.join(found[:5])} in {where}; give more of it")
    short = f"; at least {SHORTEST} letters of it are needed" if len(text) < SHORTEST else ""
    raise ConfigError(f"no {noun} '{text}' in {where}{short}; {nearest_ids(text, ids)}")


def nearest_ids(text: str, ids: Collection[str]) -> str:
    """The clause that ends an error about an unknown id: the closest ones. A list of all would say nothing."""
    close = difflib.get_close_matches(text, [each[: len(text)] for each in ids], n=3, cutoff=0.5)
    likely = [next(each for each in ids if each.startswith(beginning)) for beginning in dict.fromkeys(close)]
    told = f"nearest: {', '.join(likely)}; " if likely else ""
    return f"{told}prism status lists its {len(ids)}"


def cells_called(outline: Outline, texts: Iterable[str]) -> list[CellOutline]:
    """The cells that these texts stand for. Raises ConfigError for one that stands for none."""
    by_id = {cell.id: cell for cell in outline.cells}
    return [by_id[only(text, by_id, "cell", outline.study)] for text in texts]


def jobs_called(outline: Outline, texts: Iterable[str], newest: Mapping[str, Allotted]) -> list[str]:
    """The jobs that these texts stand for: fingerprints, or SLURM ids, which stand for all jobs of the allocation."""
    found: list[str] = []
    for text in texts:
        by_slurm = [
            name
            for name in outline.jobs
            if name in newest and text in (newest[name].slurm_id, newest[name].slurm_id.partition("_")[0])
        ]
        found += by_slurm or [only(text, outline.jobs, "job", outline.study)]
    return list(dict.fromkeys(found))


def chosen(
    outline: Outline, cells: Collection[str], jobs: Collection[str], newest: Mapping[str, Allotted]
) -> set[str] | None:
    """The jobs that `--cell` and `--job` mean; None where neither was given: all."""
    if not cells and not jobs:
        return None
    of_cells = {name for cell in cells_called(outline, cells) for name in cell.jobs}
    return of_cells | set(jobs_called(outline, jobs, newest))
