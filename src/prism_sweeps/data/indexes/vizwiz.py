"""VizWiz-VQA (Gurari et al. 2018): a split's annotations as https://vizwiz.org/tasks-and-datasets/vqa/ has them.

    [{"image": "VizWiz_val_00000000.jpg", "question": "...", "answerable": 1, "answer_type": "other",
      "answers": [{"answer": "night time", "answer_confidence": "yes"}, ...]}]

All ten answers count, whatever their confidence. There are no ids; each image has one question, whose name serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prism_sweeps.data.indexes.official import json_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`annotations` -> one row for each question."""
    path = files["annotations"]
    for number, example in enumerate(json_of(path)):
        with laid_out(f"{path}, question {number}"):
            yield index_row(
                f"images/{example['image']}",
                example["question"],
                [answer["answer"] for answer in example["answers"]],
                source_id=example["image"],
                tags={"answerable": int(example["answerable"]), "answer_type": example["answer_type"]},
            )
