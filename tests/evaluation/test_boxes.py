"""Boxes out of text, and their overlap."""

import ast
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.suite import BOX_FRAMES, BOX_UNITS, Benchmark
from prism_sweeps.evaluation.boxes import in_image, numbers_in, overlap, parse_box
from prism_sweeps.evaluation.scorers import scorer
from prism_sweeps.evaluation.scoring.grounding import answered_box
from prism_sweeps.models.resize import frame

SIDES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda side: side[0] < side[1] - 1e-3)
BOXES = st.tuples(SIDES, SIDES).map(lambda sides: (sides[0][0], sides[1][0], sides[0][1], sides[1][1]))


@pytest.mark.parametrize(
    "text",
    [
        "[0.1, 0.2, 0.3, 0.4]",
        "0.1 0.2 0.3 0.4.",
        "(.1,.2),(.3,.4)",
        "x1=0.1, y1=0.2, x2=0.3, y2=0.4",
        "The box is [0.10, 2e-1, 0.30, +0.40]!",
        "The 2 dogs are at [0.1, 0.2, 0.3, 0.4], 3 of them",
        "[[0.1, 0.2, 0.3, 0.4]]",
        "[[0.1, 0.2], [0.3, 0.4]]",
        "The 2 dogs: (0.1, 0.2), (0.3, 0.4) and 1 cat",
        "<box>(0.1,0.2),(0.3,0.4)</box>",
        "<box>0.1 0.2 0.3 0.4</box> (no. 7)",
        "<|box_start|>(0.1,0.2),(0.3,0.4)<|box_end|>",
        '{"bbox_2d": [0.1, 0.2, 0.3, 0.4], "label": "dog 1", "score": 0.9}',
        '```json\n[{"bbox": [0.1, 0.2, 0.3, 0.4]}]\n```',
        "[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]",  # the first of several
        "[0.1, 0.2, 0.3, 0.4",
        "((0.1, 0.2)), ((0.3, 0.4))",
        "0.1, 0.2, 0.3, 0.4]])",
        "0.1;0.2;0.3;0.4",
        "0.1-0.2-0.3-0.4",
        "x1: 0.1 x2: 0.3 y1: 0.2 y2: 0.4",  # names count, not places
        "x1=0.1, y1=0.2, x2=0.3, y2=0.4; x1=0.5, y1=0.6, x2=0.7, y2=0.8",
        '{"xmin": 0.1, "ymin": 0.2, "xmax": 0.3, "ymax": 0.4, "n": 5}',
        "The 2 dogs: x_min=.1, y_min=.2, x_max=.3, y_max=.4",
        "[\u0660.\u0661, 0.2, 0.3, 0.4]",  # Arabic digits
        "\u202e[0.1, 0.2, 0.3, 0.4]\u202c",
        "\x00[0.1,\x000.2,\u00a00.3,\n\n0.4]",
    ],
)
def test_lenient_on_form(text):
    assert parse_box(text) == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no box",
        "[0.1, 0.2, 0.3]",
        "[0.1, 0.2, 0.3, 0.4, 0.5]",
        "[0.3, 0.2, 0.1, 0.4]",  # x1 > x2
        "[0.1, 0.4, 0.3, 0.4]",  # no height
        "[0.1, 0.2, 0.3, 1.4]",
        "[-0.1, 0.2, 0.3, 0.4]",
        "[0.1, 0.2, 0.3, 1e999]",
        "[nan, 0.2, 0.3, 0.4]",
        "[NaN, 0.1, 0.2, 0.3, 0.4]",
        "[0.1, 0.2, Infinity, 0.4]",
        "[-inf, 0.2, 0.3, 0.4]",
        "[0.1, 0.2, 0.3, 1e99999999999999999999]",
        "[0.1, 0.2, 0.3, 0.4e-1]",  # 0.04
        "x1=nan, y1=0.2, x2=0.3, y2=0.4",
        "x1=0.3, y1=0.2, x2=0.1, y2=0.4",
        "[0.1, 0.2], 9, [0.3, 0.4]",
        "(0.1, 0.2, 0.3), 0.4, 0.5",
        "[0.1.2, 0.2, 0.3, 0.4]",
        "__import__('os').system('true')",
        "[10, 20, 30, 40]",
    ],
)
def test_strict_on_values(text):
    assert parse_box(text) is None


