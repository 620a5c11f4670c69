"""Decode picture files to 8-bit pixels; `serving.codecs.pictures.ink` converts those to images as in MNIST.

Memory is limited by the pixels that decoding holds rather than by those that a file declares: most JPEG files are
decoded at a fraction of their size, so a phone's photo takes less than a screenshot. A picture is reduced before it is
converted, in strips, so that its pixels are held once.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageStat,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 - registers the format; `Image.open` would import all plugins instead
)

from serving.codecs.errors import InvalidPicture, TooManyPixels
from serving.codecs.pictures.base64_text import decode_base64
from serving.codecs.pictures.file_types import BASE64, PICTURES, recognise
from serving.codecs.pictures.ink import WORKING_SIDE, to_mnist
from serving.codecs.pictures.jpeg import split_jpeg
from serving.model.tensors import Images

MAX_DECLARED_PIXELS = 64_000_000
"""Per picture, whatever decoding holds: 48- and 50-megapixel photos fit."""

_EXPECTED = "expected PNG, JPEG, WebP, GIF or BMP"
_COPIES = {"WEBP": 4}
"""Pixels held per pixel decoded: libwebp's decoder of animations has three buffers besides the picture."""
_STRIP_ROWS = 32  # after reduction
_MAX_PARTS = 100_000  # read from a file; a PNG of 16 MB in chunks of 8 KB has 8,000
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the value of EXIF's tag Orientation."""

Image.MAX_IMAGE_PIXELS = MAX_DECLARED_PIXELS  # bounds what Pillow allocates while it opens a file
# Pillow warns about every damaged file; the client gets an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

File = tuple[str, bytes]
"""The name of a picture in error messages, and its content."""


class Pixels(NamedTuple):
    """A decoded picture, upright."""

    name: str
    levels: NDArray[np.uint8]
    """`uint8 [H, W]` or `[H, W, 3]`, scaled down."""
    scale: float
    """Pixels of the file per pixel here."""


def decode_pictures(files: Sequence[File], max_pixels: int) -> Images:
    """Decode files in one of the formats `PICTURES` to `uint8 [N, 28, 28]`.

    Raises `TooManyPixels` as `decode_pixels` does, `InvalidPicture` also for a picture that shows no ink.
    """
    images = []
    for name, levels, _ in decode_pixels(files, max_pixels, WORKING_SIDE):
        image = to_mnist(levels)
        if image is None:
            raise no_digit(name)
        images.append(image)
    return np.stack(images)


def no_digit(name: str) -> InvalidPicture:
    """Return the error for a picture without ink."""
    return InvalidPicture(f"{name} shows no digit: the contrast between ink and background is too low")


def decode_pixels(files: Sequence[File], max_pixels: int, side: int) -> Iterator[Pixels]:
    """Decode files in one of the formats `PICTURES`, each scaled down to at most `side` pixels a side.

    Raises `TooManyPixels` when decoding would hold more than `max_pixels`, added up over the files, `InvalidPicture`
    for a file that is not a picture or is damaged.
    """
    left = max_pixels
    for name, content in files:
        picture = _open(name, content, side)
        left -= picture.held
        if left < 0:
            raise TooManyPixels(
                f"{name} is {picture.width}×{picture.height}, for which decoding holds {picture.held:,} pixels; one "
                f"request may hold {max_pixels:,}: scale the picture down, or send it as baseline JPEG"
            )
        levels = _levels(name, picture.image, side)
        yield Pixels(name, levels, max(picture.width, picture.height) / max(levels.shape[:2]))


class _File(io.BytesIO):
    """The content of a file, which may be read in a limited number of parts.

    Pillow parses chunks of PNG and blocks of GIF in Python: millions of empty ones would keep a core busy for seconds.
    """

    parts = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.parts += 1
        if self.parts > _MAX_PARTS:
            raise ValueError(f"it has more than {_MAX_PARTS:,} parts")
        return super().read(size)


