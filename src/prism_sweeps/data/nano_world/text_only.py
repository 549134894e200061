"""Dialogues without an image: scenes told in words, arithmetic, plurals, kinds of things (ShareGPT's part)."""

import numpy as np

from prism_sweeps.data.nano_world import questions
from prism_sweeps.data.nano_world.balance import Balance
from prism_sweeps.data.nano_world.captions import caption
from prism_sweeps.data.nano_world.dialogues import Turn, short
from prism_sweeps.data.nano_world.scenes import pick, scene
from prism_sweeps.data.nano_world.words import CATEGORIES, GROUP_OF, GROUPS, article, plural

# What a caption always tells.
_IN_CAPTIONS = (
    questions.exists,
    questions.count,
    questions.count_group,
    questions.on_tile,
    questions.tile_colour,
    questions.background_colour,
)


def text_only(rng: np.random.Generator, number: int, balance: Balance) -> list[Turn]:
    """Five turns without an image: questions about a scene told in words, then small talk."""
    turns = []
    if rng.random() < 0.7:
        told = scene("train in words", number)
        for family in (_IN_CAPTIONS[index] for index in rng.permutation(len(_IN_CAPTIONS))[:3]):
            question = balance.choose(rng, family(told))
            if question is not None:
                turns.append(short(question, rng))
        if turns:
            turns[0] = (f"Here is a picture in words: {caption(told, rng)}.\n{turns[0][0]}", turns[0][1])
    while len(turns) < 5:
        turns.append(_small_talk(rng))
    return turns


def _small_talk(rng: np.random.Generator) -> Turn:
    """Arithmetic, number order, plurals and group membership."""
    a, b = int(rng.random() * 10), int(rng.random() * 10)
    name, group = pick(rng, CATEGORIES), pick(rng, tuple(GROUPS))
    wrong = pick(rng, [other for other in CATEGORIES if GROUP_OF[other] != GROUP_OF[name]])
    first, second = (name, wrong) if rng.random() < 0.5 else (wrong, name)
    asked = group if rng.random() < 0.5 else GROUP_OF[name]
    member = questions.yes_no(GROUP_OF[name] == asked)
    return pick(
        rng,
        (
            (f"what is {a} plus {b}?", str(a + b)),
            (f"what is {max(a, b)} minus {min(a, b)}?", str(max(a, b) - min(a, b))),
            (f"count from {min(a, b)} to {max(a, b)}.", ", ".join(map(str, range(min(a, b), max(a, b) + 1)))),
            (f"what is the plural of {name}?", plural(name)),
            (f"is {article(name)} {article(asked)}?", member),
            (f"which one is {article(GROUP_OF[name])}, the {first} or the {second}?", f"the {name}"),
            (f"what kind of thing is {article(name)}?", article(GROUP_OF[name])),
        ),
    )
