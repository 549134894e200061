"""GQA (Hudson and Manning 2019): questions as https://cs.stanford.edu/people/dorarad/gqa/download.html has them.

    {"201307251": {"imageId": "n161313", "question": "...", "answer": "right", "fullAnswer": "...",
                   "types": {"structural": "choose", "semantic": "rel", "detailed": "..."}, ...}}

An image id is a number in some files, and text in others (testdev's begin with n). `structural` and `semantic` are the
types by which the official eval.py reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prism_sweeps.data.indexes.official import json_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row

TYPES = ("structural", "semantic")


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`questions` -> one row for each."""
    path = files["questions"]
    with laid_out(str(path)):
        questions = json_of(path).items()
    for identity, question in questions:
        with laid_out(f"{path}, question {identity}"):
            types = question.get("types") or {}
            yield index_row(
                f"images/{question['imageId']}.jpg",
                question["question"],
                [question["answer"]],
                source_id=identity,
                tags={name: types[name] for name in TYPES if types.get(name)},
            )