class _Picture(NamedTuple):
    """A picture of which only the header has been read."""

    image: Image.Image
    width: int
    height: int
    held: int
    """Pixels in memory during decoding."""


def _open(name: str, content: bytes, side: int) -> _Picture:
    """Read a picture's header. Raises `InvalidPicture`, `TooManyPixels`."""
    kind = recognise(content)
    if kind and kind.name == BASE64:
        content = decode_base64(name, content)
        kind = recognise(content)
    if kind is None:
        found = f"{len(content):,} bytes starting with {content[:8]!r}" if content else "empty"
        raise InvalidPicture(f"{name} is not a picture: it is {found}; {_EXPECTED}")
    if kind.name not in PICTURES:
        raise InvalidPicture(f"{name} is {kind.name}; {kind.fix} ({_EXPECTED})")
    try:
        metadata: dict[str, bytes] = {}
        streamed = False
        if kind.name == "JPEG":
            content, metadata, streamed = split_jpeg(content)
        file = _File(content) if len(content) > _MAX_PARTS else io.BytesIO(content)
        picture = Image.open(file, formats=(kind.name,))
        picture.info.update(metadata)
        width, height = picture.size
        picture.draft(None, (side, side))  # JPEG only
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        width = height = MAX_DECLARED_PIXELS
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly everything on damaged files
        raise _damaged(name, error) from None
    if width * height > MAX_DECLARED_PIXELS:
        raise TooManyPixels(f"{name} has more than {MAX_DECLARED_PIXELS:,} pixels; scale the picture down")
    held = picture.width * picture.height if streamed else width * height
    return _Picture(picture, width, height, held * _COPIES.get(kind.name, 1))


def _levels(name: str, picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """Decode to `uint8 [H, W]` or `[H, W, 3]`, upright and scaled down to `side`."""
    try:
        small = _flatten(_reduce(picture, side))
        small.thumbnail((side, side))
    except Exception as error:  # noqa: BLE001 - as in `_open`
        raise _damaged(name, error) from None
    turn = _turn(picture)
    return np.asarray(small if turn is None else small.transpose(turn))


def _damaged(name: str, error: Exception) -> InvalidPicture:
    reason = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else str(error)[:200]
    return InvalidPicture(f"{name} is incomplete or damaged: {reason or type(error).__name__}")


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """Return what makes the picture upright by its EXIF or XMP; None if that states nothing or cannot be read."""
    try:
        return _UPRIGHT.get(picture.getexif()[_ORIENTATION])
    except Exception:  # noqa: BLE001 - the picture itself is intact
        return None


def _reduce(picture: Image.Image, side: int) -> Image.Image:
    """Decode, and reduce by a whole factor to about twice the working size; in strips what must be converted first."""
    factor = max(picture.size) // (2 * side)
    if factor < 2:
        return _to_8_bits(picture)
    if picture.mode in {"L", "RGB"} and not picture.has_transparency_data:
        return picture.reduce(factor)
    step = factor * _STRIP_ROWS
    strips = [
        _to_8_bits(picture.crop((0, top, picture.width, min(top + step, picture.height)))).reduce(factor)
        for top in range(0, picture.height, step)
    ]
    reduced = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    for index, strip in enumerate(strips):
        reduced.paste(strip, (0, index * _STRIP_ROWS))
    return reduced


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Convert to grey, RGB, or RGBA for a picture with transparency."""
    if picture.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in {"1", "L"} else "RGB")


def _flatten(picture: Image.Image) -> Image.Image:
    """Place a picture with transparency on a background that contrasts with its ink."""
    if picture.mode != "RGBA":
        return picture
    alpha = picture.getchannel("A")
    colour = picture.convert("RGB")
    ink_is_light = ImageStat.Stat(colour.convert("L"), mask=alpha).mean[0] > 127
    background = Image.new("RGB", picture.size, "black" if ink_is_light else "white")
    return Image.composite(colour, background, alpha)
