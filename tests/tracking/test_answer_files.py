"""Answers, kept apart from scores: who shares them, and that no writer harms another."""

from dataclasses import replace
from pathlib import Path

import pytest

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.specs import EvaluationSpec, ModelSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.tracking.answers import SCORING, AnswerFiles, asked_by, asking
from prism_sweeps.tracking.records import Store

BENCHMARK = Benchmark("one", "one", "1", "{question}", "box", scorer="iou")


def spec(**changes: object) -> EvaluationSpec:
    cell = compose_cell([])[0]
    model = ModelSpec(cell.backbone, cell.resolution, cell.resize, cell.projector, cell.llm)
    fields = {"condition": "real", "parent": "a" * 16, "benchmark": BENCHMARK} | changes
    return EvaluationSpec(model=model, **fields)


SAME = [
    {"name": "two"},
    {"scorer": "exact"},
    {"iou_threshold": 0.25},
    {"box_frame": "padded"},
    {"box_units": "pixels"},
    {"examples": 7},
    {"sampling": "random"},
    {"each": "split"},
]
OTHER = [{"prompt": "{question}?"}, {"answer": "generate"}, {"max_new_tokens": 5}, {"version": "2"}, {"index": "two"}]


def test_what_concerns_scores_alone_asks_the_same() -> None:
    assert {name for change in SAME for name in change} == set(SCORING)
    for change in SAME:
        assert asking(spec(benchmark=replace(BENCHMARK, **change))) == asking(spec())
    assert asking(spec(scorer_version=3)) == asking(spec())


def test_whatever_a_model_can_notice_asks_something_else() -> None:
    others = [spec(benchmark=replace(BENCHMARK, **change)) for change in OTHER]
    others += [spec(condition="blank"), spec(parent="b" * 16), spec(precision="bf16")]
    assert len({asking(each) for each in [spec(), *others]}) == len(others) + 1


def test_jobs_find_each_others_answers_and_each_process_has_its_file(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    records = [store.job(name * 16) for name in "cd"]
    for record in records:
        record.path.mkdir(parents=True)
    one = AnswerFiles.of(spec(), records[0], store)
    other = AnswerFiles.of(spec(scorer_version=2), records[1], store)
    one.append([{"request": "x", "answer": "1"}, {"request": "y", "answer": "2"}])
    other.append([{"request": "z", "answer": "3"}])
    again = AnswerFiles.of(spec(), records[0], store)
    again.append([{"request": "w", "answer": "4"}])
    assert {key: row["answer"] for key, row in again.read().items()} == {"w": "4", "x": "1", "y": "2", "z": "3"}
    assert other.read() == again.read()
    assert len(list(one.folder.glob("*.jsonl"))) == 3
    assert [asked_by(record) for record in records] == [3, 1]
    assert {path.resolve() for path in (record.answers for record in records)} == {one.folder}


def test_a_file_that_is_not_listed_yet_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    record = store.job("c" * 16)
    record.path.mkdir(parents=True)
    mine, other = (AnswerFiles.of(spec(), record, store) for _ in range(2))
    mine.append([{"request": "x", "answer": "1"}])
    listed = list(mine.folder.glob("*.jsonl"))
    other.append([{"request": "y", "answer": "2"}])
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    assert sorted(mine.read()) == ["x"]
    assert sorted(mine.read([mine.writer, other.writer, "nobody"])) == ["x", "y"]


def test_a_row_that_a_crash_cut_off_is_one_that_is_not_there(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    record = store.job("c" * 16)
    record.path.mkdir(parents=True)
    files = AnswerFiles.of(spec(), record, store)
    files.append([{"request": "x", "answer": "1"}])
    path = next(files.folder.glob("*.jsonl"))
    path.write_bytes(path.read_bytes() + b'{"request": "y", "answer": "2')
    assert list(files.read()) == ["x"]


def test_a_store_that_was_moved_keeps_its_answers(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "old")
    record = store.job("c" * 16)
    record.path.mkdir(parents=True)
    AnswerFiles.of(spec(), record, store).append([{"request": "x", "answer": "1"}])
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Store.open(tmp_path / "new")
    assert list(AnswerFiles.of(spec(), moved.job("c" * 16), moved).read()) == ["x"]
    assert list(moved.job("c" * 16).answers.glob("*.jsonl"))


@pytest.mark.parametrize("stale", ["file", "elsewhere"])
def test_a_link_that_leads_elsewhere_is_mended(tmp_path: Path, stale: str) -> None:
    store = Store.open(tmp_path)
    record = store.job("c" * 16)
    record.path.mkdir(parents=True)
    if stale == "file":
        record.answers.write_text("?")
    else:
        record.answers.symlink_to("../nowhere")
    assert record.answers.resolve() != AnswerFiles.of(spec(), record, store).folder or stale
    assert record.answers.resolve() == store.root / "answers" / asking(spec())
