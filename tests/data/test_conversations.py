import json
from pathlib import Path

import pytest

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.conversations import read_conversations

HUMAN = {"from": "human", "value": "<image>\nWhat is this?"}
GPT = {"from": "gpt", "value": "A cat."}


def read(tmp_path: Path, content: object, first: int | None = None):
    path = tmp_path / "chat.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_conversations(path, tmp_path / "images", "mix", first)


def test_reads_llava_format(tmp_path: Path):
    more = [{"from": "human", "value": "And its colour?"}, {"from": "gpt", "value": "Grey."}]
    found = read(
        tmp_path,
        [
            {"id": "000001", "image": "coco/1.jpg", "model": "x", "conversations": [HUMAN, GPT, *more]},
            {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        ],
    )
    assert [conversation.name for conversation in found] == ["mix/000001", "mix/1"]
    assert found[0].image == tmp_path / "images" / "coco" / "1.jpg"
    assert found[0].turns[2:] == [("human", "And its colour?"), ("gpt", "Grey.")]
    assert found[1].image is None
    assert found[1].source == "mix"


def test_first_cuts_before_checking(tmp_path: Path):
    good = {"conversations": [{"from": "human", "value": "Hello"}, GPT]}
    assert len(read(tmp_path, [good, good, {"broken": 1}], first=2)) == 2


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("text", "is a str"),
        ({"id": 1}, "'conversations' should be a list"),
        ({"conversations": []}, "not empty"),
        ({"conversations": [HUMAN]}, "ends with a human turn"),
        ({"conversations": [GPT, HUMAN]}, 'turn 0: .* should be {"from": "human"'),
        ({"conversations": [HUMAN, HUMAN]}, 'turn 1: .* should be {"from": "gpt"'),
        ({"conversations": [HUMAN, {"from": "gpt", "value": 3}]}, "turn 1"),
        ({"conversations": [HUMAN, {"from": "assistant", "value": "x"}]}, "turn 1"),
        ({"image": "a.png", "conversations": [HUMAN, {"from": "gpt", "value": "<image>"}]}, "in a gpt turn"),
        ({"image": "a.png", "conversations": [HUMAN, GPT, HUMAN, GPT]}, "more than once"),
        ({"conversations": [HUMAN, GPT]}, "but no 'image'"),
        ({"image": "/etc/passwd", "conversations": [HUMAN, GPT]}, "relative path inside"),
        ({"image": "a/../../b.png", "conversations": [HUMAN, GPT]}, "relative path inside"),
        ({"image": "", "conversations": [HUMAN, GPT]}, "relative path inside"),
        ({"image": ["a.png", "b.png"], "conversations": [HUMAN, GPT]}, "relative path inside"),
    ],
)
def test_malformed_entry_is_named(tmp_path: Path, entry: object, fault: str):
    good = {"image": "a.png", "conversations": [HUMAN, GPT]}
    with pytest.raises(DataError, match=rf"chat\.json, entry 1.*{fault}"):
        read(tmp_path, [good, entry])


@pytest.mark.parametrize(("content", "fault"), [("[{", "not valid JSON"), ({"a": 1}, "holds a dict"), ("", "JSON")])
def test_malformed_file_is_named(tmp_path: Path, content: object, fault: str):
    with pytest.raises(DataError, match=fault):
        read(tmp_path, content)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent\.json"):
        read_conversations(tmp_path / "absent.json", tmp_path, "mix", None)


def test_image_tag_inside_text_only_talk_is_text(tmp_path: Path):
    talk = [
        {"from": "human", "value": "What does <image> mean in SVG?"},
        {"from": "gpt", "value": "An <image> element."},
    ]
    assert read(tmp_path, [{"conversations": talk}])[0].turns[1][1] == "An <image> element."
