"""The kinds of pictures users send; every parameter is drawn from a range.

    content, media_type = KINDS["vignette"].draw(digit, numpy.random.default_rng(0))

`digit` is `uint8 [28, 28]`, light on black, as in MNIST.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from benchmarks.pictures.sheet import Sheet, jpeg, png
from benchmarks.pictures.strokes import Ink, Place, draw

Digit = NDArray[np.uint8]
File = tuple[bytes, str]
"""Content and media type."""
Colour = tuple[float, float, float]
CANVAS = Path(__file__).with_name("canvas")
FONTS = [
    str(path)
    for path in sorted(Path(mpl.get_data_path(), "fonts/ttf").glob("*.ttf"))
    if re.match(r"DejaVu(Sans|Serif)|STIXGeneral|cm(r|ss|tt|b)10", path.stem) and "Display" not in path.stem
]


class Kind(NamedTuple):
    """A kind of picture."""

    description: str
    draw: Callable[[Any, Generator], File]
    """From a digit of MNIST; or, if not `of_mnist`, from its label alone."""
    of_mnist: bool = True


def _size(rng: Generator, least: int = 240, most: int = 640) -> tuple[int, int]:
    """Height and width of a picture, up to 4:3 in either direction."""
    long = int(rng.integers(least, most + 1))
    short = int(long * rng.uniform(0.75, 1))
    return (long, short) if rng.random() < 0.5 else (short, long)


def _place(
    rng: Generator, size: tuple[int, int], share: tuple[float, float] = (0.35, 0.75), degrees: float = 6
) -> Place:
    """Draw a place where the whole digit is on the sheet; `share` is its height relative to the shorter side."""
    height = rng.uniform(*share) * min(size)
    room = [max(0.0, (side - height * 1.08) / 2 - 3) for side in size]
    centre = [side / 2 + rng.uniform(-space, space) * 0.8 for side, space in zip(size, room, strict=True)]
    return Place(height, (centre[0], centre[1]), rng.uniform(-degrees, degrees))


def _grey(rng: Generator, low: float, high: float, tint: float = 6) -> Colour:
    level = rng.uniform(low, high)
    red, green, blue = level + rng.uniform(-tint, tint, 3)
    return float(red), float(green), float(blue)


def _sheet(rng: Generator, size: tuple[int, int] | None = None) -> Sheet:
    return Sheet.of(rng, size or _size(rng), _grey(rng, 215, 250))


def pen(rng: Generator) -> Colour:
    """Black, blue, or dark grey ink."""
    return (
        _grey(rng, 10, 70)
        if rng.random() < 0.6
        else (rng.uniform(10, 50), rng.uniform(20, 70), rng.uniform(90, 170))
    )


def _written(digit: Digit, rng: Generator, sheet: Sheet | None = None) -> Sheet:
    """Write the digit on the sheet, with a little of the camera's noise to follow."""
    sheet = sheet or _sheet(rng)
    sheet.ink(draw(digit, _place(rng, sheet.size), sheet.size), pen(rng))
    return sheet


def photo(sheet: Sheet, noise: tuple[float, float] = (1, 4)) -> File:
    """Add the sensor's noise and encode as JPEG."""
    sheet.grain(sheet.rng.uniform(*noise))
    return jpeg(sheet.image(), int(sheet.rng.integers(75, 95)))


def ruled_or_plain(rng: Generator, size: tuple[int, int]) -> Sheet:
    """Return a sheet of (height, width) pixels: plain, lined or squared."""
    sheet = _sheet(rng, size)
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
            edge = _half_plane(sheet, rng.uniform(0.01, 0.1) * min(sheet.size))
            sheet.light(1 - edge * np.float32(rng.uniform(0.1, 0.5)))


def _light_on_dark(digit: Digit, rng: Generator) -> File:
    size = _size(rng)
    return png(Image.fromarray((draw(digit, _place(rng, size, degrees=0), size) * 255).astype(np.uint8)))


def _dark_on_light(digit: Digit, rng: Generator) -> File:
    size = _size(rng)
    return png(
        Image.fromarray((255 - draw(digit, _place(rng, size, degrees=0), size) * 255).astype(np.uint8))
    )


def _mnist(digit: Digit, rng: Generator) -> File:  # noqa: ARG001 - there is nothing to draw
    return png(Image.fromarray(digit))


def _mnist_inverted(digit: Digit, rng: Generator) -> File:  # noqa: ARG001
    return png(Image.fromarray(255 - digit))


