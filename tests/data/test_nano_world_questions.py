"""Questions against what an independent reading of the scene says."""

import re
from collections import Counter

import pytest

from prism_sweeps.data.nano_world import expressions, questions, relations
from prism_sweeps.data.nano_world.balance import Balance, Question
from prism_sweeps.data.nano_world.captions import place
from prism_sweeps.data.nano_world.facts import some_absent
from prism_sweeps.data.nano_world.scenes import CROWDED, ORDINARY, SIMPLE, Scene, Thing, generator, scene
from prism_sweeps.data.nano_world.words import CATEGORIES, GROUPS, SIZES, TILES, plural
from prism_sweeps.evaluation.boxes import parse_box

SCENES = [scene("questions", number, (SIMPLE, ORDINARY, ORDINARY, CROWDED)[number % 4]) for number in range(120)]
SINGULAR = {plural(name): name for name in CATEGORIES} | {plural(group): group for group in GROUPS}


def things(shown: Scene, description: str) -> list[Thing]:
    """The things a noun phrase is true of, read word by word: "large animals on a tile", "the dog on the red tile"."""
    found = list(shown.things)
    phrase, _, tile = description.removeprefix("the ").partition(" on ")
    if tile:
        colour = next((name for name in TILES if name in tile), None)
        if "no tile" in tile:
            found = [thing for thing in found if thing.tile is None]
        else:
            found = [thing for thing in found if thing.tile is not None and colour in (None, thing.tile)]
    for word in phrase.split():
        name = SINGULAR.get(word, word)
        if word in SIZES:
            found = [thing for thing in found if thing.size == word]
        elif name not in ("thing", "things"):
            assert name in CATEGORIES or name in GROUPS, description
            found = [thing for thing in found if name in (thing.category, thing.group)]
    return found


def all_of(family: questions.Family) -> list[tuple[Scene, Question]]:
    found = [(shown, question) for shown in SCENES for question in family(shown)]
    assert len(found) > 20
    return found


@pytest.mark.parametrize("family", [questions.count, questions.count_group, questions.count_which])
def test_counts(family: questions.Family):
    for shown, question in all_of(family):
        what = re.fullmatch(r"how many (.+?) (?:are there|are (on .+))\?", question.text)
        assert what, question.text
        description = what[1] if what[2] is None else f"{what[1]} {what[2]}"
        assert int(question.answer) == len(things(shown, description)), question.text


def test_existence():
    for shown, question in all_of(questions.exists):
        name = re.fullmatch(r"is there an? (\w+) in the image\?", question.text)
        assert name
        assert question.answer == ("Yes" if things(shown, name[1]) else "No")


def test_logic():
    for shown, question in all_of(relations.both_or_either):
        a, word, b = re.fullmatch(r"is there an? (\w+) (and|or) an? (\w+) in the image\?", question.text).groups()
        parts = [bool(things(shown, name)) for name in (a, b)]
        assert question.answer == ("Yes" if (all(parts) if word == "and" else any(parts)) else "No")


def test_tiles():
    for shown, question in all_of(questions.on_tile):
        (thing,) = things(shown, question.text.removeprefix("what is ").rstrip("?").replace("on", "thing on", 1))
        assert thing.category == question.answer
    for family in (questions.tile_colour, relations.tile_of_group):
        for shown, question in all_of(family):
            (thing,) = things(shown, question.text.split(" under the ")[1].rstrip("?"))
            assert thing.tile == question.answer


def test_kinds_on_tiles():
    for shown, question in all_of(relations.kind_on_tile):
        on, *kinds = re.fullmatch(r"is the thing (on the \w+ tile) an? (\w+) or an? (\w+)\?", question.text).groups()
        (thing,) = things(shown, f"thing {on}")
        assert thing.group == question.answer
        assert question.answer in kinds


def test_sizes_and_places():
    for shown, question in all_of(questions.which_size):
        (thing,) = things(shown, question.text.removeprefix("what is ").rstrip("?"))
        assert thing.category == question.answer
    for shown, question in all_of(questions.where):
        (thing,) = things(shown, question.text.removeprefix("where is ").rstrip("?"))
        assert place(shown, thing) == question.answer
    for shown, question in all_of(questions.what_at):
        where = question.text.split(" the ")[1].rstrip("?")
        (thing,) = [thing for thing in shown.things if place(shown, thing) == where]
        assert thing.category == question.answer


def truly(relation: str, a: Thing, b: Thing) -> bool:
    (ax, ay), (bx, by) = a.centre, b.centre
    return {"to the left of": ax < bx, "to the right of": ax > bx, "above": ay < by, "below": ay > by}[relation]


