"""Parse JSON bodies, with errors that name what common clients do wrong."""

import re
from typing import Any

import numpy as np
import orjson

from serving.codecs.errors import MalformedBody, TooManyImages
from serving.codecs.pictures.file_types import recognise
from serving.model.tensors import PIXELS, SIDE

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SMALL = 256 * 1024
_COUNTED = 16 * 1024
_COUNTS = (
    ("values", ",", 2 * PIXELS),
    ("lists and objects", "]}", 2 * (1 + SIDE)),
    ("keys", ":", 2),  # a colon in every data URL
)
"""What may occur this often for each image, and a thousand times more.

Parsed, it takes up to thirty times the memory of its text, and a million of it a second, in which no other thread runs.
"""
_HINTS = (
    (rb"\A(?:\xff\xfe|\xfe\xff|\0{1,3}[\[{]|[\[{]\0)", "it is UTF-16 or UTF-32; encode it as UTF-8"),
    (rb"\A\s*\{\s*'", "strings take double quotes; use json.dumps in Python"),
    (rb"\b(?:NaN|Infinity)\b", "JSON has no NaN and no Infinity; send integers 0–255"),
)


def parse_json(content: bytes, max_images: int) -> Any:
    """Parse a JSON document. Raises `MalformedBody`, or `TooManyImages` for far more values than images can have."""
    if len(content) > _COUNTED:
        _check_counts(content, max_images)
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        text = content.removeprefix(_BYTE_ORDER_MARK)
        if text is not content and not text.startswith(_BYTE_ORDER_MARK):
            return parse_json(text, max_images)
        raise MalformedBody(f"the body is not JSON: {_explain(content, error)}") from None


def _check_counts(content: bytes, max_images: int) -> None:
    """Check in microseconds what would take the parser seconds. Raises `TooManyImages`."""
    characters = np.frombuffer(content, np.uint8)
    for name, marks, per_image in _COUNTS:
        found = sum(int(np.count_nonzero(characters == ord(mark))) for mark in marks)
        if found > per_image * max_images + 1000:
            raise TooManyImages(
                f"the JSON has {found:,} {name}; one request may carry {max_images} images of {PIXELS} integers"
            )


def _explain(content: bytes, error: ValueError) -> str:
    if not content:
        return "it is empty"
    for pattern, hint in _HINTS:
        if re.search(pattern, content[:_SMALL]):
            return hint
    kind = recognise(content)
    return f"it is {kind.name}; POST /predict takes pictures" if kind else str(error)
