"""The report's figures, in the colours of Okabe & Ito, which any colour vision tells apart."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prism_sweeps.reporting.comparisons import REAL, AxisComparison, Comparison
from prism_sweeps.reporting.frame import StudyFrames
from prism_sweeps.reporting.statistics import Array

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#7F7F7F")
MARKERS = "osD^vPX*"
LABEL = 36
"""Characters of a name that a figure has room for."""
INK = "#1b1b1f"
"""Colour of text and lines; the page puts its own text colour in its place."""
CURVE_POINTS = 200
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def colours(frames: StudyFrames) -> dict[str, str]:
    """Variant -> its colour in every figure; the reference has that of the text."""
    reference, *others = frames.variants
    return {reference: INK} | {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(others)}


def markers(frames: StudyFrames) -> dict[str, str]:
    """Variant -> its marker. Where colours begin to repeat, markers have moved on by one."""
    places = enumerate(frames.variants)
    return {name: MARKERS[(place + place // len(PALETTE)) % len(MARKERS)] for place, name in places}


def short(name: str) -> str:
    return name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"


# ---- figures


def forest(frames: StudyFrames, found: AxisComparison) -> Figure | None:
    """Differences of an axis's choices from its first, with intervals: the mean on top, then the benchmarks."""
    rows = [row for row in found.rows[1:] if row.differences]
    if not rows:
        return None
    lines = [name for name in ["mean", *frames.benchmarks] if any(estimate_on(row, name) for row in rows)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(4.6, 1.1 + len(lines) * (0.16 + 0.1 * len(rows)) + 0.17 * len(rows)), layout="constrained"
        )
        axes = figure.add_subplot()
        for index, row in enumerate(rows):
            offset = (index - (len(rows) - 1) / 2) * 0.7 / len(rows)
            name = row.variants[0]
            draw_estimates(axes, row, lines, offset, colours(frames)[name], markers(frames)[name])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.axhline(0.5, color=INK, linewidth=0.4, alpha=0.5)
        axes.set_yticks(range(len(lines)), [short(name) for name in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(f"points more than {short(found.rows[0].label)}, 95 % interval")
        axes.grid(axis="x", alpha=0.25)
        figure.legend(loc="outside upper left", frameon=False, ncols=1)
    return figure


def estimate_on(row: Comparison, name: str) -> bool:
    return row.mean is not None if name == "mean" else name in row.differences


def draw_estimates(axes: Axes, row: Comparison, lines: Sequence[str], offset: float, colour: str, marker: str) -> None:
    found = [(place, row.mean if name == "mean" else row.differences.get(name)) for place, name in enumerate(lines)]
    known = [(place, one) for place, one in found if one is not None]
    values = np.array([one.value for _, one in known])
    reach = np.nan_to_num(np.array([(one.value - one.low, one.high - one.value) for _, one in known])).T
    where = np.array([place for place, _ in known]) + offset
    name = short(row.label)
    axes.errorbar(values, where, xerr=reach, label=name, fmt=marker, color=colour, markersize=4, elinewidth=1.4)


def heat_map(frames: StudyFrames) -> Figure | None:
    """Score of every cell on every benchmark; colour is its difference from the reference's mean there."""
    real = frames.scores[frames.scores["condition"] == REAL]
    table = real.pivot_table(index="cell", columns="benchmark", values="score", dropna=False, sort=False, observed=True)
    table = table.reindex(index=frames.cells["cell"], columns=frames.benchmarks)
    if table.empty or table.isna().all(axis=None):
        return None
    names = [f"{short(cell['variant'])} · {cell['seed']}" for cell in frames.cells.to_dict("records")]
    reference = table[(frames.cells["variant"] == frames.reference).to_numpy()].mean()
    score, change = table.to_numpy(), (table - reference).to_numpy()
    reach = max(float(np.nanmax(np.abs(change), initial=0.0)), 1.0) if not np.isnan(change).all() else 1.0
    with matplotlib.rc_context(STYLE):
        width = 1.8 + 0.07 * max(map(len, names)) + 0.42 * len(frames.benchmarks)
        figure = Figure(figsize=(width, 1.4 + 0.2 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        # Not an image: that would be a PNG inside the SVG, which the page's security policy keeps out.
        palette = matplotlib.colormaps["PuOr"].resampled(31)
        shown = axes.pcolormesh(change, cmap=palette, vmin=-reach, vmax=reach, edgecolors="none")
        axes.invert_yaxis()
        heads = [short(name) for name in frames.benchmarks]
        axes.set_yticks(np.arange(len(names)) + 0.5, names)
        axes.set_xticks(np.arange(len(heads)) + 0.5, heads, rotation=60, ha="right", rotation_mode="anchor")
        axes.spines[:].set_visible(False)
        write_scores(axes, score, change / reach)
        figure.colorbar(shown, label="points from\nthe reference", shrink=min(1.0, 8 / len(names)))
    return figure


def write_scores(axes: Axes, score: Array, strength: Array) -> None:
    for (row, column), value in np.ndenumerate(score):
        text, dark = ("×", False) if np.isnan(value) else (f"{value:.0f}", abs(strength[row, column]) > 0.6)
        # These stand on the map's own colours, which do not follow the page: white, or a black that is not INK.
        ink = INK if np.isnan(value) else "white" if dark else "black"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=ink)


def learning_curves(frames: StudyFrames) -> Figure | None:
    """Training loss by step: one panel per stage, one line per training job, coloured by the first variant using it."""
    panels = {
        stage: {job: variant for job, variant in jobs.items() if job in frames.metrics}
        for stage, jobs in frames.stages.items()
    }
    panels = {stage: jobs for stage, jobs in panels.items() if jobs}
    if not panels:
        return None
    colour = colours(frames)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.3 * len(panels) + 0.15 * len(colour)), layout="constrained")
        named: set[str] = set()
        for axes, (stage, jobs) in zip(figure.subplots(len(panels), squeeze=False).flat, panels.items(), strict=True):
            for job, variant in jobs.items():
                step, loss = smooth(frames.metrics[job])
                name = None if variant in named else short(variant)
                axes.plot(step, loss, color=colour[variant], linewidth=1.1, alpha=0.9, label=name)
                named.add(variant)
            axes.set_title(stage, loc="left", fontsize=9)
            axes.set_ylabel("loss")
            axes.grid(alpha=0.25)
        axes.set_xlabel("step")
        figure.legend(loc="outside upper left", frameon=False, fontsize=7)
    return figure


def smooth(curve: pd.DataFrame) -> tuple[Array, Array]:
    """At most `CURVE_POINTS` points of a curve, each the mean of the steps it stands for."""
    if "loss" not in curve or "step" not in curve:
        return np.zeros(0), np.zeros(0)
    known = curve[["step", "loss"]].dropna()
    bins = np.arange(len(known)) * min(CURVE_POINTS, len(known)) // max(len(known), 1)
    means = known.groupby(bins).mean()
    return means["step"].to_numpy(), means["loss"].to_numpy()


# ---- files


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element: the same bytes each time, ids of its own, no XML header."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def inline(text: str, caption: str) -> str:
    """An SVG for a page that may be dark: its ink takes the colour of the text. `caption` is HTML."""
    text = re.sub(rf"{INK}\b", "currentColor", text)
    # Outside the page, matplotlib's style sheet would reach every element.
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, count=1, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{caption}" stroke-linejoin="round" ', 1)


def write_figure(figure: Figure, folder: Path, name: str) -> str:
    """Writes `name`.svg, .png and .pdf and returns the SVG."""
    text = svg(figure, name)
    (folder / f"{name}.svg").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}', encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        figure.savefig(folder / f"{name}.png", dpi=130, facecolor="white")
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    return text
