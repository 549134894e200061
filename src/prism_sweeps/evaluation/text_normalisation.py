"""How free-text answers are made comparable, exactly as the official scorers do it, oddities included."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from types import MappingProxyType

from prism_sweeps.evaluation.contractions import CONTRACTIONS

NUMBER_WORDS: MappingProxyType[str, str] = MappingProxyType(
    {
        "none": "0",
        "zero": "0",
        "one": "1",
        "two": "2",
        "three": "3",
        "four": "4",
        "five": "5",
        "six": "6",
        "seven": "7",
        "eight": "8",
        "nine": "9",
        "ten": "10",
    }
)
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
PERIOD_NOT_BEFORE_DIGIT = re.compile(r"\.(?!\d)")
# The official scorer passes re.UNICODE where `count` belongs, and so removes at most 32 periods.
MOST_PERIODS = 32


def vqa_punctuation(text: str) -> str:
    """`text` under the punctuation rules of the VQA metric.

    A mark becomes nothing when it stands beside a space somewhere in the text, or when the text has a comma between
    digits; otherwise a space. Source: `processPunctuation`, GT-Vision-Lab/VQA, vqaEval.py.
    """
    joins = COMMA_BETWEEN_DIGITS.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if joins or beside_space else " ")
    return PERIOD_NOT_BEFORE_DIGIT.sub("", cleaned, count=MOST_PERIODS)


def vqa_words(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """`text` lower-cased, number words as digits, without articles, contractions as the table has them.

    Source: `processDigitArticle`, GT-Vision-Lab/VQA, vqaEval.py.
    """
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(contractions.get(word, word) for word in words if word not in ARTICLES)


def vqa_answer(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """A predicted answer as VQAv2 and VizWiz compare it. Source: `evaluate`, GT-Vision-Lab/VQA, vqaEval.py."""
    return vqa_words(vqa_punctuation(text.replace("\n", " ").replace("\t", " ").strip()), contractions)


def textvqa_answer(text: str) -> str:
    """A predicted or human answer as TextVQA compares it.

    Source: `EvalAIAnswerProcessor`, facebookresearch/mmf, which drops commas and question marks and splits off a
    possessive 's before the VQA rules.
    """
    return vqa_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def gqa_answer(text: str) -> str:
    """A predicted answer as GQA compares it: without ASCII punctuation and lower-cased, spaces inside left alone.

    Source: `GQAScorer.convert_results`, TRI-ML/vlm-evaluation; its models strip what they have generated.
    """
    return text.strip().translate(_NO_PUNCTUATION).lower()


def without_punctuation(text: str) -> str:
    """`text` lower-cased without ASCII punctuation, spaces collapsed; what is nothing but punctuation keeps it."""
    plain = " ".join(text.translate(_NO_PUNCTUATION).lower().split())
    return plain or " ".join(text.split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
