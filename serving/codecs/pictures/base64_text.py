"""Base64 as clients write it: wrapped, unpadded, URL-safe, or in a data: URL of any type."""

import base64
import binascii
import re

from serving.codecs.errors import InvalidPicture

_DATA_URL = re.compile(rb"\s{0,99}data:[^,]{0,200}?(;\s*base64\s*)?,", re.IGNORECASE)  # RFC 2397
_STANDARD = bytes.maketrans(b"-_", b"+/")  # from the URL-safe alphabet (RFC 4648, section 5)
_WHITESPACE = b" \t\r\n\f\v"
_HINTS = (
    (rb"b['\"]", "it is the representation of a Python bytes object; use base64.b64encode(…).decode()"),
    (rb"https?://", "it is a URL; download the picture and send its bytes"),
    (rb"[^%]*%(?:2B|2F|3D)", "it is URL-encoded; decode that first"),
    (rb"[^\\]*\\n", "it has line ends escaped twice"),
)


def decode_base64(name: str, text: bytes) -> bytes:
    """Decode base64 with or without data: prefix; whitespace is ignored, padding optional. Raises `InvalidPicture`."""
    prefix = _DATA_URL.match(text)
    if prefix and not prefix[1]:
        raise InvalidPicture(f"{name} is a data: URL without ;base64; encode the picture in base64")
    digits = text[prefix.end() :] if prefix else text
    digits = digits.translate(_STANDARD, _WHITESPACE).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        fix = next((fix for pattern, fix in _HINTS if re.match(pattern, text)), str(error))
        shown = text[:40].decode(errors="replace")
        raise InvalidPicture(f"{name} is the string {shown!r}, which is not base64: {fix}") from None
