"""Question-and-answer dialogues about one picture, in the prompts of the benchmarks (as in LLaVA's mixture)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from prism_sweeps.data.nano_world import expressions, prompts, questions, relations
from prism_sweeps.data.nano_world.balance import Balance, Question
from prism_sweeps.data.nano_world.diagrams import Diagram, order_questions
from prism_sweeps.data.nano_world.questions import Family
from prism_sweeps.data.nano_world.scenes import Scene, pick
from prism_sweeps.data.nano_world.words import CATEGORIES, SIGN_WORDS

Turn = tuple[str, str]  # what the human says, what the model answers
Form = Callable[[Question, np.random.Generator], Turn]


def short(question: Question, rng: np.random.Generator) -> Turn:
    """The short-answer prompt."""
    return prompts.SHORT.format(question=question.text), question.answer


def vizwiz(question: Question, rng: np.random.Generator) -> Turn:
    """The short-answer prompt that allows "Unanswerable"."""
    return prompts.VIZWIZ.format(question=question.text), question.answer


def with_ocr(question: Question, rng: np.random.Generator) -> Turn:
    """The short-answer prompt with OCR tokens."""
    return prompts.OCR.format(question=question.text, context=ocr_tokens(question.answer, rng)), question.answer


def box(question: Question, rng: np.random.Generator) -> Turn:
    """The prompt for a bounding box."""
    return prompts.BOX.format(question=question.text), question.answer


def truth(question: Question, rng: np.random.Generator) -> Turn:
    """The true-or-false prompt."""
    return prompts.TRUTH.format(question=question.text), question.answer


def tally(question: Question, rng: np.random.Generator) -> Turn:
    """A number as one of sixteen letters."""
    options = prompts.option_lines(prompts.TALLY_OPTIONS)
    return prompts.LETTER.format(question=question.text, options=options), prompts.LETTERS[int(question.answer)]


def choice(question: Question, rng: np.random.Generator) -> Turn:
    """Four options, by letter; drawn among the categories if the question brings none."""
    options, letter = question.options, question.answer
    if not options:
        wrong = [name for name in CATEGORIES if name != question.answer]
        drawn = [question.answer, *(wrong[index] for index in rng.permutation(len(wrong))[:3])]
        options = [drawn[index] for index in rng.permutation(4)]
        letter = prompts.LETTERS[options.index(question.answer)]
    return prompts.LETTER.format(question=question.text, options=prompts.option_lines(options)), letter


def ocr_tokens(word: str, rng: np.random.Generator) -> str:
    """What a text reader might have found: the word among up to two others, in any order."""
    others = [pick(rng, SIGN_WORDS) for _ in range(int(rng.random() * 3))]
    tokens = list(dict.fromkeys((word, *others)))
    return ", ".join(tokens[index] for index in rng.permutation(len(tokens)))


class Part(NamedTuple):
    """A family of questions, the prompt it is put in, and how often it comes up."""

    family: Family
    form: Form
    weight: float


# Families about absent things come first in a dialogue, before other turns give away what is there.
_FIRST = (questions.exists, relations.both_or_either, questions.count, questions.count_group, questions.count_which)
PARTS = (
    Part(questions.exists, short, 1.2),
    Part(relations.both_or_either, short, 0.5),
    Part(questions.count, short, 0.8),
    Part(questions.count, tally, 0.25),
    Part(questions.count_group, short, 0.3),
    Part(questions.count_which, tally, 0.25),
    Part(questions.background_colour, short, 0.4),
    Part(questions.background_pattern, short, 0.2),
    Part(questions.on_tile, short, 0.6),
    Part(questions.on_tile, choice, 0.25),
    Part(questions.tile_colour, short, 0.6),
    Part(questions.which_size, short, 0.5),
    Part(questions.where, short, 0.5),
    Part(questions.what_at, short, 0.5),
    Part(questions.sign_word, short, 2.0),
    Part(questions.sign_word, with_ocr, 1.2),
    Part(questions.sign_exists, short, 0.1),
    Part(relations.beside, short, 0.8),
    Part(relations.tile_beside, short, 0.3),
    Part(relations.tile_of_group, short, 0.3),
    Part(relations.kind_on_tile, short, 0.3),
    Part(relations.related, short, 0.5),
    Part(relations.same_tile, short, 0.25),
    Part(relations.larger, short, 0.25),
    Part(relations.statements, truth, 1.3),
    Part(expressions.with_places, box, 0.7),
    Part(expressions.by_attributes, box, 0.5),
    Part(expressions.in_sentences, box, 0.5),
    Part(expressions.among_clutter, box, 0.4),
)
_EXPONENTS = 1 / np.array([part.weight for part in PARTS])
_ANSWERABLE = (
    questions.on_tile,
    questions.tile_colour,
    questions.where,
    questions.sign_word,
    questions.which_size,
    questions.background_colour,
)
UNANSWERABLE_SHARE = 0.3


def dialogue(scene: Scene, rng: np.random.Generator, balance: Balance) -> list[Turn]:
    """Five to seven turns over one scene, now and then one of them in VizWiz's form."""
    wanted = 5 + int(rng.random() * 3)
    # A weighted shuffle (Efraimidis and Spirakis 2006): the larger the weight, the earlier in the order.
    order = np.argsort(-(rng.random(len(PARTS)) ** _EXPONENTS))
    parts: list[tuple[Part, list[Question]]] = []
    for index in order:
        part = PARTS[index]
        if found := part.family(scene):
            parts.append((part, found))
        if len(parts) == wanted:
            break
    parts.sort(key=lambda item: _FIRST.index(item[0].family) if item[0].family in _FIRST else len(_FIRST))
    turns, heard, texts = list[Turn](), set[str](), set[str]()
    for part, found in parts:
        question = balance.choose(rng, [question for question in found if question.text not in texts], heard)
        if question is not None:
            turns.append(part.form(question, rng))
            heard.update(question.mentions)
            texts.add(question.text)
    return turns + (photo_dialogue(scene, rng, balance)[:1] if rng.random() < 0.3 else [])


def photo_dialogue(scene: Scene, rng: np.random.Generator, balance: Balance) -> list[Turn]:
    """Up to four turns in VizWiz's form, three in ten of them without an answer."""
    chosen, heard = [], set[str]()
    for family in (_ANSWERABLE[index] for index in rng.permutation(len(_ANSWERABLE))[:4]):
        found = questions.unanswerable(scene) if rng.random() < UNANSWERABLE_SHARE else family(scene)
        question = balance.choose(rng, found, heard)
        if question is not None:
            chosen.append(question)
            heard.update(question.mentions)
    return [vizwiz(question, rng) for question in dict.fromkeys(chosen)]


def diagram_dialogue(diagram: Diagram, rng: np.random.Generator, balance: Balance) -> list[Turn]:
    """Three questions about the order of a diagram's steps, answered by letter."""
    found, chosen = order_questions(diagram), list[Question]()
    while len(chosen) < 3:
        question = balance.choose(rng, [question for question in found if question not in chosen])
        assert question is not None  # a diagram has at least six questions, and letters have no twin rule
        chosen.append(question)
    return [choice(question, rng) for question in chosen]


def conversation(turns: Sequence[Turn], with_image: bool) -> list[dict[str, str]]:
    """The turns in LLaVA's record format; a picture stands at the start of the first turn."""
    said = []
    for number, (human, model) in enumerate(turns):
        token = "<image>\n" if with_image and number == 0 else ""
        said += [{"from": "human", "value": token + human}, {"from": "gpt", "value": model}]
    return said
