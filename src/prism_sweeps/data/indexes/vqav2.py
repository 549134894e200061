"""VQAv2 (Goyal et al. 2017), validation: questions and annotations as https://visualqa.org/download.html has them.

    questions:   {"questions": [{"question_id": 262148000, "image_id": 262148, "question": "..."}]}
    annotations: {"annotations": [{"question_id": 262148000, "image_id": 262148, "question_type": "none of the above",
                  "answer_type": "other", "multiple_choice_answer": "down",
                  "answers": [{"answer_id": 1, "answer": "down", "answer_confidence": "yes"}, ...]}]}

All ten answers count, whatever their confidence. Images: COCO_val2014_<image id, 12 digits>.jpg.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.indexes.official import json_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`questions` and `annotations` -> one row for each annotation, in their order."""
    with laid_out(str(files["questions"])):
        questions = {each["question_id"]: each for each in json_of(files["questions"])["questions"]}
    with laid_out(str(files["annotations"])):
        annotations = json_of(files["annotations"])["annotations"]
    for number, annotation in enumerate(annotations):
        where = f"{files['annotations']}, annotation {number}"
        with laid_out(where):
            identity = annotation["question_id"]
            if identity not in questions:
                raise DataError(f"{where}: question {identity} is not in {files['questions']}: not of one split?")
            yield index_row(
                f"val2014/COCO_val2014_{annotation['image_id']:012d}.jpg",
                questions[identity]["question"],
                [answer["answer"] for answer in annotation["answers"]],
                source_id=identity,
                tags={"answer_type": annotation["answer_type"], "question_type": annotation["question_type"]},
            )