def _thumbnail(digit: Digit, rng: Generator) -> File:
    """A paint program's smallest canvas: 28×28, dark on white, neither centred nor scaled as in MNIST."""
    place = Place(rng.uniform(14, 25), (14 + rng.uniform(-1.5, 1.5), 14 + rng.uniform(-1.5, 1.5)))
    return png(Image.fromarray((255 - draw(digit, place, (28, 28)) * 255).astype(np.uint8)))


def _small(digit: Digit, rng: Generator) -> File:
    """From 32 to 96 pixels, either polarity."""
    side = int(rng.integers(32, 97))
    ink = draw(digit, _place(rng, (side, side), (0.5, 0.8), degrees=0), (side, side)) * 255
    return png(Image.fromarray((ink if rng.random() < 0.5 else 255 - ink).astype(np.uint8)))


def _colours(digit: Digit, rng: Generator) -> File:
    """Two colours anywhere in the cube that differ by at least 60 in some channel."""
    while True:
        paper, ink = rng.uniform(0, 255, (2, 3))
        if np.abs(paper - ink).max() > 60:
            break
    sheet = Sheet.of(rng, _size(rng), tuple(paper))
    sheet.ink(draw(digit, _place(rng, sheet.size), sheet.size), tuple(ink))
    return png(sheet.image()) if rng.random() < 0.5 else photo(sheet, (0, 2))


def _transparent(digit: Digit, rng: Generator) -> File:
    """The ink alone, everything else transparent, as browsers' canvases save it."""
    size = _size(rng)
    alpha = draw(digit, _place(rng, size), size) * 255
    levels = np.zeros((*size, 4), np.uint8)
    levels[..., :3] = _grey(rng, 0, 60, 0) if rng.random() < 0.7 else _grey(rng, 200, 255, 0)
    levels[..., :3] *= alpha[..., None] > 0
    levels[..., 3] = alpha
    return png(Image.fromarray(levels))


def _pencil(digit: Digit, rng: Generator) -> File:
    """Grey strokes with the paper's grain showing through."""
    sheet = _sheet(rng)
    width = rng.uniform(0.02, 0.05) * min(sheet.size)
    coverage = draw(digit, _place(rng, sheet.size), sheet.size, width=width)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, sheet.size), 0.8).astype(np.float32)
    coverage *= np.clip(0.75 + grain * rng.uniform(0.3, 0.8), 0.1, 1)
    sheet.ink(coverage, _grey(rng, 90, 150, 3))
    return photo(sheet)


def _chalk(digit: Digit, rng: Generator) -> File:
    """White on a blackboard that was wiped."""
    board = (
        _grey(rng, 35, 75)
        if rng.random() < 0.5
        else (rng.uniform(20, 45), rng.uniform(55, 85), rng.uniform(40, 65))
    )
    sheet = Sheet.of(rng, _size(rng), board)
    wiped = ndimage.gaussian_filter(rng.normal(0, 1, sheet.size), (6, 25)).astype(np.float32)
    sheet.levels += (wiped / np.abs(wiped).max() * rng.uniform(5, 14))[..., None]
    coverage = draw(digit, _place(rng, sheet.size), sheet.size)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, sheet.size), 0.8).astype(np.float32)
    sheet.ink(coverage * np.clip(0.85 + grain * rng.uniform(0.3, 0.7), 0.2, 1), _grey(rng, 200, 245))
    return photo(sheet)


def _pen_of(low: float, high: float) -> Callable[[Digit, Generator], File]:
    """Strokes of a width between `low` and `high` of the digit's height."""

    def write(digit: Digit, rng: Generator) -> File:
        sheet = _sheet(rng)
        place = _place(rng, sheet.size)
        ink = draw(digit, place, sheet.size, width=rng.uniform(low, high) * place.height)
        sheet.ink(ink, pen(rng))
        return photo(sheet, (0.5, 2))

    return write


def _hairline(digit: Digit, rng: Generator) -> File:
    """Strokes of one to two pixels, as the thinnest brush of a drawing program makes them."""
    size = _size(rng, 200, 480)
    ink = draw(digit, _place(rng, size, degrees=0), size, width=rng.uniform(1, 2)) * 255
    return png(Image.fromarray((ink if rng.random() < 0.3 else 255 - ink).astype(np.uint8)))


def _paper(*, squared: bool) -> Callable[[Digit, Generator], File]:
    def paper(digit: Digit, rng: Generator) -> File:
        sheet = _sheet(rng)
        spacing = rng.uniform(0.05 if squared else 0.08, 0.2) * min(sheet.size)
        light = rng.uniform(140, 200)
        colour = (light, light + 10, 225) if rng.random() < 0.7 else (light, light, light)
        sheet.lines(spacing, colour, squared=squared, width=rng.uniform(1, 2.5))
        return photo(_written(digit, rng, sheet))

    return paper


