"""Decode JSON or bytes to images: 28 rows of 28 integers, 784 integers, or base64 of a picture; N·784 bytes.

The common case is validated by `bytes`, which rejects anything outside 0–255 at the speed of C. Only an invalid body
takes the slow path, which finds the invalid value for the error message.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from serving.codecs.bodies.json_text import parse_json
from serving.codecs.errors import (
    InvalidInput,
    InvalidRange,
    InvalidShape,
    InvalidType,
    TooManyImages,
)
from serving.codecs.pictures.base64_text import decode_base64
from serving.codecs.pictures.decode import File
from serving.model.tensors import PIXELS, SIDE, Images

Decoded = TypeVar("Decoded")


def decode_json(
    content: bytes, max_images: int, max_pixels: int, pictures: Callable[[Sequence[File], int], Decoded]
) -> Images | Decoded:
    """Decode {"image": …} or {"images": […]}: numbers to `uint8 [N, 28, 28]`, files in base64 by `pictures`.

    Raises `RequestError` naming the invalid value.
    """
    document = parse_json(content, max_images)
    try:
        ((key, value),) = document.items()
    except (AttributeError, ValueError):
        key = value = None
    match key, value:
        case "image", _:
            values, names = [value], ["image"]
        case "images", [_, *_] if len(value) <= max_images:
            values, names = value, [f"images[{index}]" for index in range(len(value))]
        case "images", [_, *_]:
            raise TooManyImages(f"images holds {len(value)}; one request may carry {max_images}")
        case "images", _:
            raise InvalidType(f"images is {describe(value)}; expected a list of at least one image")
        case _:
            twice = type(document) is str and document.lstrip().startswith("{")
            hint = "; encode the JSON once, not twice" if twice else ""
            raise InvalidInput(
                f'found {describe(document)}; expected an object with either "image" or "images"{hint}'
            )
    if type(values[0]) is str:
        files = [(name, _unbase64(name, value)) for name, value in zip(names, values, strict=True)]
        return pictures(files, max_pixels)
    parts = [image_bytes(value) for value in values]
    if not all(parts) or b"u" in content or b"l" in content:  # true, false: bytes() accepts them as 1 and 0
        for name, value in zip(names, values, strict=True):
            explain_image(name, value)
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, SIDE, SIDE)


def image_bytes(value: Any) -> bytes:
    """Return the 784 bytes of a valid image, none for an invalid one."""
    if type(value) is not list:
        return b""
    try:
        if len(value) == PIXELS:
            return bytes(value)
        if len(value) == SIDE and set(map(len, value)) == {SIDE}:
            return b"".join(map(bytes, value))  # rejects strings and objects, the other types with a length
    except (TypeError, ValueError):
        pass
    return b""


def explain_image(name: str, value: Any) -> None:
    """Raise the `RequestError` for an invalid image; do nothing for a valid one."""
    if type(value) is str:
        raise InvalidType(f"{name} is a string among arrays; send pictures and arrays in separate requests")
    if type(value) is not list:
        raise InvalidType(
            f"{name} is {describe(value)}; expected 28 rows of 28 integers, 784 integers, or a base64 string"
        )
    if value and all(type(row) is list for row in value):
        if len(value) != SIDE:
            raise InvalidShape(f"{name} has {len(value)} rows; expected 28 rows of 28 integers")
        for index, row in enumerate(value):
            if len(row) != SIDE:
                raise InvalidShape(f"{name}[{index}] has {len(row)} values; expected 28")
            explain_pixels(f"{name}[{index}]", row)
        return
    if len(value) != PIXELS:
        raise InvalidShape(
            f"{name} has {len(value)} values; expected 28 rows of 28 integers, or 784 integers"
        )
    explain_pixels(name, value)


def explain_pixels(name: str, row: list[Any]) -> None:
    """Raise the `RequestError` for the first invalid pixel of a list, if any."""
    for index, pixel in enumerate(row):
        if type(pixel) is not int:
            raise InvalidType(f"{name}[{index}] is {describe(pixel)}; expected an integer 0–255")
        if not 0 <= pixel <= 255:
            raise InvalidRange(f"{name}[{index}] is {pixel}; expected an integer 0–255")


def describe(value: Any) -> str:
    """Describe a JSON value for an error message, briefly whatever its size."""
    match value:
        case dict():
            keys = ", ".join(repr(key[:40]) for key in list(value)[:5])
            return f"an object with {keys}" if keys else "an empty object"
        case list():
            return f"a list of {len(value)}"
        case str():
            return f"the string {value[:40]!r}"
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case _:
            return f"the number {value}"


def _unbase64(name: str, value: Any) -> bytes:
    if type(value) is not str:
        raise InvalidType(
            f"{name} is {describe(value)} among strings; send pictures and arrays in separate requests"
        )
    return decode_base64(name, value.encode(errors="replace"))


def decode_raw(content: bytes, max_images: int) -> Images:
    """Decode the pixels of N images, N · 784 bytes, to `uint8 [N, 28, 28]`. Raises `InvalidShape`, `TooManyImages`."""
    count, rest = divmod(len(content), PIXELS)
    if rest or not count:
        raise InvalidShape(
            f"the body has {len(content):,} bytes; expected a picture, or the pixels of N images: N times {PIXELS}"
        )
    if count > max_images:
        raise TooManyImages(f"the body has {count:,} images; one request may carry {max_images}")
    return np.frombuffer(content, np.uint8).reshape(count, SIDE, SIDE)
