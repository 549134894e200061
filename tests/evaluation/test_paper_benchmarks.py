"""The paper's benchmarks as declared, against vlm-evaluation (7292fd67): models/prismatic.py and the harnesses."""

from pathlib import Path

import pytest

from prism_sweeps.config.compose import compose_cell, design_space
from prism_sweeps.evaluation.asked import request_of
from prism_sweeps.evaluation.benchmarks import Example

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
BOX = 'Please provide the bounding box coordinate of the region this sentence describes: "A? {b}"'
COUNTS = "A. 0\nB. 1\nC. 2\nD. 3\nE. 4\nF. 5\nG. 6\nH. 7\nI. 8\nJ. 9\nK. 10\nL. 11\nM. 12\nN. 13\nO. 14\nP. 15"
ASKED = {
    "vqav2": f"A? {{b}}\n{SHORT}",
    "gqa": f"A? {{b}}\n{SHORT}",
    "vizwiz": f"A? {{b}}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}",
    "textvqa": f"A? {{b}}\n{SHORT}",
    "textvqa-ocr": f"A? {{b}}\nReference OCR token: S, T\n{SHORT}",
    "refcoco": BOX,
    "refcoco+": BOX,
    "refcocog": BOX,
    "ocidref": BOX,
    "vsr": 'Based on the image, is this statement "True" or "False"? A? {b}\nRespond with "True" or "False" directly.',
    "pope": f"A? {{b}}\n{SHORT}",
    "tallyqa": f"A? {{b}}\n{COUNTS}\n{LETTER}",
    "ai2d": f"A? {{b}}\nA. w\nB. x\nC. y\nD. z\n{LETTER}",
}
OPTIONS = {
    "vsr": ("True", "False"),
    "pope": ("Yes", "No"),
    "tallyqa": tuple("ABCDEFGHIJKLMNOP"),
    "ai2d": tuple("ABCD"),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_question_is_asked_as_the_paper_did(name: str) -> None:
    offered = tuple(map(str, range(16))) if name == "tallyqa" else ("w", "x", "y", "z")
    example = Example("1", Path("i.jpg"), "i.jpg", "A? {b}", ("a",), options=offered, context="S, T")
    benchmark = design_space().benchmark(name)
    request = request_of(example, {"i.jpg": ("i.jpg", Path("i.jpg"))}, benchmark)
    assert request.text == ASKED[name]
    assert request.options == OPTIONS.get(name, ())
    assert request.likelihood == ("first-token" if name in OPTIONS else "full-string")
    assert benchmark.iou_threshold == (0.25 if name == "ocidref" else 0.5)


def test_the_suites_ask_as_many_questions_as_readme_says() -> None:
    """The counts of vlm-evaluation's conf/datasets.py and harnesses, TextVQA twice."""
    whole, slim = (compose_cell([f"suite={name}"])[0].suite.benchmarks for name in ("paper", "paper-slim"))
    assert sorted(whole) == sorted(slim) == sorted(ASKED)
    assert sum(each.origin.counts["all"] for each in whole.values()) == 350_303
    parts = {"ocidref": 3, "pope": 3, "tallyqa": 2, "ai2d": 2}
    asked = {name: parts.get(name, 1) * (each.examples or each.origin.counts["all"]) for name, each in slim.items()}
    assert asked["vsr"] == 1_222
    assert sum(asked.values()) == 19_654
    for name, count in parts.items():
        assert sum(f"{slim[name].each}=" in key for key in slim[name].origin.counts) == count
