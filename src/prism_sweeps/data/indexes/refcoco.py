"""RefCOCO and RefCOCO+ (split unc), RefCOCOg (split umd): expressions as https://github.com/lichengunc/refer has them.

    instances.json  {"images": [{"id": 581857, "width": 640, "height": 427, "file_name": "COCO_train2014_....jpg"}],
                     "annotations": [{"id": 1719310, "image_id": 581857, "bbox": [103.93, 299.99, 134.22, 177.42]}]}
    refs(unc).p     a pickle: [{"ref_id": 0, "ann_id": 1719310, "image_id": 581857, "split": "val",
                     "sentences": [{"sent_id": 0, "sent": "the lady with the blue shirt", ...}], ...}]

Boxes are x, y, width, height in pixels. One row for each sentence, with the image's size as instances.json has it. The
file names of `refs` end in the annotation's number; the images' own are COCO's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prism_sweeps.data.indexes.official import json_of, laid_out
from prism_sweeps.data.indexes.pickles import plain_pickle_of
from prism_sweeps.data.indexes.rows import Row, index_row, unit_box

SPLIT = "val"


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`refs` and `instances` -> one row for each sentence of the validation split."""
    path = files["instances"]
    with laid_out(str(path)):
        instances = json_of(path)
        images = {each["id"]: each for each in instances["images"]}
        boxes = {each["id"]: each["bbox"] for each in instances["annotations"]}
    with laid_out(str(files["refs"])):
        wanted = [ref for ref in plain_pickle_of(files["refs"]) if ref["split"] == SPLIT]
    for ref in wanted:
        with laid_out(f"{files['refs']}, ref {ref.get('ref_id')}"):
            yield from rows_of(ref, images[ref["image_id"]], boxes[ref["ann_id"]], f"{path}, box {ref['ann_id']}")


def rows_of(ref: Mapping[str, Any], image: Mapping[str, Any], box: list[float], where: str) -> Iterator[Row]:
    """One for each sentence about one object."""
    x, y, width, height = box
    corners = unit_box((x, y, x + width, y + height), (image["width"], image["height"]), where)
    for sentence in ref["sentences"]:
        yield index_row(
            f"train2014/COCO_train2014_{ref['image_id']:012d}.jpg",
            sentence["sent"],
            [],
            source_id=f"{ref['ref_id']}-{sentence['sent_id']}",
            box=corners,
        )