@given(BOXES)
def test_a_printed_box_is_read_back(box):
    assert parse_box(str(list(box))) == box
    assert overlap(box, box) == pytest.approx(1.0)


@given(BOXES, BOXES)
def test_overlap_is_symmetric_and_within_bounds(one, other):
    assert overlap(one, other) == pytest.approx(overlap(other, one))
    assert 0.0 <= overlap(one, other) <= 1.0 + 1e-9


GRID = 12
CELLS = st.tuples(st.integers(0, GRID - 1), st.integers(1, GRID)).filter(lambda side: side[0] < side[1])


@given(CELLS, CELLS, CELLS, CELLS)
def test_overlap_counts_cells(x, y, other_x, other_y):
    def cells(x, y):
        return {(i, j) for i in range(*x) for j in range(*y)}

    def box(x, y):
        return (x[0] / GRID, y[0] / GRID, x[1] / GRID, y[1] / GRID)

    one, other = cells(x, y), cells(other_x, other_y)
    assert overlap(box(x, y), box(other_x, other_y)) == pytest.approx(len(one & other) / len(one | other))


HOSTILE = {
    "digits": "1" * 1_000_000,
    "digits and a letter": "1" * 1_000_000 + "a",
    "points": "." * 1_000_000,
    "points and digits": "1." * 1_000_000,
    "signs": "+-" * 500_000,
    "exponents": "1e" * 1_000_000,
    "one exponent": "[0.1, 0.2, 0.3, 1e" + "9" * 1_000_000 + "]",
    "brackets": "[" * 1_000_000,
    "closed brackets": "[" * 500_000 + "]" * 500_000,
    "spaces": " " * 1_000_000,
    "names": "x1" * 1_000_000,
    "names and spaces": ("x1" + " " * 1000) * 2000,
    "a name and spaces": "x1" + " " * 1_000_000,
    "tags": "<box" * 500_000,
    "none": "nan" * 700_000,
    "list": "[" + "0.1, " * 200_000 + "]",
    "pairs": "(0.1)" * 200_000,
    "NUL": "\x00" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_megabytes_are_read_in_one_go(name):
    assert parse_box(HOSTILE[name]) is None
    assert iou_score(HOSTILE[name], "iou-literal") == 0.0


def iou_score(text, name="iou"):
    row = {"id": "7", "answer": text, "gold": [0.1, 0.2, 0.3, 0.4]}
    return scorer(name).score(row, Benchmark(name="b", scorer=name))


def literal(text):
    """What vlm-evaluation takes for a box (parse_bbox of harnesses/refcoco.py), restated."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(type(edge) in (int, float) for edge in value):
        return None
    return (
        tuple(value) if all(0 <= edge <= 1 for edge in value) and value[0] < value[2] and value[1] < value[3] else None
    )


def test_every_published_box_is_read_and_only_these_by_iou_literal():
    rng = random.Random(0)
    plain = ["0", ".2", "0.25", "0.7", "1e-1", "1"]
    odd = ["0.1", ".2", "0.25", "1e-1", "0.9", "1.0", "+0.5", "-0.1", "2", "", "x", "0.5 "]
    around = [("[", "]"), (" [", "]\n"), ("[", ",]"), ("(", ")"), ("", ""), ("[[", "]]"), ("It is [", "]"), ("[", "].")]
    read = 0
    for _ in range(5000):
        start, end = rng.choice(around)
        edges = [rng.choice(rng.choice([plain, plain, plain, odd])) for _ in range(rng.choice([3, 4, 4, 4, 4, 5]))]
        text = start + ", ".join(edges) + end
        expected = literal(text)
        if expected is not None:
            read += 1
            assert parse_box(text) == expected, text
        row = {"id": "1", "answer": text, "gold": [0.0, 0.0, 1.0, 1.0]}
        told = scorer("iou-literal").metrics([row], Benchmark(name="b", scorer="iou-literal"))
        assert told["invalid_box_count"] == (expected is None), text
    assert read > 100


# ---- frames and units


def box_of(text, size=None, seen=None, **frame_and_units):
    row = {"id": "7", "answer": text, "gold": [0, 0, 1, 1], "size": size, "seen": seen}
    return answered_box(row, Benchmark(name="refs", scorer="iou", **frame_and_units), numbers_in)


def seen_of(size, strategy, pixels=336):
    placed = frame(size, strategy, pixels)
    return [
        (edge - placed.shift[i % 2]) / placed.scale[i % 2] / size[i % 2]
        for i, edge in enumerate((0, 0, pixels, pixels))
    ]


def test_pixels_of_the_image():
    box = box_of("[64, 48, 640, 480]", [640, 480], box_units="pixels")
    assert box == pytest.approx((0.1, 0.1, 1.0, 1.0))
    assert box_of("[64, 48, 641, 480]", [640, 480], box_units="pixels") is None
    assert box_of("[64, 48, 480, 640]", [640, 480], box_units="pixels") is None


def test_padded_square_of_a_wide_image():
    # 640x480 in a square of 640: 80 rows of padding above; 0.125 is where the image begins, 0.875 where it ends
    seen = seen_of((640, 480), "letterbox")
    assert seen == pytest.approx([0, -1 / 6, 1, 7 / 6])
    whole = box_of("[0, 0.125, 1, 0.875]", [640, 480], seen, box_frame="padded")
    assert whole == pytest.approx((0, 0, 1, 1))
    quarter = box_of("[0.5, 0.5, 1, 0.875]", [640, 480], seen, box_frame="padded")
    assert quarter == pytest.approx((0.5, 0.5, 1, 1))
    clipped = box_of("[0, 0, 1, 0.5]", [640, 480], seen, box_frame="padded")
    assert clipped == pytest.approx((0, 0, 1, 0.5))
    assert box_of("[0, 0, 1, 0.1]", [640, 480], seen, box_frame="padded") is None  # padding alone
    assert box_of("[0, 0, 1, 1.1]", [640, 480], seen, box_frame="padded") is None


def test_padded_square_of_a_tall_image_in_pixels():
    # 427x640 in a square of 640: 106 columns of padding on the left
    seen = seen_of((427, 640), "letterbox")
    box = box_of("[106, 0, 319, 320]", [427, 640], seen, box_frame="padded", box_units="pixels")
    assert box == pytest.approx((0, 0, 213 / 427, 0.5), abs=0.002)  # an odd difference: half a pixel
    assert box_of("[0, 0, 640, 640]", [427, 640], seen, box_frame="padded", box_units="pixels") is not None
    assert box_of("[0, 0, 641, 640]", [427, 640], seen, box_frame="padded", box_units="pixels") is None
    assert box_of("[0, 0, 100, 640]", [427, 640], seen, box_frame="padded", box_units="pixels") is None


def test_square_that_was_cropped_or_squashed():
    crop, naive = seen_of((640, 480), "crop"), seen_of((640, 480), "naive")
    assert box_of("[0, 0, 1, 1]", [640, 480], crop, box_frame="padded") == pytest.approx((0.125, 0, 0.875, 1))
    assert box_of("[0, 0, 480, 480]", [640, 480], crop, box_frame="padded", box_units="pixels") == pytest.approx(
        (0.125, 0, 0.875, 1)
    )
    assert box_of("[0.1, 0.2, 0.3, 0.4]", [640, 480], naive, box_frame="padded") == pytest.approx((0.1, 0.2, 0.3, 0.4))


WIDE = BOXES.filter(lambda box: box[2] - box[0] > 0.06 and box[3] - box[1] > 0.06)


@given(WIDE, st.integers(20, 2000), st.integers(20, 2000), st.sampled_from(["letterbox", "naive"]))
def test_box_survives_the_way_to_the_square_and_back(box, width, height, strategy):
    seen = seen_of((width, height), strategy)
    there = [(edge - seen[i % 2]) / (seen[i % 2 + 2] - seen[i % 2]) for i, edge in enumerate(box)]
    text = json.dumps([min(max(edge, 0.0), 1.0) for edge in there])
    # an odd difference loses half a pixel on a side, and the crop after it a part of one
    assert box_of(text, [width, height], seen, box_frame="padded") == pytest.approx(box, abs=1.01 / min(width, height))


def test_a_square_beside_the_image_leaves_nothing():
    assert in_image((0.0, 0.0, 1.0, 1.0), [1.5, 0.0, 2.5, 1.0]) is None


@pytest.mark.parametrize("frame_name", BOX_FRAMES)
@pytest.mark.parametrize("units", BOX_UNITS)
def test_what_is_not_known_is_said(frame_name, units):
    chosen = {"box_frame": frame_name, "box_units": units}
    if chosen == {"box_frame": "image", "box_units": "normalised"}:
        assert box_of("[0.1, 0.2, 0.3, 0.4]", **chosen) == (0.1, 0.2, 0.3, 0.4)
        return
    with pytest.raises(DataError, match=r"refs, example '7'.*size of its image is not known"):
        box_of("[0.1, 0.2, 0.3, 0.4]", **chosen)
    if frame_name == "padded":
        with pytest.raises(ConfigError, match=r"processor's frame is not.*box_frame=image"):
            box_of("[0.1, 0.2, 0.3, 0.4]", [640, 480], None, **chosen)


@pytest.mark.parametrize("wrong", [{"box_frame": "paded"}, {"box_units": "pixel"}])
def test_unknown_frame_or_unit_names_the_nearest(wrong):
    with pytest.raises(ConfigError, match=r"refs: unknown .* did you mean '(padded|pixels)'"):
        box_of("[0.1, 0.2, 0.3, 0.4]", [640, 480], [0, 0, 1, 1], **wrong)


# ---- scores


def test_threshold_is_inclusive_and_invalid_boxes_are_counted():
    # half of the true box: an IoU of exactly 0.5
    half, true = "[0.0, 0.0, 0.5, 0.5]", [0.0, 0.0, 0.5, 1.0]
    row = {"id": "1", "answer": half, "gold": true}
    at = [Benchmark(name="r", scorer="iou", iou_threshold=threshold) for threshold in (0.25, 0.5, 0.51)]
    assert [scorer("iou").score(row, benchmark) for benchmark in at] == [1.0, 1.0, 0.0]
    rows = [row, row | {"answer": "nothing here"}]
    assert scorer("iou").metrics(rows, at[0]) == {"mean_iou": 25.0, "invalid_box_count": 1}


def test_frame_counts_for_score_and_metrics():
    seen = seen_of((640, 480), "letterbox")
    row = {"id": "1", "answer": "[0, 0.125, 1, 0.5]", "gold": [0, 0, 1, 0.5], "size": [640, 480], "seen": seen}
    image, padded = (Benchmark(name="r", scorer="iou", box_frame=name, iou_threshold=0.9) for name in BOX_FRAMES)
    assert (scorer("iou").score(row, image), scorer("iou").score(row, padded)) == (0.0, 1.0)
    assert scorer("iou").metrics([row], padded)["mean_iou"] == pytest.approx(100.0)
    assert scorer("iou").metrics([row], image)["mean_iou"] == pytest.approx(75.0)
