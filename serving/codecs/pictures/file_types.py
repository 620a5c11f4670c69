"""What a body or file is, recognised by its first bytes rather than by what its sender calls it.

Clients label pictures wrongly (`image/jpg`, `application/octet-stream`, curl's `application/x-www-form-urlencoded`), so
the first bytes decide. Files that are not read are recognised as well, so that the error can name the fix.
"""

import re
from typing import NamedTuple

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""The formats that are read, by Pillow's names. Their decoders are robust, and pictures of digits come in them."""
BASE64 = "base64"
"""A picture in base64, also as a data: URL, where its bytes are expected; it is decoded."""


class Signature(NamedTuple):
    """A kind of content: its name in an error message, and what the sender can do if it is not read."""

    name: str
    pattern: bytes
    fix: str = ""


_AS_PNG = "convert it to PNG or JPEG"
_AS_BYTES = "send the bytes of the file unchanged, with curl: --data-binary"
_SIGNATURES = (  # the first match counts
    Signature("PNG", rb"\x89PNG\r\n\x1a\n"),
    Signature("JPEG", rb"\xff\xd8\xff"),
    Signature("WEBP", rb"RIFF.{4}WEBP"),
    Signature("GIF", rb"GIF8[79]a"),
    Signature("BMP", rb"BM.{4}\0{4}"),
    Signature(
        BASE64,
        rb"\s{0,99}(?:(?i:data:)|iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[0-3][\w+/-]{5}AAAAA)",
        "encode it once, not twice",
    ),
    Signature(
        "a HEIC photo, as iPhones save them",
        rb".{4}ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)",
        "convert it to JPEG (iPhone: Settings, Camera, Formats, Most Compatible)",
    ),
    Signature("AVIF", rb".{4}ftypavi[fs]", _AS_PNG),
    Signature("a video or raw photo", rb".{4}ftyp", "send one picture as PNG or JPEG"),
    Signature("TIFF", rb"II[*+]\0|MM\0[*+]", _AS_PNG),
    Signature("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _AS_PNG),
    Signature("JPEG XL", rb"\0\0\0\x0cJXL |\xff\x0a", _AS_PNG),
    Signature("a Photoshop document", rb"8BPS", _AS_PNG),
    Signature("PDF", rb"%PDF-", "export the page as PNG"),
    Signature("SVG", rb"(?:\xef\xbb\xbf)?\s{0,99}(?:<\?xml|<!--|<!DOCTYPE svg|<svg)", "render it to PNG"),
    Signature(
        "HTML", rb"\s{0,99}<(?i:!doctype html|html)", "send the picture itself, not a page that shows it"
    ),
    Signature("a URL", rb"https?://", "download the picture and send its bytes"),
    Signature("gzip data", rb"\x1f\x8b", "set Content-Encoding: gzip, or send it uncompressed"),
    Signature("a ZIP archive", rb"PK\x03\x04", "send the pictures in it as multipart/form-data"),
    Signature("a NumPy file", rb"\x93NUMPY", "send array.tobytes(), uint8, as application/octet-stream"),
    Signature("an IDX file", rb"\0\0\x08\x03", "send what follows its 16 bytes of header"),
    Signature("a PNG whose line ends were converted", rb"\x89PNG", _AS_BYTES),
    Signature(
        "a picture that was converted to text",
        rb"(?:\xef\xbf\xbd|\xc2\x89)PNG|(?:\xef\xbf\xbd){3}|\xc3\xbf\xc3\x98",
        _AS_BYTES,
    ),
    Signature("URL-encoded form fields", rb"[\w.\[\]-]{1,40}=", "send multipart/form-data or JSON"),
)
_ANY = re.compile(b"|".join(b"(%s)" % signature.pattern for signature in _SIGNATURES), re.DOTALL)
_PICTURE = re.compile(
    b"|".join(signature.pattern for signature in _SIGNATURES if signature.name in PICTURES), re.DOTALL
)


def recognise(content: bytes) -> Signature | None:
    """Return the signature that the content begins with; None for any other content."""
    found = _ANY.match(content)
    return _SIGNATURES[found.lastindex - 1] if found and found.lastindex else None


def is_picture(content: bytes) -> bool:
    """Return whether the content begins like a picture in one of `PICTURES`."""
    return _PICTURE.match(content) is not None
