"""Convert a PNG or JPEG of a digit to an image as in MNIST.

Light ink on a black background, cropped to the ink, scaled to fit 20×20 with its aspect ratio, and placed so that the
ink's centre of mass is the centre of a 28×28 image (LeCun, Cortes, Burges, *The MNIST database*).

A picture of 28×28 pixels is used unchanged.
"""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, ImageStat

from serving.codecs.errors import InvalidPicture, TooManyPixels
from serving.model.tensors import SIDE, Images

Plane = NDArray[np.uint8]
"""`uint8 [H, W]`"""

Image.MAX_IMAGE_PIXELS = None  # Pillow only warns; `decode_pictures` rejects

_BOX = 20
_WORKING_SIDE = 256  # larger pictures are scaled down to this first
_NOISY_SIDE = 64  # smaller pictures were drawn, not photographed, and have no noise to remove
_MIN_CONTRAST = 24  # of 255, between ink and background; less is paper, noise or an empty picture
_TRACE = 20  # of 255; weaker ink is blur around the digit
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""What Pillow raises on damaged files."""


def decode_pictures(files: Sequence[tuple[str, bytes]], max_pixels: int) -> Images:
    """Decode named PNG or JPEG files to `uint8 [N, 28, 28]`.

    All headers are read before any pixel is decoded. Raises `TooManyPixels` when they declare more than `max_pixels`
    together, `InvalidPicture` for a file that is not a picture, is damaged or shows no ink.
    """
    pictures = []
    left = max_pixels
    for name, content in files:
        picture = _open(name, content)
        left -= picture.width * picture.height
        if left < 0:
            raise TooManyPixels(
                f"{name} is {picture.width}×{picture.height}; one request may carry {max_pixels:,} pixels"
            )
        pictures.append((name, picture))
    return np.stack([_to_mnist(name, picture) for name, picture in pictures])


def _open(name: str, content: bytes) -> Image.Image:
    """Read a picture's header, without decoding pixels."""
    try:
        return Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except _BROKEN:
        found = f"{len(content)} bytes starting with {content[:8]!r}" if content else "empty"
        raise InvalidPicture(f"{name} is not a PNG or JPEG: it is {found}") from None


def _to_mnist(name: str, picture: Image.Image) -> Plane:
    """Convert one picture to `uint8 [28, 28]`, light ink on black."""
    try:
        if picture.format == "JPEG":
            picture.draft(None, (_WORKING_SIDE, _WORKING_SIDE))
        flat = _flatten(ImageOps.exif_transpose(picture))
    except _BROKEN as error:
        raise InvalidPicture(f"{name} is incomplete or damaged: {error}") from None
    if flat.size == (SIDE, SIDE):
        return np.asarray(flat.convert("L"))
    flat.thumbnail((_WORKING_SIDE, _WORKING_SIDE))
    if min(flat.size) > _NOISY_SIDE:
        flat = flat.filter(ImageFilter.MedianFilter(3))
    ink = _ink(np.atleast_3d(np.asarray(flat)))
    if ink is None:
        raise InvalidPicture(f"{name} shows no digit: the contrast between ink and background is too low")
    return _centre(_fit(_crop(ink)))


def _flatten(picture: Image.Image) -> Image.Image:
    """Decode to 8-bit grey or RGB without transparency."""
    if picture.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        red, green, blue, alpha = picture.split()
        colour = Image.merge("RGB", (red, green, blue))
        ink_is_light = ImageStat.Stat(colour.convert("L"), mask=alpha).mean[0] > 127
        background = Image.new("RGB", picture.size, "black" if ink_is_light else "white")
        return Image.composite(colour, background, alpha)
    return picture.convert("L" if picture.mode in {"1", "L"} else "RGB")


def _ink(levels: NDArray[np.uint8]) -> Plane | None:
    """Distance of each pixel of `uint8 [H, W, C]` from the background, scaled to 0–255; None without ink.

    The background is the median colour of the picture's edge, so it may be dark or light, grey or coloured; variation
    along the edge is treated as the background's texture.
    """
    height, width, channels = levels.shape
    on_edge = np.ones((height, width), bool)
    on_edge[1:-1, 1:-1] = False
    background = np.median(levels[on_edge].reshape(-1, channels), axis=0)
    distance = np.abs(levels - background.astype(np.int16)).max(axis=2)
    contrast = int(distance.max())
    if contrast < _MIN_CONTRAST:
        return None
    texture = min(2 * np.quantile(distance[on_edge], 0.9), contrast / 2)
    ink: Plane = np.where(distance > texture, distance * 255 // contrast, 0).astype(np.uint8)
    return ink


def _crop(ink: Plane) -> Plane:
    """Crop to the bounding box of every pixel with more than a trace of ink."""
    rows, columns = np.nonzero(ink > _TRACE)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _fit(ink: Plane) -> Plane:
    """Scale the longer side to 20 pixels, the shorter one in proportion, and the strongest ink to 255."""
    height, width = ink.shape
    scale = _BOX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    fitted = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC), np.float32)
    stretched: Plane = (fitted * (255 / max(fitted.max(), 1))).astype(np.uint8)
    return stretched


def _centre(ink: Plane) -> Plane:
    """Place in a 28×28 image, with the centre of mass in the middle as far as the image allows."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (
        min(max(round(SIDE / 2 - _middle(ink.sum(axis=1 - axis))), 0), SIDE - ink.shape[axis])
        for axis in (0, 1)
    )
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image


def _middle(weights: NDArray[np.uint64]) -> float:
    """Centre of mass along one axis, in pixels; that of MNIST's digits is pixel 14 of 0–27."""
    return float(np.average(np.arange(len(weights)), weights=weights))
