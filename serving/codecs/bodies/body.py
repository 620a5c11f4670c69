"""From the body of `POST /predict` to images: a form by its media type, everything else by its first bytes."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from serving.codecs.base import BodyLimits, Head
from serving.codecs.bodies.form import boundary_of, form_files
from serving.codecs.bodies.pixels import decode_json, decode_raw
from serving.codecs.errors import MalformedBody, UnsupportedMediaType
from serving.codecs.pictures.decode import File, decode_pictures
from serving.codecs.pictures.file_types import is_picture, recognise
from serving.model.tensors import PIXELS, Images

Decoded = TypeVar("Decoded")

JSON = b"application/json"
MULTIPART = b"multipart/form-data"
RAW = b"application/octet-stream"
"""A picture, or the pixels of N images."""
MEDIA_TYPES = (JSON, b"image/png", b"image/jpeg", b"image/webp", b"image/gif", b"image/bmp", RAW, MULTIPART)
"""Of the documentation; others are accepted if their content is recognised."""

MAX_INLINE_BYTES = 256 * 1024  # about a millisecond of JSON
_MAX_INLINE_PNG_BYTES = 16 * 1024
_MAX_INLINE_PIXELS = PIXELS  # a larger picture takes several milliseconds to convert
_LISTED = ", ".join(kind.decode() for kind in MEDIA_TYPES)
_OBJECT = re.compile(rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)?\s{0,99}\0{0,3}\{\0{0,3}\s{0,99}\0{0,3}[\"'}]")
"""The start of a JSON object, also in UTF-16 or UTF-32, of which the error names the fix."""


def media_type(content_type: bytes) -> tuple[bytes, bytes]:
    """Return the media type, one for all kinds of JSON, and the boundary of a form."""
    if content_type == JSON:
        return JSON, b""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == MULTIPART:
        return kind, boundary_of(content_type)
    return JSON if kind.endswith(b"json") else kind, b""


def decodes_inline(head: Head, content: bytes) -> bool:
    """Return whether decoding is short enough for the event loop: numbers in JSON, raw pixels, or a small PNG."""
    if head.media_type == JSON:  # one key has two quotes; a third one may begin a base64 string
        third = content.find(b'"', content.find(b'"', content.find(b'"') + 1) + 1)
        return third < 0 and len(content) <= MAX_INLINE_BYTES and content.startswith(b"{")
    if content.startswith(b"\x89PNG"):
        width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        return width * height <= _MAX_INLINE_PIXELS and len(content) <= _MAX_INLINE_PNG_BYTES
    return head.media_type == RAW and not is_picture(content) and len(content) <= MAX_INLINE_BYTES


def decode(
    head: Head,
    content: bytes,
    limits: BodyLimits,
    pictures: Callable[[Sequence[File], int], Decoded] = decode_pictures,  # type: ignore[assignment]
) -> Images | Decoded:
    """Decode an uncompressed body: pixels to `uint8 [N, 28, 28]`, N ≥ 1, picture files by `pictures`.

    Raises `RequestError`.
    """
    kind = head.media_type
    if kind == JSON:
        try:
            return decode_json(content, limits.max_images, limits.max_pixels, pictures)
        except MalformedBody:
            if recognise(content) is None:
                raise
    elif kind == MULTIPART:
        return pictures(form_files(head.boundary, content, limits.max_images), limits.max_pixels)
    elif _OBJECT.match(content):
        return decode_json(content, limits.max_images, limits.max_pixels, pictures)
    elif kind == RAW and _is_raw(content):
        return decode_raw(content, limits.max_images)
    elif not kind.startswith(b"image/") and recognise(content) is None:
        found = kind.decode("latin-1")[:80] or "missing"
        raise UnsupportedMediaType(
            f"Content-Type is {found}, and the body starts with {content[:8]!r}; expected one of {_LISTED}"
        )
    return pictures([("the body", content)], limits.max_pixels)


def _is_raw(content: bytes) -> bool:
    """Return whether a body is pixels, or at least nothing that an error could name."""
    return not is_picture(content) and (len(content) % PIXELS == 0 or recognise(content) is None)
