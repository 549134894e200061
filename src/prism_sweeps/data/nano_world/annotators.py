"""Ten people's answers to one question, as VQAv2, VizWiz and TextVQA collect them: most agree, a few do not."""

import numpy as np

from prism_sweeps.data.nano_world.scenes import pick
from prism_sweeps.data.nano_world.words import BACKGROUNDS, CATEGORIES, PLACES, SIGN_WORDS, TEXTURES, TILES

PEOPLE = 10
_RANGES = (tuple(BACKGROUNDS), tuple(TILES), TEXTURES, PLACES, CATEGORIES, SIGN_WORDS)
_DISSENTERS = (0, 0, 0, 1, 1, 2, 3)


def human_answers(right: str, rng: np.random.Generator) -> list[str]:
    """PEOPLE answers, at least seven of them right, in random order."""
    dissenters = pick(rng, _DISSENTERS)
    answers = [right] * (PEOPLE - dissenters) + [_wrong(right, rng) for _ in range(dissenters)]
    return [answers[index] for index in rng.permutation(PEOPLE)]


def _wrong(right: str, rng: np.random.Generator) -> str:
    if right in ("yes", "no"):
        return "no" if right == "yes" else "yes"
    if right.isdigit():
        return str(max(0, int(right) + pick(rng, (-1, 1))))
    found = next((answers for answers in _RANGES if right in answers), ("unanswerable",))
    return pick(rng, [*(answer for answer in found if answer != right), "unsuitable"])
