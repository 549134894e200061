"""From small official files, through the command, to an index: every real benchmark, and what can be wrong."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from index_commands import declare, mine, prepare, prepared, rows_in
from official_files import CASES, POPE, SCENE, put, put_tar, put_zip

from prism_sweeps.config.compose import design_space
from prism_sweeps.config.errors import DataError
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.data.indexes.rows import example_id, index_row, with_ids
from prism_sweeps.data.prepare import ensure_dataset
from prism_sweeps.evaluation.asked import asked_of
from prism_sweeps.evaluation.benchmarks import index_of, read_index


def test_there_is_a_case_for_every_benchmark_with_an_origin() -> None:
    space = design_space()
    made = {name for name in space.files.names("benchmark") if space.benchmark(name).origin}
    assert made == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_official_files_become_an_index(at: Path, name: str) -> None:
    case = CASES[name]
    case.write(at / "official")
    declare(at, name, case)
    before = sorted(path for path in (at / "official").rglob("*"))
    folder = prepared(at, name)
    rows = rows_in(folder)
    ids = [row.pop("id") for row in rows]
    assert rows == case.rows
    assert len(set(ids)) == len(ids)
    assert all(len(identity) == 16 and int(identity, 16) >= 0 for identity in ids)
    assert all((folder / row["image"]).read_bytes() == b"an image" for row in rows)
    assert sorted(path for path in (at / "official").rglob("*")) == before
    # and it can be asked: prompts, options and truths are there
    asked = asked_of(folder, mine(at, name), "real")
    assert [each.example.id for each in asked] == ids


def test_about_tells_what_the_index_is_made_from(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE)
    monkeypatch.chdir(at)
    assert prepare(at, "my-pope", "--from", "official") == 0  # from here; what is told holds from anywhere
    folder = at / "store/data/my/pope"
    about = json.loads((folder / "about.json").read_text())
    random = at / "official/pope/coco_pope_random.json"
    assert about["files"].pop("random") == {
        "path": str(random),
        "sha256": hashlib.sha256(random.read_bytes()).hexdigest(),
    }
    assert set(about.pop("files")) == {"popular", "adversarial"}
    assert about == {
        "benchmark": "my-pope",
        "version": "1",
        "examples": 3,
        "sha256": hashlib.sha256((folder / "index.jsonl").read_bytes()).hexdigest(),
        "reader": "pope",
        "images": {"val2014": str(at / "official/val2014")},
        "prism": importlib.metadata.version("prism-sweeps"),
    }


def test_ids_do_not_depend_on_the_order_of_the_files(at: Path) -> None:
    case = CASES["vqav2"]
    case.write(at / "official")
    declare(at, "vqav2", case)
    first = {row["id"]: row for row in rows_in(prepared(at, "vqav2"))}
    annotations = at / "official/v2_mscoco_val2014_annotations.json"
    content = json.loads(annotations.read_text())
    content["annotations"].reverse()
    annotations.write_text(json.dumps(content, indent=2))
    again = rows_in(prepared(at, "vqav2"))
    assert {row["id"]: row for row in again} == first
    assert [row["id"] for row in again] == list(reversed(first))


def test_golden_ids() -> None:
    """Ids that were given are kept: results refer to them."""
    row = index_row(
        "images/1.jpg", "Is it “red”?", ["no"], source_id=7, box=[0.1, 0.2, 0.3, 0.4], tags={"b": 1, "a": 2}
    )
    text = (
        '{"answers": ["no"], "box": [0.1, 0.2, 0.3, 0.4], "image": "images/1.jpg", "question": "Is it '
        '\\u201cred\\u201d?", "source_id": "7", "tags": {"a": 2, "b": 1}}'
    )
    assert example_id(row) == hashlib.sha256(text.encode()).hexdigest()[:16] == "19218ceb6bb591e1"
    assert example_id(dict(reversed(row.items())) | {"id": "x"}) == example_id(row)
    ids = [each["id"] for each in with_ids([row, {**row, "question": "?"}, row, row])]
    assert ids[0] == example_id(row)
    assert ids[2:] == [example_id(row, 1), example_id(row, 2)]
    assert len(set(ids)) == 4


# ---- what is missing


def test_all_that_is_missing_is_listed_with_its_address(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(at / "official", "coco_pope_random.json", "{}")
    assert prepare(at, "pope", "--from", str(at / "official")) == 2
    told = capsys.readouterr().err
    for name in ("coco_pope_popular.json", "coco_pope_adversarial.json", "val2014.zip"):
        assert name in told
    assert "/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco/coco_pope_popular.json" in told
    assert "http://images.cocodataset.org/zips/val2014.zip" in told
    assert str(at / "official") in told
    assert str(at / "store/data/downloads/coco/val2014") in told
    assert "random:" not in told
    assert "--download" in told
    assert not (at / "store/data/pope").exists()


def test_files_of_two_sets_are_told_apart_or_asked_about(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["refcoco+"]
    CASES["refcoco"].write(at / "official")
    declare(at, "refcoco+", case)
    assert prepare(at, "my-refcoco+", "--from", str(at / "official")) == 2  # there is only refcoco's instances.json
    assert "refcoco+/instances.json" in capsys.readouterr().err
    case.write(at / "official")
    shutil.copytree(at / "official/refer", at / "official/copy")
    assert prepare(at, "my-refcoco+", "--from", str(at / "official")) == 2
    assert "which one is refcoco+/refs(unc).p?" in capsys.readouterr().err
    assert prepare(at, "my-refcoco+", "--from", str(at / "nowhere")) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_missing_images_are_counted_and_named(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["ocidref"]
    case.write(at / "official")
    declare(at, "ocidref", case)
    put_tar(at / "official", "OCID-dataset.tar.gz", {f"OCID-dataset/{SCENE.format(1)}": b"an image"})
    assert prepare(at, "my-ocidref", "--from", str(at / "official")) == 2
    told = capsys.readouterr().err
    assert "of its 3 images" in told
    assert (
        f"2 are missing in {at}/store/data/downloads/ocidref/OCID-dataset: {SCENE.format(0)}, {SCENE.format(2)}" in told
    )
    assert "https://data.acin.tuwien.ac.at" in told
    assert not (at / "store/data/my/ocidref").exists()


def test_other_counts_than_declared_are_explained_and_can_be_declared(
    at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    POPE.write(at / "official")
    assert prepare(at, "pope", "--from", str(at / "official")) == 2
    told = capsys.readouterr().err
    assert "vlm-evaluation's configuration says 9,000" in told
    assert [line.split() for line in told.splitlines() if line.strip().startswith(("all", "split=random"))] == [
        ["all", "8,910", "3"],
        ["split=random", "2,910", "1"],
    ]
    assert not (at / "store/data/pope").exists()
    # the declaration that the message proposes is one that works
    proposed = told[told.index("  defaults:") :]
    put(at / "conf", "benchmark/my-pope.yaml", proposed)
    design_space.cache_clear()
    assert prepare(at, "my-pope", "--from", str(at / "official")) == 0
    assert len(read_index(at / "store/data/my-pope")) == 3


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"all": 3, "split=random": 1, "split=popular": 1, "split=adversarial": None}, None),
        ({"split=hard": None}, "split=hard .*some +0"),
        ({"split=hard": 2}, r"split=hard +2 +0"),
    ],
)
def test_counts_of_parts(at: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, Any], expected: str) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE, origin={"counts": POPE.counts | counts})
    code = prepare(at, "my-pope", "--from", str(at / "official"))
    told = capsys.readouterr().err
    assert (code, bool(expected and re.search(expected, told))) == (2, True) if expected else code == 0


def test_a_part_that_is_not_declared_is_named(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["ocidref"]
    case.write(at / "official")
    content = {**case.counts, "sub=x": None}
    declare(at, "ocidref", case, origin={"counts": content})
    assert prepare(at, "my-ocidref", "--from", str(at / "official")) == 2
    assert "sub=x" in capsys.readouterr().err


def test_a_file_with_another_hash_is_refused(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    POPE.write(at / "official")
    right = hashlib.sha256((at / "official/pope/coco_pope_random.json").read_bytes()).hexdigest()
    for sha256, code in ((right, 0), ("0" * 64, 2)):
        declare(at, "pope", POPE, origin={"counts": POPE.counts, "files": {"random": {"sha256": sha256}}})
        design_space.cache_clear()
        assert prepare(at, "my-pope", "--from", str(at / "official")) == code
    told = capsys.readouterr().err
    assert right in told
    assert "0" * 64 in told
    assert (at / "official/pope/coco_pope_random.json").exists()  # the user's file stays


# ---- what is malformed


@pytest.mark.parametrize(
    ("name", "path", "content", "reason"),
    [
        ("vizwiz", "data/Annotations/val.json", "[{", "val.json is not what it should be"),
        ("vizwiz", "data/Annotations/val.json", [{"image": "x.jpg", "question": "?", "answerable": 1}], "no 'answers'"),
        ("vizwiz", "data/Annotations/val.json", {"questions": []}, "official layout"),
        ("pope", "pope/coco_pope_random.json", b"\xff\xfe", "not what it should be"),
        ("pope", "pope/coco_pope_random.json", '{"a": 1}\n{', "coco_pope_random.json, line 2: not JSON"),
        (
            "pope",
            "pope/coco_pope_random.json",
            {"question_id": 1, "image": "x", "text": "?", "label": "maybe"},
            "question 0: it has no 'maybe'",
        ),
        (
            "pope",
            "pope/coco_pope_random.json",
            {"question_id": 1, "image": "../../etc/passwd", "text": "?", "label": "yes"},
            r"a row's image is 'val2014/\.\./",
        ),
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": []}, "question 42001 is not in"),
        ("textvqa", "llava_textvqa_val_v051_ocr.jsonl", "", "nothing about image 003a8ae2ef43b901"),
        ("ocidref", "val_expressions.json", {"1": {"take_id": 21}}, "expression 1: it has no 'bbox'"),
        (
            "ocidref",
            "val_expressions.json",
            {"1": {"take_id": 21, "bbox": "[1, 1, 2, 2]", "scene_path": "x", "sentence": "x"}},
            "take_id is 21",
        ),
        (
            "ocidref",
            "val_expressions.json",
            {"1": {"take_id": 1, "bbox": "[200, 100, 50, 60]", "scene_path": "x", "sentence": "x"}},
            "expression 1: 200, 100, 50, 60 are no corners of a box in an image of 640 x 480 pixels",
        ),
        (
            "tallyqa",
            "test.json",
            [{"question_id": 1, "image": "VG_100K/9.jpg", "question": "?", "answer": 16, "issimple": True}],
            "its answer is 16",
        ),
        (
            "tallyqa",
            "test.json",
            [{"question_id": 1, "image": "VG_100K/9.jpg", "question": "?", "answer": 1, "data_source": "amt"}],
            "question 0: it has no 'issimple'",
        ),
        ("ai2d", "questions/x.json", {}, "number of the image"),
        (
            "ai2d",
            "questions/3.png.json",
            {"imageName": "3.png", "questions": {"?": {"answerTexts": ["a"], "correctAnswer": 1}}},
            "has 1 answers",
        ),
    ],
)
def test_malformed_files_are_named(
    at: Path, capsys: pytest.CaptureFixture[str], name: str, path: str, content: Any, reason: str
) -> None:
    CASES[name].write(at / "official")
    put(at / "official", path, content)
    declare(at, name, CASES[name])
    assert prepare(at, f"my-{name}", "--from", str(at / "official")) == 2
    told = capsys.readouterr().err
    assert re.search(reason, told), told
    assert not (at / "store/data/my" / name).exists()


# ---- again, moved, edited


def test_an_index_that_is_there_is_left_alone(at: Path) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE)
    folder = prepared(at, "pope")
    made = (folder / "about.json").stat().st_mtime_ns
    assert prepare(at, "my-pope") == 0
    assert (folder / "about.json").stat().st_mtime_ns == made
    assert prepared(at, "pope") == folder  # whoever names a folder wants it read
    assert (folder / "about.json").stat().st_mtime_ns > made
    assert [path.name for path in folder.parent.iterdir() if path.name != "pope"] == [".pope.lock"]


def test_an_edited_index_is_refused(at: Path) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE)
    folder = prepared(at, "pope")
    index = (folder / "index.jsonl").read_bytes()
    (folder / "index.jsonl").write_bytes(index[: index.index(b"\n") + 1])
    with pytest.raises(DataError, match=r"cut short, or edited; make it anew: prism data prepare my-pope"):
        read_index(folder)
    assert prepared(at, "pope")
    assert (folder / "index.jsonl").read_bytes() == index
    (folder / "about.json").unlink()
    (folder / "index.jsonl").write_bytes(index[: index.index(b"\n") + 1])
    assert len(read_index(folder)) == 1  # an index of one's own is taken as it is


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read: maximum recursion"),
        ("[]", "does not say of which benchmark"),
        ('{"benchmark": "my-pope", "version": ["1"], "sha256": {}}', r"version \['1'\] of my-pope"),
    ],
)
def test_an_about_that_says_nothing_is_named_and_made_anew(at: Path, content: str, reason: str) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE)
    folder = prepared(at, "pope")
    put(folder, "about.json", content)
    with pytest.raises(DataError, match=f"{reason}.*make it anew: prism data prepare"):
        index_of(folder, mine(at, "pope"))
    prepared(at, "pope")
    assert len(index_of(folder, mine(at, "pope"))) == 3


def test_another_version_is_refused_and_made_anew(at: Path) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE)
    folder = prepared(at, "pope")
    declare(at, "pope", POPE, version="2")
    with pytest.raises(DataError, match=r"version 1 of my-pope, and my-pope is declared as version 2.*prepare my-pope"):
        index_of(folder, mine(at, "pope"))
    prepared(at, "pope")
    assert len(index_of(folder, mine(at, "pope"))) == 3


def test_images_that_have_moved_are_noticed_before_anything_is_asked(at: Path) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE)
    folder = prepared(at, "pope")
    (at / "official").rename(at / "elsewhere")
    with pytest.raises(DataError, match=r"val2014 leads nowhere: .*official/val2014; .*prepare my-pope --from FOLDER"):
        index_of(folder, mine(at, "pope"))
    assert prepare(at, "my-pope", "--from", str(at / "elsewhere")) == 0
    assert len(index_of(folder, mine(at, "pope"))) == 3


def test_a_data_root_with_its_downloads_can_be_moved(at: Path) -> None:
    case = CASES["gqa"]
    case.write(at / "official")  # packed, so that it is unpacked among the downloads
    declare(at, "gqa", case)
    prepared(at, "gqa")
    (at / "store").rename(at / "moved")
    assert all(each.image.exists() for each in index_of(at / "moved/data/my/gqa", mine(at, "gqa")))


def test_what_was_not_made_here_is_never_removed(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(at, "pope", POPE)
    place = at / "store/data/my/pope"
    POPE.write(place)  # official files in the very place of the index
    assert prepare(at, "my-pope", "--from", str(place)) == 2
    assert "holds what was not made here (pope, val2014)" in capsys.readouterr().err
    assert (place / "pope/coco_pope_random.json").exists()
    shutil.rmtree(place)
    put(place, "index.jsonl", '{"id": "1", "image": "x", "question": "?", "answers": ["Yes"]}\n')
    POPE.write(at / "official")
    assert prepare(at, "my-pope", "--from", str(at / "official")) == 2  # an index of the user's own
    assert prepare(at, "my-pope") == 0  # is as good as one that was made
    assert len(index_of(place, mine(at, "pope"))) == 1


def test_no_index_names_the_command(at: Path) -> None:
    declare(at, "pope", POPE)
    with pytest.raises(DataError, match=r"index.jsonl does not exist; .*: prism data prepare my-pope$"):
        index_of(at / "store/data/my/pope", mine(at, "pope"))
    with pytest.raises(DataError, match=r"put your own there"):
        index_of(at, Benchmark("b", "b"))


# ---- the command


def test_a_study_names_benchmarks_too(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(at, "pope", POPE)
    suite = {"defaults": [{"/benchmark@benchmarks.pope": "my-pope"}, "_self_"], "name": "mine"}
    put(at / "conf", "suite/mine.yaml", suite)
    study = {"description": "x", "base": {"suite": "mine", "data_mix": "easy-vqa"}}
    put(at / "conf", "study/mine.yaml", study)
    POPE.write(at / "official")
    put(at / "store/data", "easy-vqa/ready", "")
    assert prepare(at, "--study", "mine", "--from", str(at / "official")) == 0
    assert str(at / "store/data/my/pope") in capsys.readouterr().out.splitlines()


def test_names_may_stand_after_options(at: Path) -> None:
    POPE.write(at / "official")
    declare(at, "pope", POPE)
    assert prepare(at, "--from", str(at / "official"), "my-pope") == 0


def test_from_is_for_official_files(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(at / "store/data", "easy-vqa/ready", "")
    assert prepare(at, "easy-vqa", "--from", str(at)) == 2
    assert "--from and --download are for benchmarks" in capsys.readouterr().err
    assert prepare(at, "easy-vqa") == 0


def test_a_job_without_its_index_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index of gqa; .*: prism data prepare gqa$"):
        ensure_dataset("gqa", tmp_path, 1, lambda *_: None)
    with pytest.raises(DataError, match=r"prism data prepare refcoco refcoco\+ refcocog$"):
        ensure_dataset("refcoco", tmp_path, 1, lambda *_: None)
    (tmp_path / "gqa").mkdir()
    assert ensure_dataset("gqa", tmp_path, 1, lambda *_: None) == tmp_path / "gqa"


def test_zipped_and_unzipped_make_the_same_index(at: Path) -> None:
    case = CASES["tallyqa"]
    case.write(at / "official")
    declare(at, "tallyqa", case)
    packed = (prepared(at, "tallyqa") / "index.jsonl").read_bytes()
    shutil.rmtree(at / "store")
    shutil.unpack_archive(at / "official/tallyqa.zip", at / "official")
    put_zip(at / "official", "tallyqa.zip", {"test.json": "not looked at"})
    assert (prepared(at, "tallyqa") / "index.jsonl").read_bytes() == packed
    assert not (at / "store/data/downloads/tallyqa").exists()
