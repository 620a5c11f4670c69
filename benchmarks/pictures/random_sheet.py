"""Sheets whose size, paper, ink, light and noise are drawn from ranges, for all kinds of pictures."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.pictures.sheet import Sheet, jpeg
from benchmarks.pictures.strokes import Ink, Place, draw

Digit = NDArray[np.uint8]
"""`uint8 [28, 28]`, light on black, as in MNIST."""
File = tuple[bytes, str]
"""Content and media type."""
Colour = tuple[float, float, float]


def random_size(rng: Generator, least: int = 240, most: int = 640) -> tuple[int, int]:
    """Draw the height and width of a picture, up to 4:3 in either direction."""
    long = int(rng.integers(least, most + 1))
    short = int(long * rng.uniform(0.75, 1))
    return (long, short) if rng.random() < 0.5 else (short, long)


def random_place(
    rng: Generator, size: tuple[int, int], share: tuple[float, float] = (0.35, 0.75), degrees: float = 6
) -> Place:
    """Draw a place where the whole digit is on the sheet; `share` is its height relative to the shorter side."""
    height = rng.uniform(*share) * min(size)
    room = [max(0.0, (side - height * 1.08) / 2 - 3) for side in size]
    centre = [side / 2 + rng.uniform(-space, space) * 0.8 for side, space in zip(size, room, strict=True)]
    return Place(height, (centre[0], centre[1]), rng.uniform(-degrees, degrees))


def random_grey(rng: Generator, low: float, high: float, tint: float = 6) -> Colour:
    """Draw a grey between two levels, with a slight tint."""
    level = rng.uniform(low, high)
    red, green, blue = level + rng.uniform(-tint, tint, 3)
    return float(red), float(green), float(blue)


def random_sheet(rng: Generator, size: tuple[int, int] | None = None) -> Sheet:
    """Return an empty sheet of light paper, of a random size unless one is given."""
    return Sheet.of(rng, size or random_size(rng), random_grey(rng, 215, 250))


def random_pen(rng: Generator) -> Colour:
    """Draw the colour of a pen: black, dark grey or blue."""
    return (
        random_grey(rng, 10, 70)
        if rng.random() < 0.6
        else (rng.uniform(10, 50), rng.uniform(20, 70), rng.uniform(90, 170))
    )


def written(digit: Digit, rng: Generator, sheet: Sheet | None = None) -> Sheet:
    """Write the digit on the sheet, with a little of the camera's noise to follow."""
    sheet = sheet or random_sheet(rng)
    sheet.ink(draw(digit, random_place(rng, sheet.size), sheet.size), random_pen(rng))
    return sheet


def photo(sheet: Sheet, noise: tuple[float, float] = (1, 4)) -> File:
    """Add the sensor's noise and encode as JPEG."""
    sheet.grain(sheet.rng.uniform(*noise))
    return jpeg(sheet.image(), int(sheet.rng.integers(75, 95)))


def ruled_or_plain(rng: Generator, size: tuple[int, int]) -> Sheet:
    """Return a sheet of (height, width) pixels: plain, lined or squared."""
    sheet = random_sheet(rng, size)
    if rng.random() < 0.5:
        sheet.lines(rng.uniform(0.1, 0.25) * min(size), (190, 200, 225), squared=rng.random() < 0.5)
    return sheet


def light_and_shadow(sheet: Sheet) -> None:
    """Put the sheet into even light, a vignette, or the edge of a shadow."""
    rng = sheet.rng
    rows, columns = np.mgrid[-1 : 1 : sheet.size[0] * 1j, -1 : 1 : sheet.size[1] * 1j]
    match int(rng.integers(3)):
        case 1:
            sheet.light((1 - rng.uniform(0.1, 0.5) * (rows**2 + columns**2) / 2).astype(np.float32))
        case 2:
            edge = half_plane(sheet, rng.uniform(0.01, 0.1) * min(sheet.size))
            sheet.light(1 - edge * np.float32(rng.uniform(0.1, 0.5)))


def half_plane(sheet: Sheet, blur: float) -> Ink:
    """Return 1 on one side of a line through the middle third of the picture."""
    height, width = sheet.size
    angle = sheet.rng.uniform(0, 2 * np.pi)
    through = np.array((width, height), np.float32) * sheet.rng.uniform(0.33, 0.67, 2)
    along, across = (
        np.array((np.cos(angle), np.sin(angle)), np.float32),
        np.array((-np.sin(angle), np.cos(angle)), np.float32),
    )
    far = 2.0 * (height + width)
    corners = [
        through - along * far,
        through + along * far,
        through + along * far + across * far,
        through - along * far + across * far,
    ]
    return sheet.polygon([(float(x), float(y)) for x, y in corners], blur=blur)
