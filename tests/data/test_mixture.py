import json
from pathlib import Path

import pytest

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import Source
from prism_sweeps.data.mixture import read_mixture


def dataset(root: Path, name: str, count: int) -> None:
    folder = root / name / "images"
    folder.mkdir(parents=True)
    entries = []
    for number in range(count):
        (folder / f"{number}.png").touch()
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"{name} {number}"}]
        entries.append({"id": number, "image": f"images/{number}.png", "conversations": turns})
    (root / name / "chat.json").write_text(json.dumps(entries))


def test_sources_follow_each_other_with_their_own_limits(tmp_path: Path):
    dataset(tmp_path, "one", 3)
    dataset(tmp_path, "two", 4)
    sources = {"b": Source("two", "chat.json", examples=2), "a": Source("one", "chat.json")}
    found = read_mixture(sources, tmp_path)
    assert [conversation.name for conversation in found] == ["b/0", "b/1", "a/0", "a/1", "a/2"]
    assert found[2].image == tmp_path / "one" / "images" / "0.png"


def test_missing_images_are_counted_before_training(tmp_path: Path):
    dataset(tmp_path, "one", 5)
    for number in (1, 4):
        (tmp_path / "one" / "images" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"2 images are missing.*1\.png of a/1; .*4\.png of a/4"):
        read_mixture({"a": Source("one", "chat.json")}, tmp_path)
    assert len(read_mixture({"a": Source("one", "chat.json", examples=1)}, tmp_path)) == 1


def test_nothing_to_train_on(tmp_path: Path):
    dataset(tmp_path, "one", 0)
    with pytest.raises(DataError, match="nothing to train on"):
        read_mixture({"a": Source("one", "chat.json")}, tmp_path)
