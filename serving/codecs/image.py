"""Decode PNG and JPEG files to 8-bit pixels; `serving.codecs.ink` converts those to images as in MNIST."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageStat

from serving.codecs.errors import InvalidPicture, TooManyPixels
from serving.codecs.ink import WORKING_SIDE, Plane, to_mnist
from serving.model.tensors import Images

Image.MAX_IMAGE_PIXELS = None  # Pillow only warns; `decode_pictures` rejects

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
    return np.stack([_convert(name, picture) for name, picture in pictures])


def _open(name: str, content: bytes) -> Image.Image:
    """Read a picture's header, without decoding pixels."""
    try:
        return Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except _BROKEN:
        found = f"{len(content)} bytes starting with {content[:8]!r}" if content else "empty"
        raise InvalidPicture(f"{name} is not a PNG or JPEG: it is {found}") from None


def _convert(name: str, picture: Image.Image) -> Plane:
    """Convert one picture to `uint8 [28, 28]`, light ink on black."""
    image = to_mnist(_levels(name, picture))
    if image is None:
        raise InvalidPicture(f"{name} shows no digit: the contrast between ink and background is too low")
    return image


def _levels(name: str, picture: Image.Image) -> NDArray[np.uint8]:
    """Decode to `uint8 [H, W]` or `[H, W, 3]`, scaled down to `WORKING_SIDE`."""
    try:
        if picture.format == "JPEG":
            picture.draft(None, (WORKING_SIDE, WORKING_SIDE))
        flat = _flatten(ImageOps.exif_transpose(picture))
    except _BROKEN as error:
        raise InvalidPicture(f"{name} is incomplete or damaged: {error}") from None
    flat.thumbnail((WORKING_SIDE, WORKING_SIDE))
    return np.asarray(flat)


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
