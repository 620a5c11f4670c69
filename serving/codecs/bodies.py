"""From the body of `POST /predict` to images, by media type."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.codecs.base import BodyLimits, Head
from serving.codecs.errors import InvalidInput, MalformedBody, TooManyImages, UnsupportedMediaType
from serving.codecs.image import decode_pictures
from serving.codecs.pixels import decode_json
from serving.model.tensors import Images

JSON = b"application/json"
PNG, JPEG = b"image/png", b"image/jpeg"
MULTIPART = b"multipart/form-data"
MEDIA_TYPES = (JSON, PNG, JPEG, MULTIPART)

MAX_INLINE_BYTES = 256 * 1024  # about a millisecond of JSON
_MAX_INLINE_PIXELS = 128 * 128
_LISTED = ", ".join(kind.decode() for kind in MEDIA_TYPES)


def media_type(content_type: bytes) -> tuple[bytes, bytes]:
    """Return the media type and, for a form, its boundary. Raises `UnsupportedMediaType`."""
    if content_type == JSON:
        return JSON, b""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        found = content_type.decode("latin-1")[:80] or "missing"
        raise UnsupportedMediaType(f"Content-Type is {found}; expected one of {_LISTED}")
    if kind == MULTIPART:
        return kind, parse_options_header(content_type)[1].get(b"boundary", b"")
    return kind, b""


def decodes_inline(head: Head, content: bytes) -> bool:
    """Return whether decoding is short enough for the event loop: numbers in JSON, or a small PNG."""
    if head.media_type == JSON:  # one key has two quotes; a third one may begin a base64 string
        third = content.find(b'"', content.find(b'"', content.find(b'"') + 1) + 1)
        return third < 0 and len(content) <= MAX_INLINE_BYTES
    if head.media_type == PNG:
        width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        return width * height <= _MAX_INLINE_PIXELS
    return False


def decode(head: Head, content: bytes, limits: BodyLimits) -> Images:
    """Decode an uncompressed body to `uint8 [N, 28, 28]`, N ≥ 1. Raises `RequestError`."""
    if head.media_type == JSON:
        return decode_json(content, limits.max_images, limits.max_pixels)
    if head.media_type == MULTIPART:
        return decode_pictures(_files(head.boundary, content, limits), limits.max_pixels)
    return decode_pictures([("the body", content)], limits.max_pixels)


def _files(boundary: bytes, content: bytes, limits: BodyLimits) -> list[tuple[str, bytes]]:
    """Return all parts of a multipart form, each of which is a picture whatever its field name."""
    if not boundary:
        raise MalformedBody("Content-Type multipart/form-data has no boundary")
    parts: list[list[bytes]] = []
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    def begin() -> None:
        if len(parts) == limits.max_images:
            raise TooManyImages(f"the form has more than {limits.max_images} files, the limit of one request")
        parts.append([])

    def data(chunk: bytes, start: int, stop: int) -> None:
        parts[-1].append(chunk[start:stop])

    try:
        parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_end": end})
        parser.write(content)
    except FormParserError as error:
        raise MalformedBody(f"the body is not multipart/form-data: {error}") from None
    if not ended:
        raise MalformedBody("the multipart form is truncated: its closing boundary is missing")
    if not parts:
        raise InvalidInput("the form has no file; expected at least one PNG or JPEG")
    return [(f"file {index + 1}", b"".join(chunks)) for index, chunks in enumerate(parts)]
