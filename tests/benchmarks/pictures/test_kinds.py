"""The generator draws every kind of picture from a digit; the service's conversion finds the digit again."""

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.pictures.converted import convert, picture_of
from benchmarks.pictures.kinds.table import KINDS
from benchmarks.pictures.strokes import Place, centre_line, draw
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
SIMILAR = 0.5
"""Correlation with the digit drawn, both blurred; hairlines and markers change a digit most."""


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.of_mnist])
def test_a_digit_is_found_again_in_its_picture(kind: str) -> None:
    digits = DIGITS[3:60:20] if kind != "phone" else DIGITS[3:4]
    similar = []
    for digit, one in zip(digits, convert(kind, digits, [0] * len(digits), 0, seed=1), strict=True):
        assert not one.rejected
        images = (ndimage.gaussian_filter(image.astype(float), 1).ravel() for image in (digit, one.image))
        similar.append(np.corrcoef(*images)[0, 1])
        assert kind != "phone" or one.pixels == 4032 * 3024
    assert np.median(similar) > SIMILAR, similar


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.of_mnist])
def test_a_digit_that_is_not_of_mnist_is_found(kind: str) -> None:
    for label, one in enumerate(convert(kind, DIGITS[:10], range(10), 0, seed=1)):
        assert not one.rejected
        assert 20 < (one.image > 128).sum() < 250, label


def test_the_same_number_and_seed_draw_the_same_picture() -> None:
    assert picture_of("vignette", DIGITS[0], 0, 5, 3) == picture_of("vignette", DIGITS[0], 0, 5, 3)
    assert picture_of("vignette", DIGITS[0], 0, 5, 3) != picture_of("vignette", DIGITS[0], 0, 6, 3)
    assert picture_of("vignette", DIGITS[0], 0, 5, 3) != picture_of("vignette", DIGITS[0], 0, 5, 4)


def test_a_digit_is_drawn_at_its_place() -> None:
    ink = draw(DIGITS[0], Place(100, (120, 80)), (240, 200))
    rows, columns = np.nonzero(ink > 0.5)
    assert abs((rows.min() + rows.max()) / 2 - 120) < 4
    assert abs((columns.min() + columns.max()) / 2 - 80) < 4
    assert 90 < max(np.ptp(rows), np.ptp(columns)) < 108


def test_a_pen_of_a_given_width_has_that_width() -> None:
    ink = draw(DIGITS[0], Place(150, (120, 120)), (240, 240), width=8)
    widths = 4 * ndimage.distance_transform_edt(ink > 0.5)[ink > 0.5].mean() - 1
    assert 6 < widths < 10


def test_a_centre_line_is_one_pixel_wide_and_as_connected_as_the_stroke() -> None:
    mask = draw(DIGITS[0], Place(100, (60, 60)), (120, 120)) > 0.5
    line = centre_line(mask)
    eight = np.ones((3, 3))
    assert ndimage.label(line, eight)[1] == ndimage.label(mask, eight)[1]
    assert not ndimage.binary_erosion(line, np.ones((2, 2))).any()
    assert (line & ~mask).sum() == 0
