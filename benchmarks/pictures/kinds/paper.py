"""What is on the sheet besides the digit, or around it: lines, a form's box, a table, dust, staples."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from benchmarks.pictures.random_sheet import (
    Digit,
    File,
    photo,
    random_grey,
    random_pen,
    random_place,
    random_sheet,
    random_size,
    written,
)
from benchmarks.pictures.sheet import Sheet
from benchmarks.pictures.strokes import draw


def ruled(*, squared: bool) -> Callable[[Digit, Generator], File]:
    """Lined or squared paper."""

    def write(digit: Digit, rng: Generator) -> File:
        sheet = random_sheet(rng)
        spacing = rng.uniform(0.05 if squared else 0.08, 0.2) * min(sheet.size)
        light = rng.uniform(140, 200)
        colour = (light, light + 10, 225) if rng.random() < 0.7 else (light, light, light)
        sheet.lines(spacing, colour, squared=squared, width=rng.uniform(1, 2.5))
        return photo(written(digit, rng, sheet))

    return write


def form(digit: Digit, rng: Generator) -> File:
    """A form's printed box around the digit."""
    sheet = random_sheet(rng)
    place = random_place(rng, sheet.size, (0.3, 0.55))
    sheet.ink(draw(digit, place, sheet.size), random_pen(rng))
    row, column = place.centre
    up, right, down, left = (place.height * rng.uniform(0.6, 0.85) for _ in range(4))
    corners = [
        (column - left, row - up),
        (column + right, row - up),
        (column + right, row + down),
        (column - left, row + down),
    ]
    line = rng.uniform(1.5, 4)
    inner = [_towards(corner, (column, row), line) for corner in corners]
    sheet.ink(np.clip(sheet.polygon(corners) - sheet.polygon(inner), 0, 1), random_grey(rng, 20, 120))
    return photo(sheet)


def _towards(corner: tuple[float, float], centre: tuple[float, float], by: float) -> tuple[float, float]:
    x, y = (place + np.sign(middle - place) * by for place, middle in zip(corner, centre, strict=True))
    return float(x), float(y)


def table(digit: Digit, rng: Generator) -> File:
    """A sheet on a dark table that is visible along one to three of its edges."""
    size = random_size(rng)
    sheet = Sheet.of(rng, size, random_grey(rng, 215, 250))
    height, width = size
    sides = rng.permutation(4)[: int(rng.integers(1, 4))]
    gaps = [rng.uniform(0.04, 0.14) if side in sides else -0.3 for side in range(4)]
    top, right, bottom, left = (
        gap * side for gap, side in zip(gaps, (height, width, height, width), strict=True)
    )
    tilt = rng.uniform(-0.03, 0.03) * min(size)
    corners = [
        (left, top + tilt),
        (width - right, top - tilt),
        (width - right - tilt, height - bottom - tilt),
        (left - tilt, height - bottom + tilt),
    ]
    place = random_place(rng, size, (0.35, 0.55))
    middle = ((max(top, 0) + height - max(bottom, 0)) / 2, (max(left, 0) + width - max(right, 0)) / 2)
    sheet.ink(draw(digit, place._replace(centre=middle), size), random_pen(rng))
    table = (
        (rng.uniform(50, 110), rng.uniform(35, 75), rng.uniform(15, 50))
        if rng.random() < 0.6
        else random_grey(rng, 20, 70)
    )
    sheet.ink(1 - sheet.polygon(corners), table)
    return photo(sheet)


def specks(digit: Digit, rng: Generator) -> File:
    """Dust: three to twelve dots of up to 1.2 % of the picture's side."""
    sheet = written(digit, rng)
    for _ in range(int(rng.integers(3, 13))):
        radius = max(0.8, rng.uniform(0.002, 0.006) * max(sheet.size))
        row, column = rng.uniform(0, 1, 2) * sheet.size
        angles = np.linspace(0, 2 * np.pi, 9)[:-1]
        corners = [(column + radius * np.cos(one), row + radius * np.sin(one)) for one in angles]
        sheet.ink(sheet.polygon(corners), random_grey(rng, 20, 110))
    return photo(sheet)


def staple(digit: Digit, rng: Generator) -> File:
    """A staple, or a hole for a binder, near a corner or an edge."""
    sheet = random_sheet(rng)
    short = min(sheet.size)
    place = random_place(rng, sheet.size, (0.35, 0.6))
    sheet.ink(draw(digit, place, sheet.size), random_pen(rng))
    row, column = (
        side * (rng.uniform(0.03, 0.1) if rng.random() < 0.5 else rng.uniform(0.9, 0.97))
        for side in sheet.size
    )
    if rng.random() < 0.5:
        angle, long, thick = (
            rng.uniform(0, np.pi),
            short * rng.uniform(0.08, 0.14),
            short * rng.uniform(0.008, 0.015),
        )
        along, across = (
            np.array((np.cos(angle), np.sin(angle)), np.float32) * long / 2,
            np.array((-np.sin(angle), np.cos(angle)), np.float32) * thick / 2,
        )
        corners = [along + across, along - across, -along - across, -along + across]
        sheet.ink(sheet.polygon([(column + x, row + y) for x, y in corners]), random_grey(rng, 90, 150))
    else:
        radius = short * rng.uniform(0.025, 0.04)
        angles = np.linspace(0, 2 * np.pi, 25)[:-1]
        sheet.ink(
            sheet.polygon([(column + radius * np.cos(one), row + radius * np.sin(one)) for one in angles]),
            random_grey(rng, 20, 80),
        )
    return photo(sheet)
