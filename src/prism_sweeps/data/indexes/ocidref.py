"""OCID-Ref (Wang et al. 2021), validation: val_expressions.json of https://github.com/lluma/OCID-Ref.

    {"12345": {"take_id": 9, "scene_path": "ARID20/floor/top/seq12/rgb/result_....png", "sentence": "...",
               "bbox": "[205, 143, 265, 184]", ...}}

`bbox` is a text with a list in it. That repository's instruction.txt calls it x, y, width, height; vlm-evaluation takes
the published file's for two corners and asserts of each that they are, and so do we: with widths and heights, some box
would have its second corner left of the first. All images have 640 x 480 pixels. Clutter grows with the take: in 0 to 9
objects stand free (minimal), in 10 to 16 they touch (medium), in 17 to 20 they are stacked (maximal), as in OCID.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.indexes.official import json_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row, unit_box

SIZE = (640, 480)
CLUTTER = {"minimal": range(0, 10), "medium": range(10, 17), "maximal": range(17, 21)}


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`expressions` -> one row for each."""
    path = files["expressions"]
    with laid_out(str(path)):
        expressions = json_of(path).items()
    for identity, example in expressions:
        where = f"{path}, expression {identity}"
        with laid_out(where):
            box = example["bbox"]
            yield index_row(
                f"images/{example['scene_path']}",
                example["sentence"],
                [],
                source_id=identity,
                box=unit_box(json.loads(box) if isinstance(box, str) else box, SIZE, where),
                tags={"clutter": clutter(int(example["take_id"]), where)},
            )


def clutter(take: int, where: str) -> str:
    """How crowded the table is at a take. Raises DataError."""
    for name, takes in CLUTTER.items():
        if take in takes:
            return name
    raise DataError(f"{where}: take_id is {take}; OCID's takes are 0 to 20")
