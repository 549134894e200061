"""POPE on COCO (Li et al. 2023): output/coco/coco_pope_<split>.json of https://github.com/AoiDragon/POPE, JSON lines.

    {"question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person in the image?",
     "label": "yes"}

Ids are those of a split. Labels are lower case, the options offered begin with a capital.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prism_sweeps.data.indexes.official import json_lines_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row

LABELS = {"yes": "Yes", "no": "No"}


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """A file for each split, by its name (`random`, `popular`, `adversarial`) -> one row for each question."""
    for split, path in files.items():
        for number, example in enumerate(json_lines_of(path)):
            with laid_out(f"{path}, question {number}"):
                yield index_row(
                    f"val2014/{example['image']}",
                    example["text"],
                    [LABELS[example["label"].strip().lower()]],
                    source_id=f"{split}-{example['question_id']}",
                    tags={"split": split},
                )
