"""A study's report: tables, plots and one HTML page, written beside its plan."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from prism_sweeps.planning.outline import outline_of
from prism_sweeps.reporting import plots, tables
from prism_sweeps.reporting.comparisons import (
    AxisComparison,
    Comparison,
    Grids,
    Sight,
    compare_axes,
    compare_variants,
    grids_of,
    look,
    look_at_groups,
    look_together,
)
from prism_sweeps.reporting.cost_table import cost_table
from prism_sweeps.reporting.frame import StudyFrames, read_study
from prism_sweeps.reporting.page import Page, page_html
from prism_sweeps.reporting.render import latex, markdown_document, terminal
from prism_sweeps.reporting.summary import sentences
from prism_sweeps.tracking.records import Store


@dataclass(frozen=True)
class Findings:
    """Everything computed about a study, before any of it is text."""

    frames: StudyFrames
    rows: list[Comparison]
    axes: list[AxisComparison]
    sights: dict[str, list[Sight]]
    groups: dict[str, list[Sight]]
    """Benchmark -> its groups, for the reference."""


def write_report(store: Store, study: str) -> Path:
    """Writes `report/` in the study's folder, replacing an earlier one as a whole, and returns its index.html.

    Contents: index.html, tables.md, tables.tex, scores.csv, plots/*.svg, .png, .pdf. Works on a study that is not
    finished, and says what is missing. Raises StoreError when the study has no plan or a record cannot be read.
    """
    record = store.study(study)
    findings = find(read_study(store, study))
    cost = cost_table(store, outline_of(record.plan()))
    temporary = Path(tempfile.mkdtemp(dir=record.path, prefix=".report-"))
    try:
        write_files(findings, cost, temporary)
        replace_folder(temporary, record.path / "report")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record.path / "report" / "index.html"


def terminal_table(store: Store, study: str, console: Console | None = None) -> None:
    """Prints each variant's difference from the reference with its interval, the scores, and what is seen."""
    frames = read_study(store, study)
    console = console or Console()
    grids = grids_of(frames)
    rows = compare_variants(frames, grids)
    for table in tables.compact_tables(frames, rows, console.width):
        console.print(terminal(table))
    for table in tables.compact_sights(look_together(frames, grids)):
        console.print(terminal(table))


def find(frames: StudyFrames) -> Findings:
    """All statistics of a study."""
    grids: Grids = grids_of(frames)
    sights = {variant: look(frames, grids, variant) for variant in frames.variants}
    if len(sights) > 1:
        sights = {f"all {len(sights)} variants": look_together(frames, grids), **sights}
    groups = {name: look_at_groups(frames, grids, frames.reference, name) for name in frames.benchmarks}
    return Findings(
        frames=frames,
        rows=compare_variants(frames, grids),
        axes=compare_axes(frames, grids),
        sights={variant: found for variant, found in sights.items() if found},
        groups={name: found for name, found in groups.items() if found},
    )


# ---- files


def write_files(found: Findings, cost: tables.Table, folder: Path) -> None:
    frames = found.frames
    figures = folder / "plots"
    figures.mkdir()
    axes = [
        (tables.axis_table(frames, axis), drawn(plots.forest(frames, axis), figures, f"axis-{axis.axis}"))
        for axis in found.axes
    ]
    page = Page(
        frames=frames,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=summary_of(found),
        axes=axes,
        variants=tables.variant_table(frames, found.rows),
        heat_map=drawn(plots.heat_map(frames), figures, "heat-map"),
        sights=[tables.sight_table(variant, sights) for variant, sights in found.sights.items()],
        groups=[tables.group_table(frames.reference, name, sights) for name, sights in found.groups.items()],
        answers=tables.answer_table(frames),
        curves=drawn(plots.learning_curves(frames), figures, "learning-curves"),
        cost=cost,
        cells=tables.cell_table(frames),
        missing=tables.missing_table(frames),
    )
    shown = [*(table for table, _ in axes), page.variants, *page.sights, *page.groups, cost, page.cells, page.missing]
    write_tables(shown, page.summary, frames.study, folder)
    frames.scores.to_csv(folder / "scores.csv", index=False)
    (folder / "index.html").write_text(page_html(page), encoding="utf-8")


def summary_of(found: Findings) -> list[str]:
    reference = found.sights.get(found.frames.reference, [])
    return sentences(found.frames, found.rows, reference, [one for group in found.groups.values() for one in group])


def write_tables(shown: Iterable[tables.Table], summary: Sequence[str], study: str, folder: Path) -> None:
    kept = [table for table in shown if table.rows]
    (folder / "tables.md").write_text(markdown_document(study, summary, kept), encoding="utf-8")
    (folder / "tables.tex").write_text("\n".join(map(latex, kept)), encoding="utf-8")


def drawn(figure: Figure | None, folder: Path, name: str) -> str | None:
    """Writes the figure's files and gives the SVG for the page; None where there is nothing to draw."""
    if figure is None:
        return None
    safe = "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
    return plots.inline(plots.write_figure(figure, folder, safe), html.escape(name, quote=True))


def replace_folder(new: Path, place: Path) -> None:
    """Puts `new` where `place` is: a reader never finds a mixture of the old files and the new."""
    for file in new.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    new.chmod(0o755)
    old = place.with_name(f".{place.name}-old-{os.getpid()}")
    if place.exists():
        place.replace(old)
    new.replace(place)
    shutil.rmtree(old, ignore_errors=True)
