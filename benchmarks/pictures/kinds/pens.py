"""Digits written with pens of many widths, pencil and chalk."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from benchmarks.pictures.random_sheet import (
    Digit,
    File,
    photo,
    random_grey,
    random_pen,
    random_place,
    random_sheet,
    random_size,
)
from benchmarks.pictures.sheet import Sheet
from benchmarks.pictures.strokes import draw


def faint(digit: Digit, rng: Generator) -> File:
    """A pen that runs dry, or a bad copy: little contrast."""
    sheet = random_sheet(rng)
    paper = float(sheet.levels[0, 0].mean())
    sheet.ink(
        draw(digit, random_place(rng, sheet.size), sheet.size), random_grey(rng, paper - 80, paper - 45, 3)
    )
    return photo(sheet, (0.5, 3))


def of_width(low: float, high: float) -> Callable[[Digit, Generator], File]:
    """Strokes of a width between `low` and `high` of the digit's height."""

    def write(digit: Digit, rng: Generator) -> File:
        sheet = random_sheet(rng)
        place = random_place(rng, sheet.size)
        ink = draw(digit, place, sheet.size, width=rng.uniform(low, high) * place.height)
        sheet.ink(ink, random_pen(rng))
        return photo(sheet, (0.5, 2))

    return write


def pencil(digit: Digit, rng: Generator) -> File:
    """Grey strokes with the paper's grain showing through."""
    sheet = random_sheet(rng)
    width = rng.uniform(0.02, 0.05) * min(sheet.size)
    coverage = draw(digit, random_place(rng, sheet.size), sheet.size, width=width)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, sheet.size), 0.8).astype(np.float32)
    coverage *= np.clip(0.75 + grain * rng.uniform(0.3, 0.8), 0.1, 1)
    sheet.ink(coverage, random_grey(rng, 90, 150, 3))
    return photo(sheet)


def chalk(digit: Digit, rng: Generator) -> File:
    """White on a blackboard that was wiped."""
    board = (
        random_grey(rng, 35, 75)
        if rng.random() < 0.5
        else (rng.uniform(20, 45), rng.uniform(55, 85), rng.uniform(40, 65))
    )
    sheet = Sheet.of(rng, random_size(rng), board)
    wiped = ndimage.gaussian_filter(rng.normal(0, 1, sheet.size), (6, 25)).astype(np.float32)
    sheet.levels += (wiped / np.abs(wiped).max() * rng.uniform(5, 14))[..., None]
    coverage = draw(digit, random_place(rng, sheet.size), sheet.size)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, sheet.size), 0.8).astype(np.float32)
    sheet.ink(coverage * np.clip(0.85 + grain * rng.uniform(0.3, 0.7), 0.2, 1), random_grey(rng, 200, 245))
    return photo(sheet)
