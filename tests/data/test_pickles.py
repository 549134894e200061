"""A pickle is read as data, and never run."""

from __future__ import annotations

import datetime
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.indexes.pickles import plain_pickle_of

PLAIN = [{"a": 1, "b": [1.5, None, True, "é"], "c": (1, {"x"}), "long": 1 << 80}, {}]


class Calls:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Own:
    pass


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read(tmp_path: Path, protocol: int) -> None:
    plain = PLAIN if protocol >= 4 else [{**PLAIN[0], "c": (1,)}, {}]  # sets have an opcode of their own from 4 on
    (tmp_path / "x.p").write_bytes(pickle.dumps(plain, protocol))
    assert plain_pickle_of(tmp_path / "x.p") == plain


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_something_is_refused_before_it_does(tmp_path: Path, protocol: int) -> None:
    hostile = pickle.dumps([{"split": "val"}, Calls(tmp_path / "made")], protocol)
    (tmp_path / "x.p").write_bytes(hostile)
    with pytest.raises(DataError, match=r"x.p is no pickle of plain data: it wants posix.mkdir.*nothing in it was run"):
        plain_pickle_of(tmp_path / "x.p")
    assert not (tmp_path / "made").exists()
    pickle.loads(hostile)
    assert (tmp_path / "made").exists()  # Python's own loader would have run it


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch made'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch made'\nios\nsystem\n.",  # INST
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",  # STACK_GLOBAL of a builtin
        b"\x80\x02c__builtin__\ngetattr\n.",
        b"Pelsewhere\n.",  # PERSID
        b"\x80\x02\x82\x01.",  # an extension that is not registered
        b"(dS'x'\nb.",  # BUILD on a dict
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BINBYTES8 of 2**63 bytes
        b"\x80\x63.",  # a protocol of the future
        b"g9\n.",  # a memo that was never put
        b"S'\\xff'\n.",  # not UTF-8
        b"0.",
        b"",
        b"no pickle",
        pickle.dumps(Own()),
        pickle.dumps(OrderedDict(a=1)),
        pickle.dumps(datetime.date(2024, 1, 1)),
        pickle.dumps(len),
    ],
)
def test_anything_else_is_no_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.p").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.p is no pickle of plain data"):
        plain_pickle_of(tmp_path / "x.p")
    assert [path.name for path in tmp_path.iterdir()] == ["x.p"]


def test_no_pickle_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        plain_pickle_of(tmp_path / "x.p")
