"""Images that show no digit, drawn for fitting the acceptance rule (`export.acceptance`).

Six kinds, from seeded random numbers: letters and signs of the fonts that matplotlib ships, pairs of digits, scribbles,
shapes, noise and empty fields. Those with ink have MNIST's form: fitted into 20x20 pixels, centred
by mass. What the rule rejects is reported on pictures of other fonts, data sets and generators: `benchmarks.outliers`.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from serving.model.tensors import SIDE, Images
from training.data.augmentation import augment
from training.data.mnist import Digits
from training.recipe.schema import Augmentation

Draw = Callable[[np.random.Generator, Images], NDArray[np.uint8]]
"""Draws one image `uint8 [28, 28]`; takes digits to compose it of."""

CANVAS = 96
"""Side of the drawing, pixels; it is scaled down to 20."""
FONT_SIZE = 56
LETTERS = "ACDEFGHJKLMNPQRTUVWXYacdefhijkmnprtuvwxy"
"""Without those written like a digit: O o I l Z z S s B b q g."""
SIGNS = "&%#@?$+=*<>{}~!ΔΣΩΦΨΠΛΞΘαβγδεηθλμξπφψω"
FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10*", "cmss10*", "cmtt10*")

DIGITS = 10_000
"""Training digits that the outlier unit is fitted on, each plain and jittered."""
DRAWN = 600
"""Images of each kind without a digit, and typed digits; letters are drawn three times as often."""
JITTER = Augmentation(rotation=10, shift=1, scale=0.1, shear=8, elastic=0.6)


class Samples(NamedTuple):
    """Digits, and images without a digit, that rules are fitted on, `uint8 [N, 28, 28]`."""

    digits: Images
    outliers: Images
    validation: Mapping[str, Images]
    """Images without a digit by kind, drawn of other digits and with other random numbers."""

    @classmethod
    def draw(cls, training: Digits, validation: Digits, drawn: int = DRAWN) -> Self:
        """Draw the outliers, and jitter digits and outliers; the same on every machine with the same fonts."""
        plain = training.images[:: max(1, len(training) // DIGITS)]
        typed = torch.from_numpy(draw_digits(drawn, seed=0))
        kinds = draw_outliers(drawn, training.images.numpy(), seed=1)
        outliers = torch.from_numpy(np.concatenate([*kinds.values()]))
        random = torch.Generator().manual_seed(0)
        return cls(
            torch.cat(
                [plain, *(augment(images, JITTER, random=random) for images in (plain, typed))]
            ).numpy(),
            torch.cat([outliers, augment(outliers, JITTER, random=random)]).numpy(),
            draw_outliers(max(1, drawn // 6), validation.images.numpy(), seed=2),
        )


def draw_outliers(count: int, digits: Images, seed: int) -> dict[str, Images]:
    """Draw `count` images `uint8 [28, 28]` of each kind, three times as many letters; pairs are made of `digits`."""
    drawn = {}
    for index, (name, draw) in enumerate(KINDS.items()):
        random = np.random.default_rng((seed, index))
        drawn[name] = np.stack(
            [draw(random, digits) for _ in range(3 * count if name == "letters" else count)]
        )
    return drawn


def draw_digits(count: int, seed: int) -> Images:
    """Draw `count` digits in the same fonts: typed digits are digits."""
    random = np.random.default_rng(seed)
    return np.stack([_typed(random, "0123456789") for _ in range(count)])


def to_mnist(canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop a drawing to its ink, scale it to fit 20x20, and centre it by mass in 28x28."""
    rows, columns = np.nonzero(canvas > 20)
    if not len(rows):
        return np.zeros((SIDE, SIDE), np.uint8)
    ink = canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = ink.shape
    scale = 20 / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC))
    image = np.zeros((SIDE, SIDE), np.uint8)
    total = max(float(small.sum()), 1)
    corner = []
    for axis in (0, 1):
        middle = float(small.sum(axis=1 - axis) @ np.arange(small.shape[axis])) / total
        corner.append(min(max(round(SIDE / 2 - middle), 0), SIDE - small.shape[axis]))
    image[corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = small
    return image


def draw_text(text: str, font: Path, *, bold: int = 0) -> NDArray[np.uint8]:
    """Draw white text on black; `bold` widens its strokes on both sides, in pixels of the canvas."""
    image = Image.new("L", (CANVAS * len(text), CANVAS))
    centre = image.width / 2, image.height / 2
    ImageDraw.Draw(image).text(
        centre, text, fill=255, font=_font(str(font), FONT_SIZE), anchor="mm", stroke_width=bold
    )
    return np.asarray(image)


@cache
def fonts() -> list[Path]:
    """Return the text fonts that matplotlib ships."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return sorted(path for pattern in FONTS for path in folder.glob(pattern) if "Display" not in path.name)


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _letter(random: np.random.Generator, digits: Images) -> NDArray[np.uint8]:  # noqa: ARG001
    return _typed(random, LETTERS if random.random() < 0.8 else SIGNS)


def _typed(random: np.random.Generator, characters: str) -> NDArray[np.uint8]:
    text = characters[random.integers(len(characters))]
    return to_mnist(draw_text(text, fonts()[random.integers(len(fonts()))], bold=int(random.integers(4))))


def _pair(random: np.random.Generator, digits: Images) -> NDArray[np.uint8]:
    """Two digits next to each other, from overlapping by 6 pixels to 6 apart, at different heights."""
    canvas = np.zeros((40, 64), np.uint8)
    first, second = digits[random.integers(len(digits), size=2)]
    right = int(np.nonzero(first.any(axis=0))[0].max(initial=0)) + 1
    left = int(np.nonzero(second.any(axis=0))[0].min(initial=SIDE))
    canvas[6 : 6 + SIDE, :SIDE] = first
    column = max(0, right - left + int(random.integers(-6, 7)))
    row = 6 + int(random.integers(-3, 4))
    part = canvas[row : row + SIDE, column : column + SIDE]
    np.maximum(part, second[:, : part.shape[1]], out=part)
    return to_mnist(canvas)


def _scribble(random: np.random.Generator, digits: Images) -> NDArray[np.uint8]:  # noqa: ARG001
    """A pen that changes direction at random, lifted up to twice."""
    image = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(image)
    width = int(random.integers(4, 14))
    for _ in range(int(random.integers(1, 4))):
        steps = int(random.integers(12, 60))
        wander, step = random.uniform(0.2, 1.2), random.uniform(3, 9)
        angles = random.uniform(0, 2 * math.pi) + np.cumsum(random.normal(0, wander, steps))
        path = random.uniform(24, 72, 2) + np.cumsum(step * np.stack([np.cos(angles), np.sin(angles)], 1), 0)
        path = (
            CANVAS - 6 - np.abs(CANVAS - 12 - np.abs(path - 6) % (2 * CANVAS - 24))
        )  # reflected at the edge
        pen.line([(float(x), float(y)) for x, y in path], fill=255, width=width, joint="curve")
    return to_mnist(np.asarray(image))


def _shape(random: np.random.Generator, digits: Images) -> NDArray[np.uint8]:  # noqa: ARG001
    """One to three polygons or ellipses, filled or outlined, some with a texture."""
    image = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(image)
    for _ in range(int(random.integers(1, 4))):
        fill = int(random.integers(100, 256)) if random.random() < 0.7 else None
        width = int(random.integers(3, 12))
        if random.random() < 0.3:
            (left, right), (top, bottom) = np.sort(random.uniform(0, CANVAS, (2, 2)), axis=1).tolist()
            pen.ellipse((left, top, right + 6, bottom + 6), fill=fill, outline=255, width=width)
        else:
            points = random.uniform(0, CANVAS, (int(random.integers(3, 8)), 2))
            pen.polygon([(float(x), float(y)) for x, y in points], fill=fill, outline=255, width=width)
    found = np.asarray(image)
    if random.random() < 0.5:
        found = (found * _texture(random, CANVAS)).astype(np.uint8)
    return to_mnist(found)


def _noise(random: np.random.Generator, digits: Images) -> NDArray[np.uint8]:  # noqa: ARG001
    """Noise from single pixels to blobs of 9 pixels, of any contrast, or thresholded."""
    field = _texture(random, SIDE)
    if random.random() < 0.5:
        field = (field > random.uniform(0.2, 0.95)).astype(np.float64)
    return (255 * random.uniform(0.2, 1) * field).astype(np.uint8)


def _texture(random: np.random.Generator, side: int) -> NDArray[np.float64]:
    """Smooth noise `[side, side]` between 0 and 1."""
    grain = int(random.integers(1, 10))
    coarse = random.integers(0, 256, (-(-side // grain),) * 2, dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float64) / 255


def _empty(random: np.random.Generator, digits: Images) -> NDArray[np.uint8]:  # noqa: ARG001
    """A field without ink: one level, a gradient, specks, an edge or ruled lines."""
    slope = random.normal(0, 4, 2) * (random.random() < 0.5)
    rows, columns = np.mgrid[-14:14, -14:14]
    level = random.uniform(0, 255) * (random.random() < 0.5)
    field = (
        level + rows * slope[0] + columns * slope[1] + random.normal(0, random.uniform(0, 8), (SIDE, SIDE))
    )
    kind = int(random.integers(4))
    if kind == 1:
        for row, column in random.integers(0, SIDE - 2, (int(random.integers(1, 6)), 2)):
            height, width = random.integers(1, 3, 2)
            field[row : row + height, column : column + width] += random.uniform(60, 255)
    elif kind > 1:
        places = random.integers(0, SIDE, 1 if kind == 2 else int(random.integers(2, 5)))
        for place in places:
            field[place : place + int(random.integers(1, 4))] += random.uniform(60, 255)
        field = field.T if random.random() < 0.5 else field
    image: NDArray[np.uint8] = field.clip(0, 255).astype(np.uint8)
    return image


KINDS: dict[str, Draw] = {
    "letters": _letter,
    "pairs": _pair,
    "scribbles": _scribble,
    "shapes": _shape,
    "noise": _noise,
    "empty": _empty,
}
