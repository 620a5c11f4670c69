"""Decoding of request bodies to images, and the errors of invalid ones."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.codecs.base import BodyLimits, Head
from serving.codecs.bodies import JPEG, JSON, MULTIPART, PNG, decode, decodes_inline, media_type
from serving.codecs.errors import RequestError
from tests.support.samples import sample_test

DIGITS = sample_test().images.numpy()[:5]
ROWS: list[list[int]] = DIGITS[0].tolist()


def from_json(document: Any, limits: BodyLimits | None = None) -> Any:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode(Head(media_type=JSON), content, limits or BodyLimits())


def picture(digit: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(digit).save(buffer, "PNG")
    return buffer.getvalue()


def form(*files: bytes, end: bytes = b"--", boundary: bytes = b"xyz") -> tuple[Head, bytes]:
    parts = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="f"; filename="f.png"\r\n\r\n%s\r\n' % (boundary, file)
        for file in files
    )
    content = parts + b"--" + boundary + end + b"\r\n"
    return Head(media_type=MULTIPART, boundary=boundary), content


def with_pixel(value: Any) -> list[list[Any]]:
    """A valid image except for one pixel."""
    return [[value if (row, column) == (3, 17) else 0 for column in range(28)] for row in range(28)]


def test_all_forms_of_an_image_decode_to_the_same_array() -> None:
    text = base64.b64encode(picture(DIGITS[0])).decode()
    for image in (ROWS, DIGITS[0].ravel().tolist(), text, f"data:image/png;base64,{text}"):
        assert np.array_equal(from_json({"image": image}), DIGITS[:1])
        assert np.array_equal(from_json({"images": [image, image]}), DIGITS[[0, 0]])
    assert np.array_equal(decode(Head(media_type=PNG), picture(DIGITS[0]), BodyLimits()), DIGITS[:1])
    assert np.array_equal(decode(*form(*map(picture, DIGITS)), BodyLimits()), DIGITS)


def test_nested_and_flat_images_can_be_mixed() -> None:
    assert np.array_equal(from_json({"images": [ROWS, DIGITS[1].ravel().tolist()]}), DIGITS[:2])


@pytest.mark.parametrize(
    ("document", "status", "code", "message"),
    [
        (b"", 400, "malformed_body", "not JSON"),
        (b'{"image": [1, 2', 400, "malformed_body", "not JSON"),
        (b'{"image": NaN}', 400, "malformed_body", "not JSON"),
        (b'{"image": "\xff"}', 400, "malformed_body", "not JSON"),
        (b"[" * 100_000, 400, "malformed_body", "not JSON"),
        (b'{"image":' + b"[" * 500 + b"]" * 500 + b"}", 422, "invalid_shape", "image has 1 rows"),
        ([1, 2], 422, "invalid_input", "found a list of 2"),
        (None, 422, "invalid_input", "found null"),
        ({}, 422, "invalid_input", "found an empty object"),
        ({"picture": ROWS}, 422, "invalid_input", "found an object with 'picture'"),
        ({"image": ROWS, "images": [ROWS]}, 422, "invalid_input", "found an object with 'image', 'images'"),
        ({"images": []}, 422, "invalid_type", "images is a list of 0"),
        ({"images": {"0": ROWS}}, 422, "invalid_type", "images is an object with '0'"),
        ({"images": [ROWS] * 9}, 422, "too_many_images", "images holds 9; one request may carry 8"),
        ({"image": 7}, 422, "invalid_type", "image is the number 7"),
        ({"image": True}, 422, "invalid_type", "image is true"),
        ({"image": None}, 422, "invalid_type", "image is null"),
        ({"image": {"pixels": []}}, 422, "invalid_type", "image is an object with 'pixels'"),
        ({"image": []}, 422, "invalid_shape", "image has 0 values"),
        ({"image": [0] * 783}, 422, "invalid_shape", "image has 783 values"),
        ({"image": [28] * 28}, 422, "invalid_shape", "image has 28 values"),
        ({"image": ROWS[:27]}, 422, "invalid_shape", "image has 27 rows"),
        ({"image": [*ROWS[:26], [0] * 27, [0] * 29]}, 422, "invalid_shape", r"image\[26\] has 27 values"),
        ({"image": [*ROWS[:27], 28]}, 422, "invalid_shape", "image has 28 values"),
        ({"image": with_pixel(256)}, 422, "invalid_range", r"image\[3\]\[17\] is 256; .* integer 0–255"),
        ({"image": with_pixel(-1)}, 422, "invalid_range", r"image\[3\]\[17\] is -1"),
        ({"image": with_pixel(10**30)}, 422, "invalid_type", r"image\[3\]\[17\] is the number 1e\+30"),
        ({"image": with_pixel(0.5)}, 422, "invalid_type", r"image\[3\]\[17\] is the number 0.5"),
        ({"image": with_pixel(7.0)}, 422, "invalid_type", r"image\[3\]\[17\] is the number 7.0"),
        ({"image": with_pixel(True)}, 422, "invalid_type", r"image\[3\]\[17\] is true"),
        ({"image": with_pixel(False)}, 422, "invalid_type", r"image\[3\]\[17\] is false"),
        ({"image": with_pixel(None)}, 422, "invalid_type", r"image\[3\]\[17\] is null"),
        ({"image": with_pixel("9")}, 422, "invalid_type", r"image\[3\]\[17\] is the string '9'"),
        ({"image": with_pixel([1])}, 422, "invalid_type", r"image\[3\]\[17\] is a list of 1"),
        ({"image": [0] * 783 + [256]}, 422, "invalid_range", r"image\[783\] is 256"),
        ({"images": [ROWS, with_pixel(300)]}, 422, "invalid_range", r"images\[1\]\[3\]\[17\] is 300"),
        ({"images": [ROWS, "iVBO"]}, 422, "invalid_type", r"images\[1\] is a string among arrays"),
        ({"images": ["iVBO", ROWS]}, 422, "invalid_type", r"images\[1\] is a list of 28 among strings"),
        ({"image": "not base64!"}, 422, "invalid_picture", "image is the string 'not base64!', which is not base64"),
        ({"image": "é"}, 422, "invalid_picture", "not base64"),
        ({"image": "aGVsbG8="}, 422, "invalid_picture", "image is not a PNG or JPEG"),
        ({"image": ""}, 422, "invalid_picture", "image is not a PNG or JPEG"),
    ],
)  # fmt: skip
def test_an_invalid_document_is_rejected_with_value_and_expectation(
    document: Any, status: int, code: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        from_json(document, BodyLimits(max_images=8))
    assert (caught.value.status, caught.value.code) == (status, code)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (form(), 422, "has no file"),
        (form(b"hello"), 422, "file 1 is not a PNG or JPEG"),
        (form(picture(DIGITS[0]), b""), 422, "file 2 is not a PNG or JPEG: it is empty"),
        (form(*[b""] * 9), 422, "more than 8 files"),
        (form(picture(DIGITS[0]), end=b""), 400, "truncated"),
        ((Head(media_type=MULTIPART), b""), 400, "has no boundary"),
        ((Head(media_type=MULTIPART, boundary=b"xyz"), b"hello"), 400, "not multipart/form-data"),
        (form(b"", boundary=b"x" * 300), 400, "not multipart/form-data"),
    ],
)
def test_an_invalid_form_is_rejected_with_value_and_expectation(
    request_: tuple[Head, bytes], status: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        decode(*request_, BodyLimits(max_images=8))
    assert caught.value.status == status


@pytest.mark.parametrize("kind", [b"", b"text/plain", b"application/x-www-form-urlencoded", b"image/gif"])
def test_an_unsupported_media_type_is_rejected_with_the_supported_ones(kind: bytes) -> None:
    with pytest.raises(RequestError, match="application/json, image/png, image/jpeg, multipart/form-data"):
        media_type(kind)


def test_media_types_ignore_case_and_parameters_but_the_boundary() -> None:
    assert media_type(b"Application/JSON ; charset=utf-8") == (JSON, b"")
    assert media_type(b'multipart/Form-Data; boundary="x y"; a=b') == (MULTIPART, b"x y")
    assert media_type(MULTIPART) == (MULTIPART, b"")


def test_only_numbers_and_small_png_are_decoded_inline() -> None:
    def inline(kind: bytes, content: bytes) -> bool:
        return decodes_inline(Head(media_type=kind), content)

    assert inline(JSON, json.dumps({"image": ROWS}).encode())
    assert inline(PNG, picture(DIGITS[0]))
    assert not inline(JSON, b'{"image": "iVBO"}')
    assert not inline(JSON, b'{"images": ["iVBO"]}')
    assert not inline(PNG, picture(np.zeros((200, 200), np.uint8)))
    assert not inline(JPEG, b"")
    assert not inline(MULTIPART, b"")
