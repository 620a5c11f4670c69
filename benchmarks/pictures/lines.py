"""Numbers of one to six digits on a sheet: apart, or each touching the next one."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.pictures.random_sheet import Digit, File, light_and_shadow, photo, random_pen, ruled_or_plain
from benchmarks.pictures.strokes import Ink, Place, draw


def draw_number(digits: Sequence[Digit], rng: Generator, *, touching: bool) -> File:
    """Draw digits `uint8 [28, 28]` from left to right on a sheet with lines, uneven light and noise, in part."""
    height = rng.uniform(60, 140)
    inks = [_digit(digit, height * rng.uniform(0.9, 1.1)) for digit in digits]
    bottom = max(ink.shape[0] for ink in inks)
    line = np.zeros((bottom + 8, sum(ink.shape[1] for ink in inks) + int(height * len(inks))), np.float32)
    right = 4
    for index, ink in enumerate(inks):
        top = (line.shape[0] - ink.shape[0]) // 2 + int(rng.integers(-2, 3))
        if index == 0:
            left = right
        elif touching:
            left = _touching(line, ink, top, right)
        else:
            left = _apart(line, ink, top, right, gap=max(3, rng.uniform(0.06, 0.35) * height))
        area = line[top : top + ink.shape[0], left : left + ink.shape[1]]
        np.maximum(area, ink, out=area)
        right = left + ink.shape[1]
    line = line[:, : right + 4]
    margins = [int(side) for side in rng.uniform(0.25, 0.8, 4) * height]
    size = line.shape[0] + margins[0] + margins[1], line.shape[1] + margins[2] + margins[3]
    sheet = ruled_or_plain(rng, size)
    coverage = np.zeros(size, np.float32)
    coverage[margins[0] : margins[0] + line.shape[0], margins[2] : margins[2] + line.shape[1]] = line
    sheet.ink(coverage, random_pen(rng))
    light_and_shadow(sheet)
    return photo(sheet)


def _digit(digit: NDArray[np.uint8], height: float) -> Ink:
    """Draw a digit whose rows, not its longer side, take `height` pixels, cropped to its ink."""
    rows, columns = np.nonzero(digit > 32)
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    side = min(height * longer / (np.ptp(rows) + 1), 2 * height)
    sheet = int(side * 1.6)
    ink = draw(digit, Place(side, (sheet / 2, sheet / 2)), (sheet, sheet))
    rows, columns = np.nonzero(ink > 0.05)
    return np.ascontiguousarray(ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])


def _distance(line: Ink, ink: Ink, top: int) -> int:
    """Return the column at which the ink of a digit would just touch the ink to the left of it."""
    found = 0
    for row in range(ink.shape[0]):
        before, after = np.nonzero(line[top + row] > 0.5)[0], np.nonzero(ink[row] > 0.5)[0]
        if len(before) and len(after):
            found = max(found, int(before[-1] - after[0] + 1))
    return found


def _touching(line: Ink, ink: Ink, top: int, right: int) -> int:
    """Move a digit to the left until it touches, and two pixels further."""
    width: int = ink.shape[1]
    return max(_distance(line, ink, top) - 2, right - width // 2, 0)


def _apart(line: Ink, ink: Ink, top: int, right: int, gap: float) -> int:
    """Leave at least `gap` pixels between the ink of two digits, and not less between their boxes than half of it."""
    return max(_distance(line, ink, top) + round(gap), right + round(gap / 2))
