"""The twelve benchmarks of the nano world: which pictures, which questions about them, in which balance."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from prism_sweeps.data.nano_world import expressions, prompts, questions, relations
from prism_sweeps.data.nano_world.annotators import human_answers
from prism_sweeps.data.nano_world.balance import Balance, Question
from prism_sweeps.data.nano_world.diagrams import Diagram, diagram, draw_diagram, order_questions
from prism_sweeps.data.nano_world.dialogues import UNANSWERABLE_SHARE, ocr_tokens
from prism_sweeps.data.nano_world.draw import degrade, draw
from prism_sweeps.data.nano_world.questions import MOST, Family
from prism_sweeps.data.nano_world.scenes import (
    CROWDED,
    ORDINARY,
    PHOTO,
    SIMPLE,
    Scene,
    SceneStyle,
    compose,
    generator,
    pick,
    wishes,
)
from prism_sweeps.data.nano_world.words import (
    BACKGROUNDS,
    COMMON_CATEGORIES,
    GROUP_OF,
    GROUPS,
    PLACES,
    SIGN_WORDS,
    TEXTURES,
    TILES,
)


class Asked(NamedTuple):
    """A question of a benchmark, with what its example says besides."""

    question: Question
    tags: dict[str, str]
    context: str | None = None


@dataclass(frozen=True)
class Sheet:
    """One picture and the questions asked about it."""

    subject: Scene | Diagram
    asked: list[Asked]
    poor: bool = False


class Item(NamedTuple):
    """A line of an index; the image of a sheet comes with its first line only."""

    row: dict[str, Any]
    image: Image.Image | None


Maker = Callable[[np.random.Generator, Balance, str], Sheet]


@dataclass(frozen=True)
class Plan:
    """A family to ask, the range over which its answers are kept level (None: the rarest first), and tags."""

    family: Family
    among: Sequence[str] | None = None
    tags: dict[str, str] = field(default_factory=dict)


_COUNTS = tuple(str(number) for number in range(MOST + 1))
_FOUND = SceneStyle(things=(2, 5), sizes=(1.0, 1.2, 1.2), repeats=0.15, tiles=0.75, signs=0.2)
# RefCOCOg's objects cover 5 % of their image or more (Mao et al. 2016), as medium ones do here and small ones do not.
_ALIKE = SceneStyle(things=(2, 5), sizes=(0.0, 1.0, 1.5), repeats=0.5, tiles=0.7, signs=0.1)
_MANY = SceneStyle(things=(1, 7), sizes=(1.5, 1.0, 0.3), repeats=0.75, theme=0.7, signs=0.1)
_SIGNED = replace(ORDINARY, things=(1, 4), signs=1.0)
_CLUTTER = {
    "minimal": replace(_ALIKE, things=(2, 4), sizes=(1.0, 1.2, 1.5), clutter=(1, 0, 0)),
    "medium": replace(_ALIKE, things=(5, 6), sizes=(2.0, 1.2, 0.6), clutter=(0, 1, 0)),
    "maximal": replace(CROWDED, things=(7, 9), sizes=(3.0, 1.2, 0.4), clutter=(0, 0, 1)),
}

_VQA_OTHER = (
    Plan(questions.background_colour, tuple(BACKGROUNDS)),
    Plan(questions.background_pattern, TEXTURES),
    Plan(questions.on_tile),
    Plan(questions.tile_colour, tuple(TILES)),
    Plan(questions.which_size),
    Plan(questions.where, PLACES),
    Plan(questions.sign_word),
)
_GQA = (
    Plan(relations.beside),
    Plan(relations.beside),
    Plan(relations.tile_beside, tuple(TILES)),
    Plan(relations.tile_of_group, tuple(TILES)),
    Plan(relations.kind_on_tile, tuple(GROUPS)),
    Plan(relations.both_or_either),
    Plan(relations.related),
    Plan(relations.same_tile),
    Plan(relations.larger),
)
_VIZWIZ = (questions.on_tile, questions.tile_colour, questions.where, questions.sign_word, questions.which_size)


def _drawn(rng: np.random.Generator, style: SceneStyle, key: str) -> Scene:
    return compose(rng, style, wishes(rng, style), key)


def _ask(rng: np.random.Generator, balance: Balance, scene: Scene, plans: Sequence[Plan]) -> list[Asked]:
    asked: dict[str, Asked] = {}
    for plan in plans:
        found = [question for question in plan.family(scene) if question.text not in asked]
        question = balance.choose(rng, found, among=plan.among)
        if question is not None:
            asked[question.text] = Asked(question, {"kind": question.kind, **plan.tags})
    return list(asked.values())


def _vqav2(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    scene = _drawn(rng, pick(rng, (SIMPLE, ORDINARY, _FOUND, CROWDED)), key)
    others = [replace(_VQA_OTHER[index], tags={"type": "other"}) for index in rng.permutation(len(_VQA_OTHER))[:2]]
    yes_no = [Plan(questions.exists, tags={"type": "yes/no"})] if rng.random() < 0.8 else []
    number = Plan(questions.count, ("1", "2", "3", "4"), {"type": "number"})
    return Sheet(scene, _ask(rng, balance, scene, [*yes_no, number, *others]))


def _gqa(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    scene = _drawn(rng, _FOUND, key)
    return Sheet(scene, _ask(rng, balance, scene, [_GQA[index] for index in rng.permutation(len(_GQA))[:3]]))


def _vizwiz(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    scene = _drawn(rng, PHOTO, key)
    answerable = rng.random() >= UNANSWERABLE_SHARE
    families = [_VIZWIZ[index] for index in rng.permutation(len(_VIZWIZ))] if answerable else [questions.unanswerable]
    tags = {"answerable": "yes" if answerable else "no"}
    tried = (_ask(rng, balance, scene, [Plan(family, tags=tags)]) for family in families)
    return Sheet(scene, next(filter(None, tried), []), poor=True)


def _textvqa(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    scene = _drawn(rng, _SIGNED, key)
    asked = _ask(rng, balance, scene, [Plan(questions.sign_word, SIGN_WORDS)])
    return Sheet(scene, [one._replace(context=ocr_tokens(one.question.answer, rng)) for one in asked])


def _expressions(family: Family, style: SceneStyle) -> Maker:
    def make(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
        scene = _drawn(rng, style, key)
        asked = _ask(rng, balance, scene, [Plan(family)] * 2)
        # Two expressions for the same thing would count it twice.
        return Sheet(scene, list({one.question.box: one for one in asked}.values()))

    return make


def _ocidref(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    level = pick(rng, tuple(_CLUTTER))
    sheet = _expressions(expressions.among_clutter, _CLUTTER[level])(rng, balance, key)
    return replace(sheet, asked=[one._replace(tags={"clutter": level}) for one in sheet.asked])


def _vsr(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    scene = _drawn(rng, _FOUND, key)
    asked = _ask(rng, balance, scene, [Plan(relations.statements)])
    return Sheet(scene, [one._replace(tags={"relation": one.question.kind.removeprefix("says ")}) for one in asked])


def _pope(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    """Li et al. 2023: the absent objects are any, the commonest ones, or those that go with what is there."""
    scene = _drawn(rng, ORDINARY, key)
    split = pick(rng, ("random", "popular", "adversarial"))
    there = {thing.group for thing in scene.things}

    def family(scene: Scene) -> list[Question]:
        found = questions.exists(scene)
        if split == "popular":
            found = [question for question in found if question.mentions[0] in COMMON_CATEGORIES]
        elif split == "adversarial":
            found = [question for question in found if GROUP_OF[question.mentions[0]] in there]
        return [question._replace(kind=split, topic=f"{split} {question.topic}") for question in found]

    asked = _ask(rng, balance, scene, [Plan(family)] * 2)
    return Sheet(scene, [one._replace(tags={"split": split}) for one in asked])


def _tallyqa(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    scene = _drawn(rng, _MANY, key)
    complex_family = pick(rng, (questions.count_group, questions.count_which))
    plans = [
        Plan(questions.count, _COUNTS, {"kind": "simple"}),
        Plan(complex_family, _COUNTS, {"kind": "complex"}),
    ]
    asked = _ask(rng, balance, scene, plans)
    lettered = [_as_letter(one.question, prompts.TALLY_OPTIONS) for one in asked]
    return Sheet(scene, [one._replace(question=question) for one, question in zip(asked, lettered, strict=True)])


def _ai2d(rng: np.random.Generator, balance: Balance, key: str) -> Sheet:
    subject = diagram(rng, key)
    found = order_questions(subject)
    asked = []
    while len(asked) < 2:
        question = balance.choose(rng, found)
        if question is not None:
            found.remove(question)
            asked.append(Asked(question, {"split": "test" if rng.random() < 0.2 else "val", "kind": question.kind}))
    return Sheet(subject, asked)


def _as_letter(question: Question, options: tuple[str, ...]) -> Question:
    return question._replace(answer=prompts.LETTERS[options.index(question.answer)], options=options)


BENCHMARKS: dict[str, Maker] = {
    "nano-vqav2": _vqav2,
    "nano-gqa": _gqa,
    "nano-vizwiz": _vizwiz,
    "nano-textvqa": _textvqa,
    "nano-refcoco": _expressions(expressions.with_places, _ALIKE),
    "nano-refcoco+": _expressions(expressions.by_attributes, _ALIKE),
    "nano-refcocog": _expressions(expressions.in_sentences, _ALIKE),
    "nano-ocidref": _ocidref,
    "nano-vsr": _vsr,
    "nano-pope": _pope,
    "nano-tallyqa": _tallyqa,
    "nano-ai2d": _ai2d,
}
_HUMAN = ("nano-vqav2", "nano-vizwiz", "nano-textvqa")  # ten answers by people who now and then disagree
_LOWER = (*_HUMAN, "nano-gqa")  # scorers that compare lower-case text
PER_CHUNK = 100  # examples; the unit of work and of balance
_PICTURES_PER_CHUNK = 10_000


def items(name: str, chunk: int) -> Iterator[Item]:
    """The PER_CHUNK examples of a benchmark's chunk, always the same ones, in the same order."""
    balance, made = Balance(), 0
    for number in range(chunk * _PICTURES_PER_CHUNK, (chunk + 1) * _PICTURES_PER_CHUNK):
        key = f"evaluate-{name}/{number}"
        rng = generator(f"evaluate-{name}", number)
        sheet = BENCHMARKS[name](rng, balance, key)
        path = f"images/{number:06d}.png"
        for position, asked in enumerate(sheet.asked):
            yield Item(_row(name, path, sheet.subject, asked, rng), _render(sheet, rng) if position == 0 else None)
            made += 1
            if made == PER_CHUNK:
                return


def _render(sheet: Sheet, rng: np.random.Generator) -> Image.Image:
    if isinstance(sheet.subject, Diagram):
        return draw_diagram(sheet.subject)
    image = draw(sheet.subject)
    return degrade(image, rng) if sheet.poor else image


def _row(name: str, path: str, subject: Scene | Diagram, asked: Asked, rng: np.random.Generator) -> dict[str, Any]:
    question = asked.question
    gold = question.answer.lower() if name in _LOWER else question.answer
    content = json.dumps([name, repr(subject), question.text, question.answer])
    return {
        "id": hashlib.sha256(content.encode()).hexdigest()[:16],
        "image": path,
        "question": question.text,
        "answers": human_answers(gold, rng) if name in _HUMAN else [gold],
        "options": list(question.options) or None,
        "box": None if question.box is None else list(question.box),
        "context": asked.context,
        "tags": asked.tags,
    }
