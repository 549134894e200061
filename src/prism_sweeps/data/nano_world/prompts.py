"""The prompts of the twelve benchmarks, word for word as LLaVA-1.5 trains on them and the evaluation suite asks."""

from collections.abc import Sequence

SHORT = "{question}\nAnswer the question using a single word or phrase."
VIZWIZ = (
    "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)
OCR = "{question}\nReference OCR token: {context}\nAnswer the question using a single word or phrase."
BOX = 'Please provide the bounding box coordinate of the region this sentence describes: "{question}"'
TRUTH = 'Based on the image, is this statement "True" or "False"? {question}\nRespond with "True" or "False" directly.'
LETTER = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."

LETTERS = "ABCDEFGHIJKLMNOP"
TALLY_OPTIONS = tuple(str(number) for number in range(16))


def option_lines(options: Sequence[str]) -> str:
    """The options one a line: "A. dog", "B. cat"."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
