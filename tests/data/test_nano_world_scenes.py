"""Scenes, their pixels and their captions."""

import hashlib

import numpy as np
import pytest

from prism_sweeps.data.nano_world.captions import caption, coordinates, describe, place
from prism_sweeps.data.nano_world.diagrams import diagram, draw_diagram, order_questions
from prism_sweeps.data.nano_world.draw import degrade, draw
from prism_sweeps.data.nano_world.font import bitmap
from prism_sweeps.data.nano_world.scenes import (
    CROWDED,
    LONG_SIDES,
    ORDINARY,
    SIMPLE,
    Scene,
    Sign,
    Thing,
    footprint,
    generator,
    scene,
    sign_size,
)
from prism_sweeps.data.nano_world.sprites import sprite
from prism_sweeps.data.nano_world.training_sets import picture
from prism_sweeps.data.nano_world.words import CATEGORIES, GROUP_OF, GROUPS, NUMBERS, SIGN_WORDS, plural

SCENES = [scene("test", number, (SIMPLE, ORDINARY, CROWDED)[number % 3]) for number in range(90)]


def empty(**changes: object) -> Scene:
    fields = {
        "key": "k",
        "seed": 3,
        "width": 120,
        "height": 90,
        "background": "white",
        "texture": "dotted",
        "clutter": 2,
    }
    return Scene(**{**fields, "things": (), "sign": None, **changes})  # type: ignore[arg-type]