def _towards(corner: tuple[float, float], centre: tuple[float, float], by: float) -> tuple[float, float]:
    x, y = (place + np.sign(middle - place) * by for place, middle in zip(corner, centre, strict=True))
    return float(x), float(y)


def _form(digit: Digit, rng: Generator) -> File:
    """A form's printed box around the digit."""
    sheet = _sheet(rng)
    place = _place(rng, sheet.size, (0.3, 0.55))
    sheet.ink(draw(digit, place, sheet.size), pen(rng))
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
    sheet.ink(np.clip(sheet.polygon(corners) - sheet.polygon(inner), 0, 1), _grey(rng, 20, 120))
    return photo(sheet)


def _vignette(digit: Digit, rng: Generator) -> File:
    """A flash or a lens: the corners get a third to two thirds of the middle's light."""
    sheet = _written(digit, rng)
    height, width = sheet.size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    middle = [side * rng.uniform(0.4, 0.6) for side in sheet.size]
    away = np.hypot(rows - middle[0], columns - middle[1])
    sheet.light((1 - rng.uniform(0.33, 0.67) * (away / away.max()) ** rng.uniform(1.6, 3)).astype(np.float32))
    return photo(sheet)


def _side_light(digit: Digit, rng: Generator) -> File:
    """Light from one side: the far side gets 35 to 60 % of it."""
    sheet = _written(digit, rng)
    rows, columns = np.mgrid[: 1 : sheet.size[0] * 1j, : 1 : sheet.size[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    along = (along - along.min()) / np.ptp(along)
    sheet.light((1 - (1 - rng.uniform(0.35, 0.6)) * along).astype(np.float32))
    return photo(sheet)


def _half_plane(sheet: Sheet, blur: float) -> Ink:
    """1 on one side of a line through the middle third of the picture."""
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


def _shadow(low: float, high: float) -> Callable[[Digit, Generator], File]:
    """The edge of a shadow across the picture, blurred by this share of its shorter side."""

    def shadow(digit: Digit, rng: Generator) -> File:
        sheet = _written(digit, rng)
        edge = _half_plane(sheet, max(0.7, rng.uniform(low, high) * min(sheet.size)))
        sheet.light(1 - edge * np.float32(1 - rng.uniform(0.45, 0.75)))
        return photo(sheet)

    return shadow


def _table(digit: Digit, rng: Generator) -> File:
    """A sheet on a dark table that is visible along one to three of its edges."""
    size = _size(rng)
    sheet = Sheet.of(rng, size, _grey(rng, 215, 250))
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
    place = _place(rng, size, (0.35, 0.55))
    middle = ((max(top, 0) + height - max(bottom, 0)) / 2, (max(left, 0) + width - max(right, 0)) / 2)
    sheet.ink(draw(digit, place._replace(centre=middle), size), pen(rng))
    table = (
        (rng.uniform(50, 110), rng.uniform(35, 75), rng.uniform(15, 50))
        if rng.random() < 0.6
        else _grey(rng, 20, 70)
    )
    sheet.ink(1 - sheet.polygon(corners), table)
    return photo(sheet)


def _specks(digit: Digit, rng: Generator) -> File:
    """Dust: three to twelve dots of up to 1.2 % of the picture's side."""
    sheet = _written(digit, rng)
    for _ in range(int(rng.integers(3, 13))):
        radius = max(0.8, rng.uniform(0.002, 0.006) * max(sheet.size))
        row, column = rng.uniform(0, 1, 2) * sheet.size
        angles = np.linspace(0, 2 * np.pi, 9)[:-1]
        corners = [(column + radius * np.cos(one), row + radius * np.sin(one)) for one in angles]
        sheet.ink(sheet.polygon(corners), _grey(rng, 20, 110))
    return photo(sheet)


def _staple(digit: Digit, rng: Generator) -> File:
    """A staple, or a hole for a binder, near a corner or an edge."""
    sheet = _sheet(rng)
    short = min(sheet.size)
    place = _place(rng, sheet.size, (0.35, 0.6))
    sheet.ink(draw(digit, place, sheet.size), pen(rng))
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
        sheet.ink(sheet.polygon([(column + x, row + y) for x, y in corners]), _grey(rng, 90, 150))
    else:
        radius = short * rng.uniform(0.025, 0.04)
        angles = np.linspace(0, 2 * np.pi, 25)[:-1]
        sheet.ink(
            sheet.polygon([(column + radius * np.cos(one), row + radius * np.sin(one)) for one in angles]),
            _grey(rng, 20, 80),
        )
    return photo(sheet)


def _noise(digit: Digit, rng: Generator) -> File:
    """A dark room: strong noise of the sensor."""
    return photo(_written(digit, rng), (10, 24))


def _blurred(digit: Digit, rng: Generator) -> File:
    """Out of focus, or moved."""
    sheet = _written(digit, rng)
    deviation = rng.uniform(0.005, 0.018) * min(sheet.size)
    sheet.levels = ndimage.gaussian_filter(sheet.levels, (deviation, deviation * rng.uniform(0.5, 1), 0))
    return photo(sheet)


def _compressed(digit: Digit, rng: Generator) -> File:
    sheet = _written(digit, rng)
    sheet.grain(2)
    return jpeg(sheet.image(), int(rng.integers(8, 30)))


def _faint(digit: Digit, rng: Generator) -> File:
    """A pen that runs dry, or a bad copy: little contrast."""
    sheet = _sheet(rng)
    paper = float(sheet.levels[0, 0].mean())
    sheet.ink(draw(digit, _place(rng, sheet.size), sheet.size), _grey(rng, paper - 80, paper - 45, 3))
    return photo(sheet, (0.5, 3))


def _distant(digit: Digit, rng: Generator) -> File:
    """A small digit on a large sheet, anywhere."""
    sheet = _sheet(rng, _size(rng, 480, 1024))
    place = _place(rng, sheet.size, (0.08, 0.2))
    sheet.ink(draw(digit, place, sheet.size), pen(rng))
    return photo(sheet)


def _cropped(digit: Digit, rng: Generator) -> File:
    """Cut out along the digit's bounding box, with a margin of at most two pixels."""
    height = int(rng.integers(60, 400))
    big = height * 2, height * 2
    ink = draw(digit, Place(height, (height, height)), big)
    rows, columns = np.nonzero(ink > 0.3)
    margin = int(rng.integers(0, 3))
    window = np.s_[
        rows.min() - margin : rows.max() + 1 + margin, columns.min() - margin : columns.max() + 1 + margin
    ]
    ink = np.ascontiguousarray(ink[window])
    if min(ink.shape) < 12:  # a 1 cut along its stroke shows nothing but ink
        ink = np.pad(ink, ((0, 0), (height // 8, height // 8)))
    sheet = _sheet(rng, ink.shape)
    sheet.ink(ink, pen(rng))
    return photo(sheet, (0.5, 2))


def _rotated_exif(digit: Digit, rng: Generator) -> File:
    """Stored sideways or upside down, with the orientation in EXIF as phones do it."""
    sheet = _written(digit, rng)
    sheet.grain(2)
    image = sheet.image()
    orientation, method = (
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    )[int(rng.integers(3))]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image.transpose(method), exif=exif)


def _modes(digit: Digit, rng: Generator) -> File:
    """Files as scanners and printers make them: CMYK, 16 bits, palettes, one bit."""
    sheet = _written(digit, rng)
    image = sheet.image()
    match int(rng.integers(4)):
        case 0:
            return jpeg(image.convert("CMYK"))
        case 1:
            return png(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257))
        case 2:
            return png(image.quantize(16))
        case _:
            return png(image.convert("1", dither=Image.Dither.NONE))


def _phone(digit: Digit, rng: Generator) -> File:
    """12 megapixels: uneven light, a shadow, noise, the digit on 15 to 60 % of the height."""
    small = _sheet(rng, (756, 1008))
    place = _place(rng, small.size, (0.15, 0.6), degrees=10)
    small.ink(draw(digit, place, small.size), pen(rng))
    small.light(1 - _half_plane(small, 40) * np.float32(rng.uniform(0, 0.4)))
    image = small.image().resize((4032, 3024), Image.Resampling.BICUBIC)
    levels = np.asarray(image, np.int16)
    levels = levels + np.tile(rng.normal(0, rng.uniform(2, 8), (756, 1008, 1)).astype(np.int16), (4, 4, 1))
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    if rng.random() < 0.5:
        exif[0x0112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    return jpeg(image, 85, exif=exif)


def _everything(digit: Digit, rng: Generator) -> File:
    """Lines or squares, a vignette, a shadow, specks and noise at once, each mild."""
    sheet = _sheet(rng)
    sheet.lines(rng.uniform(0.08, 0.2) * min(sheet.size), (190, 200, 225), squared=rng.random() < 0.5)
    sheet.ink(draw(digit, _place(rng, sheet.size), sheet.size), pen(rng))
    for _ in range(3):
        row, column = rng.uniform(0, 1, 2) * sheet.size
        radius = 0.003 * max(sheet.size)
        corners = [
            (column - radius, row),
            (column, row - radius),
            (column + radius, row),
            (column, row + radius),
        ]
        sheet.ink(sheet.polygon(corners), _grey(rng, 40, 110))
    sheet.light(
        1 - _half_plane(sheet, rng.uniform(0.01, 0.1) * min(sheet.size)) * np.float32(rng.uniform(0.1, 0.35))
    )
    rows, columns = np.mgrid[-1 : 1 : sheet.size[0] * 1j, -1 : 1 : sheet.size[1] * 1j]
    sheet.light((1 - rng.uniform(0.1, 0.35) * (rows**2 + columns**2) / 2).astype(np.float32))
    return photo(sheet, (2, 6))


def _typed(label: int, rng: Generator) -> File:
    """A digit in one of the fonts that matplotlib ships: DejaVu, STIX and Computer Modern."""
    size = _size(rng)
    font = ImageFont.truetype(FONTS[int(rng.integers(len(FONTS)))], int(rng.uniform(0.4, 0.8) * min(size)))
    mask = Image.new("L", size[::-1])
    middle = size[1] * rng.uniform(0.4, 0.6), size[0] * rng.uniform(0.4, 0.6)
    ImageDraw.Draw(mask).text(middle, str(label), 255, font, anchor="mm")
    sheet = _sheet(rng, size)
    sheet.ink(np.asarray(mask, np.float32) / np.float32(255), pen(rng))
    return photo(sheet)


def _canvas(label: int, rng: Generator) -> File:
    """Drawn with the mouse on a canvas in Chromium: committed files, five of each digit."""
    files = sorted(CANVAS.glob(f"{label}-*.png"))
    return files[int(rng.integers(len(files)))].read_bytes(), "image/png"


KINDS = {
    "light on dark": Kind("white ink on black, any size and place", _light_on_dark),
    "dark on light": Kind("black ink on white, any size and place", _dark_on_light),
    "MNIST": Kind("a test digit as it is, 28×28", _mnist),
    "MNIST inverted": Kind("a test digit in black on white, 28×28", _mnist_inverted),
    "paint 28×28": Kind("28×28, black on white, neither centred nor scaled", _thumbnail),
    "32–96 pixels": Kind("small pictures in either polarity", _small),
    "two colours": Kind("any two colours 60 levels apart", _colours),
    "transparent": Kind("ink on a transparent background", _transparent),
    "faint": Kind("45 to 80 levels of contrast", _faint),
    "hairline": Kind("strokes of one to two pixels", _hairline),
    "thin pen": Kind("strokes of 2 to 4 % of the digit's height", _pen_of(0.02, 0.04)),
    "marker": Kind("strokes of 12 to 20 % of the digit's height", _pen_of(0.12, 0.2)),
    "pencil": Kind("grey, grainy strokes", _pencil),
    "chalk": Kind("grainy white on a wiped board", _chalk),
    "lined paper": Kind("lines 8 to 20 % apart", _paper(squared=False)),
    "squared paper": Kind("squares of 5 to 20 %", _paper(squared=True)),
    "form": Kind("a printed box around the digit", _form),
    "vignette": Kind("corners with 33 to 67 % less light", _vignette),
    "side light": Kind("35 to 60 % of the light at the far side", _side_light),
    "hard shadow": Kind("the sharp edge of a shadow across the picture", _shadow(0, 0.004)),
    "soft shadow": Kind("a blurred edge of a shadow", _shadow(0.02, 0.15)),
    "dark table": Kind("a sheet on a dark table, one to three edges in view", _table),
    "specks": Kind("three to twelve specks of dust", _specks),
    "staple": Kind("a staple or a binder's hole", _staple),
    "noise": Kind("sensor noise of 10 to 24 levels", _noise),
    "blurred": Kind("out of focus by 0.5 to 1.8 % of the side", _blurred),
    "compressed": Kind("JPEG of quality 8 to 30", _compressed),
    "distant": Kind("a digit of 8 to 20 % of the side", _distant),
    "cropped": Kind("cut out along the digit's edge", _cropped),
    "EXIF": Kind("stored rotated, orientation in EXIF", _rotated_exif),
    "file modes": Kind("CMYK, 16 bits, palette, one bit", _modes),
    "phone": Kind("12 megapixels, uneven light", _phone),
    "everything": Kind("lines, vignette, shadow, specks and noise", _everything),
    "typed": Kind("digits of typed fonts: DejaVu, STIX, Computer Modern", _typed, of_mnist=False),
    "canvas": Kind("50 digits drawn with the mouse in a browser", _canvas, of_mnist=False),
}
"""By name; in the order of the report."""
