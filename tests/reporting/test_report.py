"""The written report: its files, that nothing in it is executed, and that gaps are shown."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from prism_sweeps.reporting.report import terminal_table, write_report
from prism_sweeps.tracking.records import Store

STUDY = "nano/made-up"
ATTACK = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> $\\frac{1}{2}$ {{ 7*7 }} | `a` \\ & % _ ~"


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser's parser sees them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(made_up: Store) -> Path:
    return write_report(made_up, STUDY)


@pytest.fixture(scope="module")
def attacked(store_of: Callable[..., Store], world: Any) -> Path:
    variants = [{}, {"resize": ATTACK}, {"backbone": "nano-siglip"}]
    hostile = world(
        variants=variants, seeds=(1,), examples=20, description=ATTACK, answer=ATTACK, benchmarks=("vqa", ATTACK),
        failed=[(f"resize={ATTACK}", 1, "vqa")],
    )  # fmt: skip
    return write_report(store_of(hostile), STUDY)


def test_files(written: Path) -> None:
    folder = written.parent
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    plots = {f"plots/{name}.{kind}" for name in PLOTS for kind in ("svg", "png", "pdf")}
    assert names == {"index.html", "tables.md", "tables.tex", "scores.csv"} | plots


PLOTS = ("axis-resize", "axis-backbone", "heat-map", "learning-curves")


def test_the_page_needs_nothing_else(written: Path) -> None:
    page = Page(written)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert all(link.startswith("#") for link in links)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == len(PLOTS)
    assert not re.search(r"url\((?!#|&quot;#|\"#)|@import", page.source)


def test_only_the_pages_own_script_may_run(written: Path) -> None:
    source = written.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    (allowed,) = re.findall(r"script-src 'sha256-([^']+)'", source)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed


def test_hostile_text_is_only_text(attacked: Path) -> None:
    page = Page(attacked)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ATTACK in page.text


def test_hostile_text_keeps_plots_and_tables_whole(attacked: Path) -> None:
    for file in (attacked.parent / "plots").glob("*.svg"):
        tree = ElementTree.parse(file)
        assert not [node for node in tree.iter() if node.tag.endswith("script")]
    assert all(re.fullmatch(r"[\w.-]+", file.name) for file in (attacked.parent / "plots").iterdir())
    for block in (attacked.parent / "tables.md").read_text(encoding="utf-8").split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
    tex = (attacked.parent / "tables.tex").read_text(encoding="utf-8")
    assert r"\$\textbackslash{}frac\{1\}\{2\}\$" in tex
    for table in re.findall(r"\\toprule\n(.*?)\\bottomrule", tex, re.DOTALL):
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1


def test_gaps_are_shown(attacked: Path) -> None:
    page = Page(attacked)
    assert "out of memory" in page.text
    assert "missing" in page.text
    assert "seed spread unknown" in page.text


def test_the_summary_says_what_is_answerable_blind(written: Path) -> None:
    summary = Page(written).text.split("Summary")[1].split("resize\n")[0]
    assert "All 45 jobs are done" in summary
    assert "easy-vqa, type = yes/no" in summary
    assert "resize=naive is better than baseline on average" in summary


def test_scores_csv_has_every_score(written: Path, made_up: Store) -> None:
    rows = list(csv.DictReader((written.parent / "scores.csv").open(encoding="utf-8")))
    assert len(rows) == 9 * 2 * 2
    for row in rows[:3]:
        assert float(row["score"]) == pytest.approx(made_up.job(row["job"]).state()["result"]["score"])


def test_writing_again_replaces_the_report(made_up: Store, written: Path) -> None:
    stray = written.parent / "stray.txt"
    stray.write_text("old")
    assert write_report(made_up, STUDY) == written
    assert not stray.exists()
    assert sorted(file.name for file in written.parent.parent.iterdir()) == ["plan.json", "report"]


def test_a_study_that_has_not_run_yet_has_a_report(store_of: Callable[..., Store], world: Any) -> None:
    store = store_of(world(seeds=(1,), examples=4))
    shutil.rmtree(store.root / "jobs")
    page = Page(write_report(store, STUDY))
    assert "0 of 15 jobs are done" in page.text
    assert "Cannot be compared yet" in page.text


def test_terminal_table_fits_its_console_and_says_it_all(made_up: Store) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    terminal_table(made_up, STUDY, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    (line,) = [line for line in text.splitlines() if "resize=naive" in line and "[" in line]
    assert re.search(r"\+\d+\.\d \[.?\d+\.\d, \d+\.\d\]", line)
    assert "easy-vqa" in text


@pytest.mark.slow
def test_a_large_study_makes_a_page_that_can_be_sent(store_of: Callable[..., Store], world: Any) -> None:
    variants = [{}, {"resize": "naive"}, {"resize": "crop"}, *({"backbone": f"tower-{n}"} for n in range(5))]
    large = world(
        variants=variants, seeds=(1, 2), benchmarks=[f"benchmark-{n}" for n in range(13)], conditions=("real", "blank"),
        examples=300,
    )  # fmt: skip
    store = store_of(large)
    page = write_report(store, STUDY)
    assert page.stat().st_size < 3_000_000
    assert json.loads((page.parent.parent / "plan.json").read_text())["cells"]
