"""Base64 is decoded in every form that clients write, or rejected with the fix."""

import base64
import textwrap

import pytest

from serving.codecs.errors import InvalidPicture
from serving.codecs.pictures.base64_text import decode_base64

CONTENT = bytes(range(256)) + b"\xfb\xef"  # has digits 62 and 63, and needs padding
TEXT = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(CONTENT).decode(),
        base64.urlsafe_b64encode(CONTENT).decode().rstrip("="),
        base64.encodebytes(CONTENT).decode(),  # wrapped at 76 characters
        "\r\n".join(textwrap.wrap(TEXT, 76)),
        f" \t{TEXT}\n",
        f"data:image/png;base64,{TEXT}",
        f"DATA:IMAGE/PNG;BASE64,{TEXT}",
        f"data:image/svg+xml;charset=utf-8;base64,{TEXT}",
        f"data:application/octet-stream; base64,{TEXT}",
        f"data:;base64,\n{TEXT}",
        f" data:image/jpeg;name=7.jpg;base64,{TEXT}",
    ],
)
def test_base64_is_decoded_whatever_its_alphabet_padding_wrapping_and_prefix(text: str) -> None:
    assert decode_base64("image", text.encode()) == CONTENT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not base64!", "image is the string 'not base64!', which is not base64"),
        (f"{TEXT[:8]}={TEXT[8:]}", "not base64"),
        ("aGVsb", "1 more than a multiple of 4"),
        (repr(TEXT.encode()), r"use base64.b64encode\(…\).decode\(\)"),
        ("https://example.com/seven.png", "it is a URL; download the picture"),
        (TEXT.replace("+", "%2B"), "it is URL-encoded"),
        (TEXT[:76] + "\\n" + TEXT[76:], "line ends escaped twice"),
        ("data:image/png,%89PNG", "a data: URL without ;base64"),
        ("é", "not base64"),
    ],
)
def test_invalid_base64_is_rejected_with_the_fix(text: str, message: str) -> None:
    with pytest.raises(InvalidPicture, match=message) as caught:
        decode_base64("image", text.encode())
    assert len(str(caught.value)) < 300
