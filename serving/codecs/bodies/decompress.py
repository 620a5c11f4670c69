"""Compressed request bodies (`Content-Encoding: gzip` or `deflate`), decompressed up to a limit.

A few kilobytes can decompress to gigabytes, so zlib's output is bounded.
"""

import zlib
from collections.abc import Mapping

from serving.codecs.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""zlib's `wbits`: 16 + 15 for gzip's framing; deflate means zlib's (RFC 9110, section 8.4.1)."""


def content_encoding(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the body's compression, empty if there is none. Raises `UnsupportedEncoding`."""
    encoding = headers.get(b"content-encoding", b"").lower()
    if encoding in {b"", b"identity"}:
        return b""
    if encoding not in _WINDOW_BITS:
        found = encoding.decode("latin-1")[:80]
        raise UnsupportedEncoding(f"Content-Encoding is {found}; expected gzip or deflate")
    return encoding


def decompress(encoding: bytes, content: bytes, max_bytes: int) -> bytes:
    """Decompress a body with the given `content_encoding`. Raises `MalformedBody`, `BodyTooLarge`."""
    if not encoding:
        return content
    name = encoding.decode()
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        decompressed = decompressor.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBody(f"the body is not valid {name}: {error}") from None
    if len(decompressed) > max_bytes:
        raise BodyTooLarge(f"the body decompresses to more than the limit of {max_bytes:,} bytes")
    if not decompressor.eof:
        raise MalformedBody(f"the {name} body is truncated")
    if trailing := len(decompressor.unused_data):  # thousands of empty gzip members would keep a core busy
        raise MalformedBody(f"the {name} body is followed by {trailing:,} more bytes")
    return decompressed
