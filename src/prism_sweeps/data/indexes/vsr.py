"""VSR (Liu et al. 2023), zero-shot test: test.jsonl of https://github.com/cambridgeltl/visual-spatial-reasoning.

    {"image": "000000017697.jpg", "caption": "The car is behind the suitcase.", "label": 1, "relation": "behind",
     "subj": "car", "obj": "suitcase", ...}

Label 1 is true, 0 false. There are no ids. Images: COCO 2017, train and val in one folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prism_sweeps.data.indexes.official import json_lines_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row

LABELS = {0: "False", 1: "True"}


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`statements` -> one row for each."""
    path = files["statements"]
    for number, example in enumerate(json_lines_of(path)):
        with laid_out(f"{path}, statement {number}"):
            yield index_row(
                f"images/{example['image']}",
                example["caption"],
                [LABELS[example["label"]]],
                tags={"relation": example["relation"]},
            )
