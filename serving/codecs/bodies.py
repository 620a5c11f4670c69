"""From a request's body to images: which media types there are, and who reads each."""

from dataclasses import dataclass
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.codecs.errors import InvalidInput, MalformedBody, TooManyImages, UnsupportedMediaType
from serving.codecs.image import decode_pictures
from serving.codecs.pixels import decode_json
from serving.model.session import Images

JSON = b"application/json"
MULTIPART = b"multipart/form-data"
PICTURES = (b"image/png", b"image/jpeg")
MEDIA_TYPES = (JSON, *PICTURES, MULTIPART)

QUICK_BYTES = 256 * 1024  # about a millisecond of JSON
_QUICK_PIXELS = 128 * 128
_LISTED = ", ".join(kind.decode() for kind in MEDIA_TYPES)


class Body(NamedTuple):
    """What a client sent; `kind` is the media type of `content_type`."""

    kind: bytes
    content_type: bytes
    content: bytes


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for."""

    max_images: int = 256
    max_pixels: int = 4_000_000
    """Of all pictures of a request together, as their headers declare them."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Of a compressed body once it is unpacked."""


def media_type(content_type: bytes) -> bytes:
    """The media type without its parameters; raises `UnsupportedMediaType` unless it is one we read."""
    if content_type in MEDIA_TYPES:
        return content_type
    kind = content_type.partition(b";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        found = content_type.decode("latin-1")[:80] or "nothing"
        raise UnsupportedMediaType(f"Content-Type is {found}; this service reads {_LISTED}")
    return kind


def decodes_quickly(body: Body) -> bool:
    """Whether decoding is so short that the event loop need not be spared: numbers, or a small PNG."""
    content = body.content
    if body.kind == JSON:  # a key has two quotes; a third one may begin a picture
        third = content.find(b'"', content.find(b'"', content.find(b'"') + 1) + 1)
        return third < 0 and len(content) <= QUICK_BYTES
    if body.kind == b"image/png":
        width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        return width * height <= _QUICK_PIXELS
    return False


def decode(body: Body, limits: Limits) -> Images:
    """Turn a body into `uint8 [N, 28, 28]`, N ≥ 1. Raises a `RequestError` that says what is wrong with it."""
    if body.kind == JSON:
        return decode_json(body.content, limits.max_images, limits.max_pixels)
    if body.kind == MULTIPART:
        return decode_pictures(_files(body, limits), limits.max_pixels)
    return decode_pictures([("the body", body.content)], limits.max_pixels)


def _files(form: Body, limits: Limits) -> list[tuple[str, bytes]]:
    """Every part of a multipart form, each of which is a picture whatever its name."""
    boundary = parse_options_header(form.content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedBody("Content-Type multipart/form-data names no boundary")
    parts: list[list[bytes]] = []
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    def begin() -> None:
        if len(parts) == limits.max_images:
            raise TooManyImages(
                f"the form holds more than {limits.max_images} files; one request may carry so many"
            )
        parts.append([])

    def data(chunk: bytes, start: int, stop: int) -> None:
        parts[-1].append(chunk[start:stop])

    try:
        parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_end": end})
        parser.write(form.content)
    except FormParserError as error:
        raise MalformedBody(f"the body is not multipart/form-data: {error}") from None
    if not ended:
        raise MalformedBody("the multipart form breaks off before its closing boundary")
    if not parts:
        raise InvalidInput("the form holds no file; send at least one PNG or JPEG")
    return [(f"file {index + 1}", b"".join(chunks)) for index, chunks in enumerate(parts)]
