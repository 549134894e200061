"""TallyQA (Acharya et al. 2019), test: test.json of https://github.com/manoja328/TallyQA_dataset.

    [{"question_id": 30095774, "image": "VG_100K_2/2410408.jpg", "image_id": 92410408, "question": "...", "answer": 4,
      "issimple": false, "data_source": "imported_genome"}]

Answers are 0 to 15, offered as the options A to P. Only the questions of test.json have `issimple`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.indexes.official import json_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row

OPTIONS = tuple(str(count) for count in range(16))
LETTERS = "ABCDEFGHIJKLMNOP"


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`questions` -> one row for each."""
    path = files["questions"]
    for number, example in enumerate(json_of(path)):
        where = f"{path}, question {number}"
        with laid_out(where):
            count = int(example["answer"])
            if not 0 <= count < len(OPTIONS):
                raise DataError(f"{where}: its answer is {count}; TallyQA counts from 0 to {len(OPTIONS) - 1}")
            yield index_row(
                example["image"],
                example["question"],
                [LETTERS[count]],
                source_id=example["question_id"],
                options=OPTIONS,
                tags={"kind": "simple" if example["issimple"] else "complex"},
            )
