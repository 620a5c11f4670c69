"""Uneven light: vignettes, light from one side, shadows."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from benchmarks.pictures.random_sheet import (
    Digit,
    File,
    half_plane,
    photo,
    random_grey,
    random_pen,
    random_place,
    random_sheet,
    written,
)
from benchmarks.pictures.strokes import draw


def vignette(digit: Digit, rng: Generator) -> File:
    """A flash or a lens: the corners get a third to two thirds of the middle's light."""
    sheet = written(digit, rng)
    height, width = sheet.size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    middle = [side * rng.uniform(0.4, 0.6) for side in sheet.size]
    away = np.hypot(rows - middle[0], columns - middle[1])
    sheet.light((1 - rng.uniform(0.33, 0.67) * (away / away.max()) ** rng.uniform(1.6, 3)).astype(np.float32))
    return photo(sheet)


def side_light(digit: Digit, rng: Generator) -> File:
    """Light from one side: the far side gets 35 to 60 % of it."""
    sheet = written(digit, rng)
    rows, columns = np.mgrid[: 1 : sheet.size[0] * 1j, : 1 : sheet.size[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    along = (along - along.min()) / np.ptp(along)
    sheet.light((1 - (1 - rng.uniform(0.35, 0.6)) * along).astype(np.float32))
    return photo(sheet)


def shadow(low: float, high: float) -> Callable[[Digit, Generator], File]:
    """The edge of a shadow across the picture, blurred by this share of its shorter side."""

    def shadow(digit: Digit, rng: Generator) -> File:
        sheet = written(digit, rng)
        edge = half_plane(sheet, max(0.7, rng.uniform(low, high) * min(sheet.size)))
        sheet.light(1 - edge * np.float32(1 - rng.uniform(0.45, 0.75)))
        return photo(sheet)

    return shadow


def everything(digit: Digit, rng: Generator) -> File:
    """Lines or squares, a vignette, a shadow, specks and noise at once, each mild."""
    sheet = random_sheet(rng)
    sheet.lines(rng.uniform(0.08, 0.2) * min(sheet.size), (190, 200, 225), squared=rng.random() < 0.5)
    sheet.ink(draw(digit, random_place(rng, sheet.size), sheet.size), random_pen(rng))
    for _ in range(3):
        row, column = rng.uniform(0, 1, 2) * sheet.size
        radius = 0.003 * max(sheet.size)
        corners = [
            (column - radius, row),
            (column, row - radius),
            (column + radius, row),
            (column, row + radius),
        ]
        sheet.ink(sheet.polygon(corners), random_grey(rng, 40, 110))
    sheet.light(
        1 - half_plane(sheet, rng.uniform(0.01, 0.1) * min(sheet.size)) * np.float32(rng.uniform(0.1, 0.35))
    )
    rows, columns = np.mgrid[-1 : 1 : sheet.size[0] * 1j, -1 : 1 : sheet.size[1] * 1j]
    sheet.light((1 - rng.uniform(0.1, 0.35) * (rows**2 + columns**2) / 2).astype(np.float32))
    return photo(sheet, (2, 6))
