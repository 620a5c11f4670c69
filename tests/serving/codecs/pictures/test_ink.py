"""The ink of a digit is found in pictures of many kinds, and brought into MNIST's form."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from serving.codecs.pictures import ink
from serving.codecs.pictures.ink import to_mnist
from tests.support.training.samples import sample_test, sample_training

Grey = NDArray[np.uint8]
DIGITS: Grey = sample_test().images.numpy()


def written(digit: Grey, side: int = 280, paper: int = 230, ink: int = 30) -> NDArray[np.float32]:
    """A digit on paper, `side` pixels, on half of the height."""
    size = side // 2
    coverage = np.zeros((side, side), np.float32)
    start = side // 4
    enlarged = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    coverage[start : start + size, start : start + size] = np.asarray(enlarged, np.float32) / 255
    return paper + coverage * (ink - paper)


def similarity(one: Grey, other: Grey) -> float:
    """Correlation of two images, each blurred by a pixel: strokes may be a little wider or displaced."""
    first, second = (ndimage.gaussian_filter(image.astype(float), 1).ravel() for image in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def found(levels: NDArray[np.float32]) -> Grey:
    image = to_mnist(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    assert image is not None
    return image


def test_a_digit_in_mnists_form_is_used_unchanged() -> None:
    for digit in (*DIGITS, *sample_training()[0].images.numpy()):
        np.testing.assert_array_equal(to_mnist(digit), digit)


def test_the_negative_of_a_digit_in_mnists_form_is_inverted() -> None:
    for digit in DIGITS:
        np.testing.assert_array_equal(to_mnist(255 - digit), digit)


@pytest.mark.parametrize(("paper", "ink"), [(230, 30), (30, 230), (140, 90), (90, 140)])
def test_dark_and_light_ink_have_the_same_form(paper: int, ink: int) -> None:
    for digit in DIGITS[::10]:
        assert similarity(found(written(digit, paper=paper, ink=ink)), digit) > 0.8


def test_a_28x28_picture_that_is_not_centred_is_centred() -> None:
    digit = np.roll(DIGITS[0], (-3, 3), axis=(0, 1))
    assert similarity(found(digit.astype(np.float32)), DIGITS[0]) > 0.9
    assert similarity(found(255 - digit.astype(np.float32)), DIGITS[0]) > 0.9


@pytest.mark.parametrize("corner", [0.2, 0.5])
def test_dark_corners_are_not_ink(corner: float) -> None:
    rows, columns = np.mgrid[-1:1:280j, -1:1:280j]
    light = 1 - (1 - corner) * (rows**2 + columns**2) / 2
    for digit in DIGITS[::25]:
        assert similarity(found(written(digit) * light), digit) > 0.8


def test_the_edge_of_a_shadow_through_the_digit_is_not_ink() -> None:
    light = np.where(np.arange(280) + np.arange(280)[:, np.newaxis] < 280, 1, 0.6)
    for digit in DIGITS[::25]:
        assert similarity(found(written(digit) * light), digit) > 0.8


def test_a_dark_table_at_the_edges_is_not_ink() -> None:
    for digit in DIGITS[::25]:
        levels = written(digit)
        levels[:25] = levels[:, -30:] = 40
        assert similarity(found(levels), digit) > 0.8


def test_the_box_of_a_form_is_not_ink() -> None:
    for digit in DIGITS[::25]:
        picture = Image.fromarray(written(digit).astype(np.uint8))
        ImageDraw.Draw(picture).rectangle((50, 50, 230, 230), outline=20, width=3)
        assert similarity(found(np.asarray(picture, np.float32)), digit) > 0.8


def test_lines_fainter_than_the_ink_are_left_out() -> None:
    for digit in DIGITS[::25]:
        levels = written(digit)
        levels[10::24] = np.minimum(levels[10::24], 170)
        assert similarity(found(levels), digit) > 0.8


def test_specks_are_left_out() -> None:
    for digit in DIGITS[::25]:
        levels = written(digit)
        levels[20:24, 30:34] = levels[250:254, 200:204] = levels[260:264, 20:24] = 20
        assert similarity(found(levels), digit) > 0.8


def test_thin_strokes_are_thickened() -> None:
    picture = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(picture).line([(80, 60), (200, 60), (120, 220)], fill=0, width=1)
    image = found(np.asarray(picture, np.float32))
    assert (image > 128).sum() > 25
    assert (
        similarity(
            image,
            next(digit for digit, label in zip(DIGITS, sample_test().labels, strict=True) if label == 7),
        )
        > 0.3
    )


def test_a_digit_cut_out_along_its_edges_is_found() -> None:
    for digit in DIGITS[::25]:
        levels = written(digit)
        rows, columns = np.nonzero(levels < 130)
        assert (
            similarity(found(levels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]), digit)
            > 0.7
        )


def test_the_colour_with_the_most_contrast_counts() -> None:
    """Red and green of equal brightness."""
    red, green = np.array((200, 60, 60), np.float32), np.array((60, 131, 60), np.float32)
    for digit in DIGITS[::25]:
        coverage = (230 - written(digit)) / 200
        assert similarity(found(red + coverage[..., np.newaxis] * (green - red)), digit) > 0.8


def test_paper_without_a_digit_has_no_ink() -> None:
    rng = np.random.default_rng(0)
    even = np.full((200, 300), 220.0)
    lined = even.copy()
    lined[10::25] = 120
    squared = lined.copy()
    squared[:, 10::25] = 120
    shadow = even.copy()
    shadow[:, 150:] = 140
    for levels in (
        even,
        even + rng.normal(0, 8, even.shape),
        lined,
        squared,
        shadow,
        np.zeros((28, 28)),
        even[:1, :1],
    ):
        assert to_mnist(np.clip(levels, 0, 255).astype(np.uint8)) is None


def test_ink_of_nearly_one_strength_has_a_threshold() -> None:
    """Found by fuzzing: 64 bins do not fit between neighbouring float32 values."""
    values = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)
    assert 0.5 <= ink._otsu(values) <= 0.5001
    assert ink._otsu(values[:1]) > 0
