"""TextVQA 0.5.1 (Singh et al. 2019), and the OCR tokens that LLaVA gives with its questions.

Questions, from https://textvqa.org/dataset/:

    {"data": [{"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "...", "answers": ["dakota", ...]}]}

OCR tokens, llava_textvqa_val_v051_ocr.jsonl of LLaVA's docs/Evaluation.md, whose `question_id` is the id of the image:

    {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "category": "default",
     "text": "What is the brand?\nReference OCR token: DAKOTA, DIGITAL\nAnswer the question using a single word or phrase."}

They belong together by image and question, in lower case, as in LLaVA's eval_textvqa.py: the two files write questions
differently, and the one asked, with tokens or without, is that of the OCR file, as by LLaVA and vlm-evaluation. The
latter's copy of it ends each text after the tokens; it goes by the order of both files, which says the same.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.indexes.official import json_lines_of, json_of, laid_out
from prism_sweeps.data.indexes.rows import Row, index_row

TOKENS = "Reference OCR token:"

Asked = tuple[str, str]
"""Image and question in lower case."""
Shown = tuple[str, str]
"""Question as it is written in the OCR file, and the OCR tokens as one text, empty where none were found."""


def rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """`questions` and `ocr` -> one row for each question, with its OCR tokens as context."""
    path = files["questions"]
    shown = shown_of(json_lines_of(files["ocr"]), files["ocr"])
    with laid_out(str(path)):
        questions = json_of(path)["data"]
    for number, example in enumerate(questions):
        with laid_out(f"{path}, question {number}"):
            asked = (str(example["image_id"]), example["question"].strip().lower())
            if asked not in shown:
                raise DataError(f"{files['ocr']}: nothing about image {asked[0]} with the question '{asked[1]}'")
            question, tokens = shown[asked]
            yield index_row(
                f"train_images/{example['image_id']}.jpg",
                question,
                example["answers"],
                source_id=example["question_id"],
                context=tokens,
            )


def shown_of(lines: list[Any], path: Path) -> dict[Asked, Shown]:
    """What the OCR file shows with each question."""
    found = {}
    for number, line in enumerate(lines):
        with laid_out(f"{path}, row {number}"):
            image = Path(line["image"]).stem if "image" in line else str(line["question_id"])
            parts = line["text"].split("\n")
            told = [part.removeprefix(TOKENS).strip() for part in parts if part.startswith(TOKENS)]
            question = next(part for part in parts if not part.startswith(TOKENS)).strip()
            found[image, question.lower()] = (question, told[0] if told else "")
    return found
