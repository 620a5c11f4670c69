"""Pictures that no camera took: files of MNIST, of drawing programs, browsers and fonts."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

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
from benchmarks.pictures.sheet import Sheet, png
from benchmarks.pictures.strokes import Place, draw

CANVAS = Path(__file__).parents[1] / "canvas"
FONTS = [
    str(path)
    for path in sorted(Path(mpl.get_data_path(), "fonts/ttf").glob("*.ttf"))
    if re.match(r"DejaVu(Sans|Serif)|STIXGeneral|cm(r|ss|tt|b)10", path.stem) and "Display" not in path.stem
]


def light_on_dark(digit: Digit, rng: Generator) -> File:
    """White ink on black."""
    size = random_size(rng)
    return png(
        Image.fromarray((draw(digit, random_place(rng, size, degrees=0), size) * 255).astype(np.uint8))
    )


def dark_on_light(digit: Digit, rng: Generator) -> File:
    """Black ink on white."""
    size = random_size(rng)
    return png(
        Image.fromarray((255 - draw(digit, random_place(rng, size, degrees=0), size) * 255).astype(np.uint8))
    )


def mnist(digit: Digit, rng: Generator) -> File:  # noqa: ARG001 - nothing is random
    """A digit as it is."""
    return png(Image.fromarray(digit))


def mnist_inverted(digit: Digit, rng: Generator) -> File:  # noqa: ARG001
    """A digit in black on white."""
    return png(Image.fromarray(255 - digit))


def thumbnail(digit: Digit, rng: Generator) -> File:
    """A paint program's smallest canvas: 28×28, dark on white, neither centred nor scaled as in MNIST."""
    place = Place(rng.uniform(14, 25), (14 + rng.uniform(-1.5, 1.5), 14 + rng.uniform(-1.5, 1.5)))
    return png(Image.fromarray((255 - draw(digit, place, (28, 28)) * 255).astype(np.uint8)))


def small(digit: Digit, rng: Generator) -> File:
    """From 32 to 96 pixels, either polarity."""
    side = int(rng.integers(32, 97))
    ink = draw(digit, random_place(rng, (side, side), (0.5, 0.8), degrees=0), (side, side)) * 255
    return png(Image.fromarray((ink if rng.random() < 0.5 else 255 - ink).astype(np.uint8)))


def colours(digit: Digit, rng: Generator) -> File:
    """Two colours anywhere in the cube that differ by at least 60 in some channel."""
    while True:
        paper, ink = rng.uniform(0, 255, (2, 3))
        if np.abs(paper - ink).max() > 60:
            break
    sheet = Sheet.of(rng, random_size(rng), tuple(paper))
    sheet.ink(draw(digit, random_place(rng, sheet.size), sheet.size), tuple(ink))
    return png(sheet.image()) if rng.random() < 0.5 else photo(sheet, (0, 2))


def transparent(digit: Digit, rng: Generator) -> File:
    """The ink alone, everything else transparent, as browsers' canvases save it."""
    size = random_size(rng)
    alpha = draw(digit, random_place(rng, size), size) * 255
    levels = np.zeros((*size, 4), np.uint8)
    levels[..., :3] = random_grey(rng, 0, 60, 0) if rng.random() < 0.7 else random_grey(rng, 200, 255, 0)
    levels[..., :3] *= alpha[..., None] > 0
    levels[..., 3] = alpha
    return png(Image.fromarray(levels))


def hairline(digit: Digit, rng: Generator) -> File:
    """Strokes of one to two pixels, as the thinnest brush of a drawing program makes them."""
    size = random_size(rng, 200, 480)
    ink = draw(digit, random_place(rng, size, degrees=0), size, width=rng.uniform(1, 2)) * 255
    return png(Image.fromarray((ink if rng.random() < 0.3 else 255 - ink).astype(np.uint8)))


def typed(label: int, rng: Generator) -> File:
    """A digit in one of the fonts that matplotlib ships: DejaVu, STIX and Computer Modern."""
    size = random_size(rng)
    font = ImageFont.truetype(FONTS[int(rng.integers(len(FONTS)))], int(rng.uniform(0.4, 0.8) * min(size)))
    mask = Image.new("L", size[::-1])
    middle = size[1] * rng.uniform(0.4, 0.6), size[0] * rng.uniform(0.4, 0.6)
    ImageDraw.Draw(mask).text(middle, str(label), 255, font, anchor="mm")
    sheet = random_sheet(rng, size)
    sheet.ink(np.asarray(mask, np.float32) / np.float32(255), random_pen(rng))
    return photo(sheet)


def canvas(label: int, rng: Generator) -> File:
    """Drawn with the mouse on a canvas in Chromium: committed files, five of each digit."""
    files = sorted(CANVAS.glob(f"{label}-*.png"))
    return files[int(rng.integers(len(files)))].read_bytes(), "image/png"