def test_relations():
    pattern = r"is the (\w+) (to the left of|to the right of|above|below) the (\w+)\?"
    for shown, question in all_of(relations.related):
        a, relation, b = re.fullmatch(pattern, question.text).groups()
        truth = truly(relation, *things(shown, a), *things(shown, b))
        assert question.answer == ("Yes" if truth else "No")
    for shown, question in all_of(relations.beside):
        relation, b = re.fullmatch(
            r"what is (to the left of|to the right of|above|below) the (\w+)\?", question.text
        ).groups()
        (anchor,) = things(shown, b)
        (found,) = [thing for thing in shown.things if thing is not anchor and truly(relation, thing, anchor)]
        assert found.category == question.answer


def test_statements():
    checked: Counter[str] = Counter()
    for shown, question in all_of(relations.statements):
        a, rest = re.fullmatch(r"the (\w+) is (.+)\.", question.text).groups()
        (thing,) = things(shown, a)
        if match := re.fullmatch(r"(larger|smaller) than the (\w+)", rest):
            (other,) = things(shown, match[2])
            by = SIZES.index(thing.size) - SIZES.index(other.size)
            truth = by > 0 if match[1] == "larger" else by < 0
        elif match := re.fullmatch(r"on an? (\w+) tile", rest):
            truth = thing.tile == match[1]
        elif match := re.fullmatch(r"(to the left of|to the right of|above|below) the (\w+)", rest):
            truth = truly(match[1], thing, *things(shown, match[2]))
        else:
            truth = place(shown, thing) == re.fullmatch(r"(?:at|in|on) the (.+)", rest)[1]
        assert question.answer == str(truth), question.text
        checked[question.kind] += 1
    assert len(checked) == 8


def test_unanswerable_questions_have_no_subject():
    for shown, question in all_of(questions.unanswerable):
        if "sign" in question.text:
            assert shown.sign is None
        elif match := re.search(r"on the (\w+) tile", question.text):
            assert not any(thing.tile == match[1] for thing in shown.things)
        else:
            assert not things(shown, question.text.rstrip("?").split()[-1])


@pytest.mark.parametrize("family", [expressions.by_attributes, expressions.in_sentences, expressions.among_clutter])
def test_expressions_without_places_are_true_of_one_thing(family: questions.Family):
    checked = 0
    for shown, question in all_of(family):
        assert parse_box(question.answer) == question.box
        text = re.sub(r" on (\w+)$", r" on the \1 tile", question.text)
        if re.search(r" that is | of the image", text):
            continue
        (thing,) = things(shown, text)
        x1, y1, x2, y2 = thing.box
        exact = (x1 / shown.width, y1 / shown.height, x2 / shown.width, y2 / shown.height)
        assert question.box == pytest.approx(exact, abs=0.0051)
        checked += 1
    assert checked > 50


def test_expressions_with_places_are_true_of_one_thing():
    words = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
    checked = 0
    for shown, question in all_of(expressions.with_places):
        match = re.fullmatch(r"(left|right|top|bottom) (\w+)", question.text)
        alike = things(shown, match[2]) if match else []
        if len(alike) > 1 and question.kind == "refcoco":
            axis, sign = words[match[1]]
            extreme = min(alike, key=lambda thing: sign * thing.centre[axis])
            exact = [v / s for v, s in zip(extreme.box, (shown.width, shown.height) * 2, strict=True)]
            assert question.box == pytest.approx(exact, abs=0.0051), question.text
            checked += 1
    assert checked > 20


def test_some_absent_are_absent_and_vary():
    seen = Counter(name for shown in SCENES for name in some_absent(shown, 10))
    assert len(seen) == len(CATEGORIES)
    assert max(seen.values()) < 4 * len(SCENES) * 10 / len(CATEGORIES)
    for shown in SCENES:
        absent = some_absent(shown, 10)
        assert len(set(absent)) == 10
        assert not {thing.category for thing in shown.things} & set(absent)


def test_balance_evens_out_what_scenes_favour():
    """Nine in ten scenes offer only "Yes"; the answers come out even all the same."""
    balance, rng, answers = Balance(), generator("balance", 0), Counter()
    for number in range(200):
        offered = [Question("k", "t", "?", "Yes")] + ([Question("k", "t", "?", "No")] if number % 10 == 0 else [])
        chosen = balance.choose(rng, offered)
        answers[chosen.answer if chosen else None] += 1
    assert abs(answers["Yes"] - answers["No"]) <= 1
    assert 19 <= answers["No"] <= 20


def test_balance_keeps_a_range_level_and_prefers_what_was_not_heard():
    balance, rng = Balance(), generator("balance", 1)
    offered = [Question("n", "t", "?", str(number), (str(number),)) for number in range(4)]
    answers = Counter(balance.choose(rng, offered, among=("0", "1", "2")).answer for _ in range(30))
    assert answers == {"0": 10, "1": 10, "2": 10}
    assert balance.choose(rng, offered, heard={"0", "1", "2"}).answer == "3"
    assert balance.choose(rng, [], heard=set()) is None
