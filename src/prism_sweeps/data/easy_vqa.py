"""easy-VQA (Victor Zhou, 2019, MIT licence): 5,000 synthetic 64 px images of one shape, 48,248 questions, 13 answers.

Source: https://pypi.org/project/easy-vqa/ 1.0. Its yes/no questions are mostly answerable without the image (three
colours out of four are "no"); shape and colour questions are not. So `type` splits them, and yes/no by what is asked.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from prism_sweeps.config.errors import DataError

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
REQUEST = "What is in the image?"
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


class Question(NamedTuple):
    text: str
    answer: str
    image: int


def prepare_easy_vqa(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    """Writes `train/chat.json`, `captions/chat.json` and `test/index.jsonl`, with their images.

    Raises DataError when the package `easy-vqa` is not installed.
    """
    package = package_data()
    for done, split in enumerate(("train", "test")):
        progress(done, 2, f"easy-vqa {split}")
        shutil.copytree(package / split / "images", folder / split / "images")
    questions = read_questions(package / "train" / "questions.json")
    write_chat(folder / "train" / "chat.json", questions)
    write_captions(folder / "captions" / "chat.json", questions)
    write_index(folder / "test" / "index.jsonl", read_questions(package / "test" / "questions.json"))
    progress(2, 2, "easy-vqa")


def package_data() -> Path:
    """Where the installed package keeps its files. Raises DataError when it is not installed."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise DataError("dataset 'easy-vqa' comes from the package easy-vqa: pip install easy-vqa")
    return Path(spec.origin).parent / "data"


def read_questions(path: Path) -> list[Question]:
    return [Question(*row) for row in json.loads(path.read_text(encoding="utf-8"))]


def write_chat(path: Path, questions: list[Question]) -> None:
    """All questions about an image as one conversation; image paths are relative to the dataset's folder."""
    _write_entries(path, [conversation(image, group) for image, group in by_image(questions)])


def write_captions(path: Path, questions: list[Question]) -> None:
    """A caption for each image whose colour and shape are told: easy-VQA itself has no alignment data."""
    told = [(image, caption(group)) for image, group in by_image(questions)]
    entries = [
        entry(image, [{"from": "human", "value": f"<image>\n{REQUEST}"}, {"from": "gpt", "value": said}])
        for image, said in told
        if said is not None
    ]
    _write_entries(path, entries)


def by_image(questions: list[Question]) -> list[tuple[int, list[Question]]]:
    groups: defaultdict[int, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.image].append(question)
    return sorted(groups.items())


def caption(questions: list[Question]) -> str | None:
    """As in "a blue circle", from the questions about an image and their answers; None if they leave it open.

    "what color is the circle?" tells the shape as well, "what is the blue shape?" the colour.
    """
    open_ones = [question for question in questions if question.answer in SHAPES + COLOURS]
    words = {word for question in open_ones for word in (question.answer, *question.text.strip("?").split())}
    shapes, colours = words & set(SHAPES), words & set(COLOURS)
    return f"a {colours.pop()} {shapes.pop()}" if shapes and colours else None


def conversation(image: int, questions: list[Question]) -> dict[str, Any]:
    """All that is asked about an image, in an order of its own; the first question says how to answer, for all.

    Each kind of question is then now and then the first, as every question of the test is, and the hint takes its
    tokens once instead of in each of some ten turns.
    """
    turns = []
    for number, question in enumerate(Random(image).sample(questions, len(questions))):
        text = f"<image>\n{question.text}{SHORT_ANSWER}" if number == 0 else question.text
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": question.answer}]
    return entry(image, turns)


def entry(image: int, turns: list[dict[str, str]]) -> dict[str, Any]:
    return {"id": f"easy-vqa-{image}", "image": f"train/images/{image}.png", "conversations": turns}


def _write_entries(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")


def write_index(path: Path, questions: list[Question]) -> None:
    """The test questions as a benchmark's index, grouped by image; image paths are relative to the index."""
    seen: defaultdict[int, int] = defaultdict(int)
    lines = []
    for question in sorted(questions, key=lambda question: question.image):
        row = {
            "id": f"{question.image}-{seen[question.image]}",
            "image": f"images/{question.image}.png",
            "question": question.text,
            "answers": [question.answer],
            "options": None,
            "box": None,
            "context": None,
            "tags": {"type": kind(question)},
        }
        seen[question.image] += 1
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def kind(question: Question) -> str:
    """shape, colour, or yes/no about a shape or a colour."""
    if question.answer in SHAPES:
        return "shape"
    if question.answer in COLOURS:
        return "colour"
    return "yes/no shape" if any(shape in question.text for shape in SHAPES) else "yes/no colour"
