"""Pictures drawn and converted in a process of its own."""

import io
import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.pictures.kinds.table import KINDS
from benchmarks.pictures.lines import draw_number
from serving.codecs.errors import InvalidPicture
from serving.codecs.pictures.decode import decode_pictures
from serving.codecs.pictures.digit_line import Candidate
from serving.codecs.read import candidates_in

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


class Number(NamedTuple):
    """A line of digits as the models see it."""

    label: str
    candidates: list[Candidate]
    """Empty if the picture was rejected."""
    milliseconds: float
    """CPU time of decoding and of finding the candidates."""


def convert_numbers(
    digits: NDArray[np.uint8], labels: Sequence[int], numbers: range, seed: int, *, touching: bool
) -> list[Number]:
    """Draw numbers of one to six of the digits `uint8 [N, 28, 28]`, and find the candidates for their digits."""
    found = []
    for number in numbers:
        rng = np.random.default_rng([seed, touching, number])
        chosen = rng.integers(len(digits), size=int(rng.integers(2 if touching else 1, 7)))
        content, _ = draw_number([digits[one] for one in chosen], rng, touching=touching)
        begun = time.thread_time()
        try:
            candidates = candidates_in([("picture", content)], MAX_PIXELS)
        except InvalidPicture:
            candidates = []
        milliseconds = (time.thread_time() - begun) * 1000
        found.append(Number("".join(str(labels[one]) for one in chosen), candidates, milliseconds))
    return found


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