def changed_box(before: Scene, after: Scene) -> tuple[int, int, int, int]:
    """The bounding box of the pixels in which two drawings differ."""
    differs_HW = (np.asarray(draw(before)) != np.asarray(draw(after))).any(-1)
    rows, columns = np.flatnonzero(differs_HW.any(1)), np.flatnonzero(differs_HW.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_a_scene_depends_on_its_split_and_number_alone():
    forwards = [scene("a", number) for number in range(20)]
    backwards = [scene("a", number) for number in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert scene("b", 0) != scene("a", 0)


def test_the_world_of_version_1_stays_as_it_is():
    """Trained towers and published numbers refer to these very scenes; a new world needs a new version."""
    scenes = [scene("train", number, style) for number, style in enumerate((SIMPLE, ORDINARY, CROWDED) * 5)]
    text = repr(scenes + [picture(number) for number in range(60)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ab1568cd6f50a922"


def test_splits_share_no_layout_and_no_image():
    def layouts(split: str) -> set[object]:
        return {(shown.background, shown.texture, shown.things) for shown in (scene(split, n) for n in range(120))}

    def images(split: str) -> set[bytes]:
        return {hashlib.sha256(draw(scene(split, n)).tobytes()).digest() for n in range(25)}

    assert not layouts("train") & layouts("evaluate-nano-pope")
    assert not images("train") & images("evaluate-nano-pope")
    assert len(images("train")) == 25


def test_things_stand_inside_the_canvas_and_hardly_overlap():
    for shown in SCENES:
        areas = [footprint(thing) for thing in shown.things] + ([shown.sign.box] if shown.sign else [])
        cover_HW = np.zeros((shown.height, shown.width), dtype=int)
        for x1, y1, x2, y2 in areas:
            assert 0 <= x1 < x2 <= shown.width
            assert 0 <= y1 < y2 <= shown.height
            cover_HW[int(y1) : int(y2), int(x1) : int(x2)] += 1
        assert (cover_HW > 1).sum() <= 0.1 * (cover_HW > 0).sum()


def test_size_words_are_told_apart_by_size():
    for shown in SCENES:
        for thing in shown.things:
            low, high = LONG_SIDES[thing.size]
            assert low <= max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) <= high
    assert LONG_SIDES["small"][1] < LONG_SIDES["medium"][0] < LONG_SIDES["medium"][1] < LONG_SIDES["large"][0]


def test_styles_and_canvases_are_spread():
    numbers = [len(shown.things) for shown in SCENES]
    assert np.mean(numbers[0::3]) < 2 < np.mean(numbers[1::3]) < 5 < np.mean(numbers[2::3])
    ratios = {shown.width / shown.height for shown in SCENES}
    assert min(ratios) == 0.5
    assert max(ratios) == 2.0
    assert {thing.group for shown in SCENES for thing in shown.things} == set(GROUPS)


@pytest.mark.parametrize("category", ["bus", "bike", "banana", "tulip"])
def test_the_box_is_where_the_pixels_are(category: str):
    width, height = sprite(category).size
    scale = 40 / max(width, height)
    box = (30, 20, 30 + round(width * scale), 20 + round(height * scale))
    found = changed_box(empty(), empty(things=(Thing(category, "large", None, box),)))
    # A sprite's outermost row of pixels may be almost transparent.
    assert np.abs(np.array(found) - np.array(box)).max() <= 1


def test_a_tile_and_a_sign_cover_what_they_say():
    thing = Thing("cup", "medium", "red", (40, 30, 70, 58))
    assert changed_box(empty(), empty(things=(thing,))) == footprint(thing)
    width, height = sign_size("stop", 10)
    sign = Sign("stop", 10, (5, 6, 5 + width, 6 + height))
    assert changed_box(empty(), empty(sign=sign)) == sign.box


def test_clutter_and_texture_change_the_picture_but_not_the_scene():
    assert changed_box(empty(clutter=0), empty(clutter=2))
    assert changed_box(empty(clutter=0, texture="plain"), empty(clutter=0))


def test_every_word_can_be_written_and_looks_different():
    bitmaps = {bitmap(word).tobytes() for word in SIGN_WORDS}
    assert len(bitmaps) == len(SIGN_WORDS) == 40
    assert all(bitmap(word).any(0).sum() >= 3 * len(word) for word in SIGN_WORDS)


def test_a_poor_photo_has_the_size_of_the_good_one_and_differs():
    good = draw(SCENES[0])
    for number in range(6):
        poor = degrade(good, generator("faults", number))
        assert poor.size == good.size
        assert poor.mode == "RGB"
        assert poor.tobytes() != good.tobytes()


def test_a_caption_counts_every_category_and_names_sign_and_background():
    for number, shown in enumerate(SCENES):
        text = caption(shown, generator("captions", number))
        words = text.replace(",", "").split()
        for category in {thing.category for thing in shown.things}:
            told = words.count(category)
            for index, word in enumerate(words):
                if word == plural(category):
                    told += next(NUMBERS.index(w) for w in reversed(words[:index]) if w in NUMBERS)
            assert told == sum(thing.category == category for thing in shown.things), text
        assert shown.background in words
        assert shown.sign is None or shown.sign.word in text


def test_a_description_gives_every_box():
    for number, shown in enumerate(SCENES[:30]):
        text = describe(shown, generator("descriptions", number))
        for thing in shown.things:
            assert "[" + ", ".join(f"{value:.2f}" for value in coordinates(shown, thing)) + "]" in text


def test_places_are_cells_of_a_grid():
    shown = empty(width=90, height=90)
    assert place(shown, Thing("cup", "small", None, (0, 0, 20, 20))) == "top left"
    assert place(shown, Thing("cup", "small", None, (35, 35, 55, 55))) == "centre"
    assert place(shown, Thing("cup", "small", None, (35, 65, 55, 85))) == "bottom"
    assert place(shown, Thing("cup", "small", None, (65, 35, 85, 55))) == "right"


def test_the_vocabulary_is_whole():
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 42
    assert {len(members) for members in GROUPS.values()} == {7}
    assert set(GROUP_OF) == set(CATEGORIES)
    assert len({plural(name) for name in CATEGORIES} | set(CATEGORIES)) == 84
    assert all(max(sprite(name).size) == 64 for name in CATEGORIES)


def test_order_questions_follow_the_arrows():
    for number in range(30):
        shown = diagram(generator("diagrams", number), "k")
        assert draw_diagram(shown).size == (shown.width, shown.height)
        following = {shown.steps[a]: shown.steps[b] for a, b in shown.arrows}
        for question in order_questions(shown):
            right = question.options["ABCD".index(question.answer)]
            assert len(set(question.options)) == 4
            if " after the " in question.text:
                assert following[question.text.split(" after the ")[1].rstrip("?")] == right
            elif " before the " in question.text:
                assert following[right] == question.text.split(" before the ")[1].rstrip("?")
            else:
                assert right == shown.steps[0 if "first" in question.text else -1]
                assert not shown.cycle
