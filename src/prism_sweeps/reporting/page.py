"""The report as one HTML file that needs nothing else: style, script and figures are inside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from prism_sweeps.reporting.cost import duration
from prism_sweeps.reporting.frame import StudyFrames
from prism_sweeps.reporting.tables import NONE, Table


@dataclass(frozen=True)
class Page:
    """What the page shows. Plots are SVG elements; `axes` pairs each axis's table with its plot."""

    frames: StudyFrames
    date: str
    summary: Sequence[str]
    axes: Sequence[tuple[Table, str | None]]
    variants: Table
    heat_map: str | None
    sights: Sequence[Table]
    groups: Sequence[Table]
    answers: Table | None
    curves: str | None
    cost: Table
    cells: Table
    missing: Table


def page_html(page: Page) -> str:
    """The page. All text is escaped; the only script that may run is the page's own, by its hash."""
    script = asset("page.js")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(asset("page.html.j2")).render(
        study=page.frames.study,
        description=page.frames.description,
        facts=facts(page.frames, page.date),
        summary=page.summary,
        axes=[{"table": table, "plot": svg(plot)} for table, plot in page.axes],
        variants=page.variants,
        heat_map=svg(page.heat_map),
        sights=page.sights,
        groups=page.groups,
        answers=page.answers,
        curves=svg(page.curves),
        cost=page.cost,
        cells=page.cells,
        missing=page.missing,
        configs=configs(page.frames),
        style=Markup(asset("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def asset(name: str) -> str:
    return resources.files("prism_sweeps.reporting").joinpath(name).read_text(encoding="utf-8")


def svg(plot: str | None) -> Markup | None:
    # Figures are drawn by matplotlib, which escapes the text in them.
    return None if plot is None else Markup(plot)


def facts(frames: StudyFrames, date: str) -> list[tuple[str, str]]:
    """The header's names and values. Costs are sums over the study's jobs, all attempts."""
    jobs = frames.jobs
    commits = sorted({str(commit)[:12] for commit in jobs["commit"].dropna()})
    done = int((jobs["state"] == "done").sum())
    return [
        ("date", date),
        ("commit", ", ".join(commits) or "not recorded"),
        ("cells", str(len(frames.cells))),
        ("seeds", ", ".join(map(str, frames.seeds))),
        ("jobs done", f"{done} of {len(jobs)}"),
        ("device", frames.device),
        ("wall time of jobs", spent(float(jobs["seconds"].sum()))),
        ("CPU time", spent(float(jobs["cpu_seconds"].sum()))),
        ("GPU time", spent(float(jobs["gpu_seconds"].sum()))),
    ]


def spent(seconds: float) -> str:
    """A time, where there was one."""
    return duration(seconds) if seconds > 0 else NONE


def configs(frames: StudyFrames) -> list[dict[str, Any]]:
    """Each variant with its full configuration as YAML (that of its first seed)."""
    return [
        {
            "name": variant,
            "changes": variant != frames.reference,
            "yaml": yaml.safe_dump(frames.configs[variant], sort_keys=False, allow_unicode=True),
        }
        for variant in frames.variants
    ]
