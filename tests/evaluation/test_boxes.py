"""Boxes out of text, and their overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism_sweeps.evaluation.boxes import overlap, parse_box

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
