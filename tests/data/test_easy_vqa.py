import json
from collections import Counter
from pathlib import Path

import pytest

from prism_sweeps.config.errors import DataError
from prism_sweeps.data import easy_vqa
from prism_sweeps.data.conversations import read_conversations
from prism_sweeps.data.mixture import check_images_exist

package = pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("easy-vqa")
    easy_vqa.prepare_easy_vqa(folder, 1, lambda done, total, note: None)
    return folder


def test_training_questions_are_those_of_the_package(folder: Path):
    conversations = read_conversations(folder / "train" / "chat.json", folder, "easy", None)
    check_images_exist(conversations)
    texts, answers, images = package.get_train_questions()
    expected = Counter(zip(texts, answers, images, strict=True))
    found, first = Counter(), Counter()
    for conversation in conversations:
        image = int(conversation.image.stem)
        for number, (_, question) in enumerate(conversation.turns[::2]):
            text, _, instruction = question.removeprefix("<image>\n").partition("\n")
            assert instruction == ("" if number else "Answer the question using a single word or phrase.")
            answer = conversation.turns[2 * number + 1][1]
            found[text, answer, image] += 1
            if number == 0:
                first[easy_vqa.kind(easy_vqa.Question(text, answer, image))] += 1
    assert found == expected
    assert min(first[kind] for kind in ("shape", "colour", "yes/no shape", "yes/no colour")) > 300
    assert len(conversations) == len(set(images))


def test_captions_agree_with_all_that_is_said_about_an_image(folder: Path):
    """Where a question says a shape or colour is there, it is the caption's; where it is not there, it is not."""
    texts, answers, images = package.get_train_questions()
    asked = list(zip(texts, answers, images, strict=True))
    captions = {
        int(conversation.image.stem): conversation.turns[1][1].split()
        for conversation in read_conversations(folder / "captions" / "chat.json", folder, "captions", None)
    }
    assert len(captions) == 3181
    confirmed = 0
    for text, answer, image in asked:
        if image not in captions or answer not in ("yes", "no"):
            continue
        words = set(text.strip("?").split())
        named = words & {*easy_vqa.SHAPES, *easy_vqa.COLOURS}
        there = (answer == "yes") != bool(words & {"no", "not"})
        assert (named <= set(captions[image])) == there, (text, answer, captions[image])
        confirmed += 1
    assert confirmed > 20_000


def test_index_holds_every_test_question_once(folder: Path):
    rows = [json.loads(line) for line in (folder / "test" / "index.jsonl").read_text().splitlines()]
    texts, answers, images = package.get_test_questions()
    found = Counter((row["question"], row["answers"][0], int(Path(row["image"]).stem)) for row in rows)
    assert found == Counter(zip(texts, answers, images, strict=True))
    assert len({row["id"] for row in rows}) == len(rows) == 9673
    assert all((folder / "test" / row["image"]).is_file() for row in rows)
    assert (folder / "test" / "images" / "0.png").read_bytes() == Path(package.get_test_image_paths()[0]).read_bytes()


def test_types_split_the_answers(folder: Path):
    rows = [json.loads(line) for line in (folder / "test" / "index.jsonl").read_text().splitlines()]
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["tags"]["type"], set()).update(row["answers"])
    assert answers == {
        "shape": {"circle", "rectangle", "triangle"},
        "colour": set(package.get_answers()) - {"circle", "rectangle", "triangle", "yes", "no"},
        "yes/no shape": {"yes", "no"},
        "yes/no colour": {"yes", "no"},
    }


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(easy_vqa.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install easy-vqa"):
        easy_vqa.prepare_easy_vqa(tmp_path, 1, lambda done, total, note: None)
