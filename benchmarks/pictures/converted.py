"""Pictures drawn and converted in a process of its own."""

import io
import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.pictures.kinds import KINDS
from serving.codecs.errors import InvalidPicture
from serving.codecs.image import decode_pictures

MAX_PIXELS = 50_000_000


class Converted(NamedTuple):
    """A picture as the models see it."""

    image: NDArray[np.uint8]
    """`uint8 [28, 28]`; empty if the picture was rejected."""
    rejected: bool
    pixels: int
    milliseconds: float
    """CPU time of decoding and converting."""


def convert(
    kind: str, digits: NDArray[np.uint8], labels: Sequence[int], first: int, seed: int
) -> list[Converted]:
    """Draw and convert `uint8 [N, 28, 28]` with their labels, the digits from number `first` on."""
    pairs = zip(digits, labels, strict=True)
    return [_convert(*picture_of(kind, *pair, first + index, seed)) for index, pair in enumerate(pairs)]


def picture_of(kind: str, digit: NDArray[np.uint8], label: int, number: int, seed: int) -> tuple[bytes, str]:
    """Draw one digit; the same for the same number and seed."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
    return KINDS[kind].draw(digit if KINDS[kind].of_mnist else label, rng)


def _convert(content: bytes, _: str) -> Converted:
    with Image.open(io.BytesIO(content)) as picture:
        pixels = picture.width * picture.height
    begun = time.thread_time()
    try:
        (image,) = decode_pictures([("picture", content)], MAX_PIXELS)
    except InvalidPicture:
        image = None
    milliseconds = (time.thread_time() - begun) * 1000
    return Converted(
        np.zeros((28, 28), np.uint8) if image is None else image, image is None, pixels, milliseconds
    )
