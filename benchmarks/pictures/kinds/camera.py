"""What cameras and scanners do to a picture: noise, focus, compression, distance, orientation, file modes."""

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from benchmarks.pictures.random_sheet import (
    Digit,
    File,
    half_plane,
    photo,
    random_pen,
    random_place,
    random_sheet,
    random_size,
    written,
)
from benchmarks.pictures.sheet import jpeg, png
from benchmarks.pictures.strokes import Place, draw


def noise(digit: Digit, rng: Generator) -> File:
    """A dark room: strong noise of the sensor."""
    return photo(written(digit, rng), (10, 24))


def blurred(digit: Digit, rng: Generator) -> File:
    """Out of focus, or moved."""
    sheet = written(digit, rng)
    deviation = rng.uniform(0.005, 0.018) * min(sheet.size)
    sheet.levels = ndimage.gaussian_filter(sheet.levels, (deviation, deviation * rng.uniform(0.5, 1), 0))
    return photo(sheet)


def compressed(digit: Digit, rng: Generator) -> File:
    """JPEG of low quality."""
    sheet = written(digit, rng)
    sheet.grain(2)
    return jpeg(sheet.image(), int(rng.integers(8, 30)))


def distant(digit: Digit, rng: Generator) -> File:
    """A small digit on a large sheet, anywhere."""
    sheet = random_sheet(rng, random_size(rng, 480, 1024))
    place = random_place(rng, sheet.size, (0.08, 0.2))
    sheet.ink(draw(digit, place, sheet.size), random_pen(rng))
    return photo(sheet)


def cropped(digit: Digit, rng: Generator) -> File:
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
    sheet = random_sheet(rng, ink.shape)
    sheet.ink(ink, random_pen(rng))
    return photo(sheet, (0.5, 2))


def rotated_exif(digit: Digit, rng: Generator) -> File:
    """Stored sideways or upside down, with the orientation in EXIF as phones do it."""
    sheet = written(digit, rng)
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


def modes(digit: Digit, rng: Generator) -> File:
    """Files as scanners and printers make them: CMYK, 16 bits, palettes, one bit."""
    sheet = written(digit, rng)
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


def phone(digit: Digit, rng: Generator) -> File:
    """12 megapixels: uneven light, a shadow, noise, the digit on 15 to 60 % of the height."""
    small = random_sheet(rng, (756, 1008))
    place = random_place(rng, small.size, (0.15, 0.6), degrees=10)
    small.ink(draw(digit, place, small.size), random_pen(rng))
    small.light(1 - half_plane(small, 40) * np.float32(rng.uniform(0, 0.4)))
    image = small.image().resize((4032, 3024), Image.Resampling.BICUBIC)
    levels = np.asarray(image, np.int16)
    levels = levels + np.tile(rng.normal(0, rng.uniform(2, 8), (756, 1008, 1)).astype(np.int16), (4, 4, 1))
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    if rng.random() < 0.5:
        exif[0x0112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    return jpeg(image, 85, exif=exif)
