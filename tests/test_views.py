"""A view of a slice keeps its proportions, and outlines classes where they end."""

import numpy as np
from PIL import ImageColor

from selfvox.plotting import class_colour
from selfvox.views import draw_view, grey_window, write_letters


def test_a_view_keeps_the_proportions_in_mm():
    plane = np.ones((10, 10, 1))
    view = draw_view(plane, (1.0, 2.0), 40, window=(0, 1))  # twice as wide as high
    lit = view.any(-1)
    assert lit.any(1).sum() == 20
    assert lit.any(0).sum() == 40


def test_outlines_are_at_the_border_of_a_class_in_its_colour():
    mask = np.zeros((20, 20), int)
    mask[5:15, 5:15] = 2
    view = draw_view(np.zeros((20, 20, 1)), (1, 1), 20, mask, window=(0, 1))
    coloured = (view == ImageColor.getrgb(class_colour(2))).all(-1)
    expected = np.zeros((20, 20), bool)
    expected[5:15, 5:15] = True
    expected[6:14, 6:14] = False
    np.testing.assert_array_equal(coloured, expected)
    dotted = draw_view(np.zeros((20, 20, 1)), (1, 1), 20, dotted=mask, window=(0, 1))
    some = (dotted == ImageColor.getrgb(class_colour(2))).all(-1)
    assert 0.3 < some.sum() / expected.sum() < 0.7
    assert not (some & ~expected).any()


def test_few_bright_voxels_do_not_make_the_rest_black():
    values = np.ones((10, 100))
    values[0, :4] = 1000
    assert grey_window(values) == (1, 1)


def test_letters_are_at_the_left_and_at_the_top():
    view = np.zeros((60, 60, 3), np.uint8)
    lit = write_letters(view, ("L", "A")).any(-1)
    assert lit[20:40, :15].any()
    assert lit[:15, 20:40].any()
    assert not lit[40:].any()
    assert not lit[:, 40:].any()
