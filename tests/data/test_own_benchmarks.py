"""A benchmark of one's own: a declaration, a reader, and what can be wrong with them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from index_commands import prepare
from official_files import put

from prism_sweeps import cli
from prism_sweeps.config.compose import design_space
from prism_sweeps.evaluation.asked import asked_of
from prism_sweeps.evaluation.benchmarks import read_index

OWN_READER = """
import csv

def rows(files):
    with open(files["table"], newline="") as stream:
        for image, question, answer in csv.reader(stream):
            yield {"image": f"photos/{image}", "question": question, "answers": [answer], "tags": {"of": "mine"}}
"""
OWN = {
    "name": "mine",
    "index": "mine",
    "prompt": "{question}",
    "answer": "generate",
    "scorer": "exact",
    "origin": {
        "reader": "reader_of_mine:rows",
        "files": {"table": {"path": "table.csv"}},
        "images": {"photos": {"path": "photos"}},
    },
}


def own(at: Path, monkeypatch: pytest.MonkeyPatch, conf: Path) -> None:
    put(conf, "benchmark/mine.yaml", OWN)
    put(at, "code/reader_of_mine.py", OWN_READER)
    monkeypatch.syspath_prepend(at / "code")
    monkeypatch.delitem(sys.modules, "reader_of_mine", raising=False)
    put(at / "official", "table.csv", "a.png,What?,dog\n")
    put(at / "official", "photos/a.png", b"an image")


def test_a_benchmark_of_ones_own_is_a_declaration_and_a_reader(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(at, monkeypatch, at / "conf")
    assert prepare(at, "mine", "--from", str(at / "official")) == 0
    benchmark = design_space(at / "conf").benchmark("mine")
    (asked,) = asked_of(at / "store/data/mine", benchmark, "real")
    assert (asked.request.text, asked.gold, asked.example.tags) == ("What?", ["dog"], {"of": "mine"})


def test_a_declaration_may_come_with_a_package(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(at, "code/package_of_mine/__init__.py", "")
    own(at, monkeypatch, at / "code/package_of_mine/conf")
    arguments = ["data", "prepare", "mine", "--from", str(at / "official"), "--store", str(at / "store")]
    assert cli.main([*arguments, "--config-dir", "pkg://package_of_mine.conf"]) == 0
    assert len(read_index(at / "store/data/mine")) == 1
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--config-dir", "pkg://package_of_nobody.conf"])


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ({"reader": "gqqa"}, "did you mean 'gqa'"),
        ({"reader": "no_such_module:rows"}, "there is no module no_such_module"),
        ({"reader": "reader_of_mine:lines"}, "reader 'reader_of_mine:lines': module reader_of_mine has no lines"),
        ({"reader": "reader_of_mine:csv"}, "of type module; a function is wanted"),
        ({"reader": ".reader_of_mine:rows"}, "package.module:name is wanted"),
        ({"images": {"..": {"path": "photos"}}}, "cannot be the name of a folder"),
        ({"images": {"photos": {"path": "photos", "sha256": "0" * 64}}}, "photos is a folder; `sha256` can be"),
    ],
)
def test_mistakes_in_a_declaration(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], origin: dict[str, Any], reason: str
) -> None:
    own(at, monkeypatch, at / "conf")
    put(at / "conf", "benchmark/mine.yaml", OWN | {"origin": OWN["origin"] | origin})
    assert prepare(at, "mine", "--from", str(at / "official")) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("None", "reader 'reader_of_mine:rows' gives NoneType; rows are wanted"),
        ("[1]", "reader 'reader_of_mine:rows', row 0: a dict is wanted, not int"),
        ("[{'image': 'photos/a.png', 'question': {1}}]", "cannot be written as JSON: Object of type set"),
        ("[{'image': 'photos/a.png'}]", "'reader_of_mine:rows' makes cannot be asked: index.jsonl, line 1: "),
    ],
)
def test_what_is_no_row_of_ones_own_is_told(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: str, reason: str
) -> None:
    own(at, monkeypatch, at / "conf")
    put(at, "code/reader_of_mine.py", f"def rows(files):\n    return {rows}\n")
    assert prepare(at, "mine", "--from", str(at / "official")) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("image", ["", "a.png", "/photos/a.png", None])
def test_a_row_of_ones_own_names_folder_and_file(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], image: str | None
) -> None:
    own(at, monkeypatch, at / "conf")
    row = {"image": image, "question": "?", "answers": ["dog"], "tags": None}
    put(at, "code/reader_of_mine.py", f"def rows(files):\n    return [{row!r}]\n")
    put(at / "conf", "benchmark/mine.yaml", OWN | {"origin": OWN["origin"] | {"counts": {"all": 1, "of=mine": 0}}})
    assert prepare(at, "mine", "--from", str(at / "official")) == 2
    assert "FOLDER/PATH is wanted, with FOLDER one of origin.images (photos)" in capsys.readouterr().err


def test_rows_that_cannot_be_scored_never_become_an_index(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(at, monkeypatch, at / "conf")
    put(at / "conf", "benchmark/mine.yaml", OWN | {"scorer": "vqav2"})
    assert prepare(at, "mine", "--from", str(at / "official")) == 2
    assert "10 human answers are wanted, and it has 1" in capsys.readouterr().err
    assert not (at / "store/data/mine").exists()
