"""AI2D (Kembhavi et al. 2016): ai2d-all.zip of https://prior.allenai.org/projects/diagram-understanding.

    questions/3.png.json    {"imageName": "3.png", "questions": {"which one is a dairy item?": {"questionId": "3.png-0",
                             "answerTexts": ["c", "D", "b", "a"], "correctAnswer": 1, "abcLabel": true}}}
    annotations/3.png.json  {"text": {"T1": {"rectangle": [[10, 20], [50, 40]], "replacementText": "D"}}, ...}
    images/3.png
    ai2d_test_ids.csv       one number of an image on each line: the test split; what is left is `val`, as in
                            vlm-evaluation

The options of a question with `abcLabel` are letters, that are meant to stand in the diagram where its words do. The
images as published have the words. vlm-evaluation shows these, and so does `rows`; the tag `abc_label` tells such
questions apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.indexes.official import first_column_of, json_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row

LETTERS = "ABCDEFGHIJKLMNOP"


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`questions` (a folder) and `test_ids` -> one row for each question, by the number of its image."""
    with laid_out(str(files["test_ids"])):
        test = {int(identity) for identity in first_column_of(files["test_ids"])}
    for path in sorted(files["questions"].glob("[!.]*.json"), key=number_of):
        split = "test" if number_of(path) in test else "val"
        with laid_out(str(path)):
            content = json_of(path)
            for text, question in content["questions"].items():
                yield row_of(text, question, f"images/{content['imageName']}", split, str(path))


def number_of(path: Path) -> int:
    """The image's: 3 of 3.png.json. Raises DataError."""
    head = path.name.partition(".")[0]
    if not head.isdecimal():
        raise DataError(f"{path}: questions are in files called <number of the image>.png.json")
    return int(head)


def row_of(text: str, question: Mapping[str, Any], image: str, split: str, where: str) -> Row:
    """One question."""
    options, right = question["answerTexts"], question["correctAnswer"]
    if not 0 <= right < len(options) <= len(LETTERS):
        raise DataError(f"{where}: '{text}' has {len(options)} answers, and number {right} is said to be right")
    return index_row(
        image,
        text,
        [LETTERS[right]],
        source_id=question["questionId"],
        options=options,
        tags={"split": split, "abc_label": bool(question["abcLabel"])},
    )
