"""Compressed request bodies (`Content-Encoding: gzip` or `deflate`), never unpacked beyond a limit.

A few kilobytes can unpack to gigabytes, so zlib is told how much it may write.
"""

import zlib
from collections.abc import Mapping

from serving.codecs.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""zlib's `wbits`: 16 + 15 for gzip's framing; deflate means zlib's (RFC 9110, section 8.4.1)."""


def content_encoding(headers: Mapping[bytes, bytes]) -> bytes:
    """How the body is compressed, empty if it is not. Raises `UnsupportedEncoding`."""
    encoding = headers.get(b"content-encoding")
    if not encoding:
        return b""
    encoding = encoding.lower()
    if encoding == b"identity":
        return b""
    if encoding not in _WINDOW_BITS:
        found = encoding.decode("latin-1")[:80]
        raise UnsupportedEncoding(f"Content-Encoding is {found}; this service reads gzip and deflate")
    return encoding


def unpack(encoding: bytes, content: bytes, max_bytes: int) -> bytes:
    """Undo `content_encoding`. Raises `MalformedBody`, `BodyTooLarge`."""
    if not encoding:
        return content
    name = encoding.decode()
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = unpacker.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBody(f"Content-Encoding says {name}, but the body is not: {error}") from None
    if len(unpacked) > max_bytes:
        raise BodyTooLarge(f"the body unpacks to more than the {max_bytes:,} bytes that this service reads")
    if not unpacker.eof:
        raise MalformedBody(f"the {name} body breaks off before its end; send all of it")
    if unpacker.unused_data:  # gzip allows more members; thousands of empty ones would keep a core busy
        raise MalformedBody(f"{len(unpacker.unused_data):,} bytes follow the end of the {name} body")
    return unpacked
