"""Decoding of request bodies to images, and the errors of invalid ones."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.codecs.base import BodyLimits, Head
from serving.codecs.bodies.body import JSON, MULTIPART, RAW, decode, decodes_inline, media_type
from serving.codecs.errors import RequestError
from tests.support.training.samples import sample_test

PNG, JPEG = b"image/png", b"image/jpeg"
DIGITS = sample_test().images.numpy()[:5]
ROWS: list[list[int]] = DIGITS[0].tolist()


def from_json(document: Any, limits: BodyLimits | None = None) -> Any:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode(Head(media_type=JSON), content, limits or BodyLimits())


def picture(digit: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(digit).save(buffer, kind, **options)
    return buffer.getvalue()


def decode_as(content_type: bytes, content: bytes) -> Any:
    kind, boundary = media_type(content_type)
    return decode(Head(media_type=kind, boundary=boundary), content, BodyLimits())


def with_pixel(value: Any) -> list[list[Any]]:
    """A valid image except for one pixel."""
    return [[value if (row, column) == (3, 17) else 0 for column in range(28)] for row in range(28)]


def test_all_forms_of_an_image_decode_to_the_same_array() -> None:
    text = base64.b64encode(picture(DIGITS[0])).decode()
    for image in (ROWS, DIGITS[0].ravel().tolist(), text, f"data:image/png;base64,{text}"):
        assert np.array_equal(from_json({"image": image}), DIGITS[:1])
        assert np.array_equal(from_json({"images": [image, image]}), DIGITS[[0, 0]])
    assert np.array_equal(decode(Head(media_type=PNG), picture(DIGITS[0]), BodyLimits()), DIGITS[:1])


def test_nested_and_flat_images_can_be_mixed() -> None:
    assert np.array_equal(from_json({"images": [ROWS, DIGITS[1].ravel().tolist()]}), DIGITS[:2])


@pytest.mark.parametrize(
    ("document", "status", "code", "message"),
    [
        (b"", 400, "malformed_body", "not JSON"),
        (b'{"image": [1, 2', 400, "malformed_body", "not JSON"),
        (b'{"image": [NaN]}', 400, "malformed_body", "no NaN and no Infinity; send integers 0–255"),
        (b'{"image": [-Infinity]}', 400, "malformed_body", "no NaN and no Infinity"),
        (b"{'image': []}", 400, "malformed_body", "double quotes; use json.dumps"),
        ('{"image": []}'.encode("utf-16"), 400, "malformed_body", "UTF-16 or UTF-32; encode it as UTF-8"),
        ('{"image": []}'.encode("utf-16-be"), 400, "malformed_body", "UTF-16 or UTF-32"),
        ('{"image": []}'.encode("utf-32-le"), 400, "malformed_body", "UTF-16 or UTF-32"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", 400, "malformed_body", "not JSON"),
        (json.dumps('{"image": []}').encode(), 422, "invalid_input", "encode the JSON once, not twice"),
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
        ({"image": "aGVsbG8="}, 422, "invalid_picture", "image is not a picture"),
        ({"image": ""}, 422, "invalid_picture", "image is not a picture"),
    ],
)  # fmt: skip
def test_an_invalid_document_is_rejected_with_value_and_expectation(
    document: Any, status: int, code: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        from_json(document, BodyLimits(max_images=8))
    assert (caught.value.status, caught.value.code) == (status, code)
    assert len(str(caught.value)) < 300


URL_ENCODED = (
    b"application/x-www-form-urlencoded"  # curl's --data and --data-binary, unless a header is given
)


@pytest.mark.parametrize(
    "content_type",
    [
        PNG,
        b"image/jpg",
        b"image/pjpeg",
        b"image/x-png",
        b"IMAGE/PNG; q=1",
        b"image/*",
        JSON,
        RAW,
        URL_ENCODED,
        b"",
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        picture(DIGITS[0]),
        picture(DIGITS[0], "GIF"),
        picture(DIGITS[0], "BMP"),
        picture(DIGITS[0], "WEBP", lossless=True),
        base64.b64encode(picture(DIGITS[0])),
        b"data:image/png;base64," + base64.b64encode(picture(DIGITS[0])),
    ],
    ids=["png", "gif", "bmp", "webp", "base64", "data URL"],
)
def test_a_picture_is_recognised_by_its_first_bytes_whatever_its_media_type(
    content_type: bytes, content: bytes
) -> None:
    assert np.array_equal(decode_as(content_type, content), DIGITS[:1])


@pytest.mark.parametrize(
    "content_type",
    [
        JSON + b"; charset=utf-8",
        b"text/json",
        b"application/vnd.api+json",
        b"text/plain",
        RAW,
        PNG,
        URL_ENCODED,
        b"",
    ],
)
@pytest.mark.parametrize(
    "start", [b"", b"\xef\xbb\xbf", b" \r\n"], ids=["plain", "byte order mark", "whitespace"]
)
def test_a_json_object_is_recognised_whatever_its_media_type(content_type: bytes, start: bytes) -> None:
    assert np.array_equal(decode_as(content_type, start + json.dumps({"image": ROWS}).encode()), DIGITS[:1])


def test_octets_are_raw_pixels_unless_they_are_a_picture() -> None:
    assert np.array_equal(decode_as(RAW, DIGITS.tobytes()), DIGITS)
    padded = picture(DIGITS[0]) + bytes(-len(picture(DIGITS[0])) % 784)
    assert np.array_equal(decode_as(RAW, padded), DIGITS[:1])
    idx_like = DIGITS[:1].copy()
    idx_like[0, 0, :4] = (0, 0, 8, 3)
    assert np.array_equal(decode_as(RAW, idx_like.tobytes()), idx_like)


@pytest.mark.parametrize(
    ("content_type", "content", "status", "message"),
    [
        (b"text/csv", b"1,2,3", 415, "Content-Type is text/csv, and the body starts with b'1,2,3'; expected one of "
         "application/json, image/png"),
        (b"", b"", 415, "Content-Type is missing, and the body starts with b''"),
        (b"multipart/mixed; boundary=x", b"--x", 415, "Content-Type is multipart/mixed"),
        (URL_ENCODED, b"image=data%3Aimage%2Fpng", 422, "send multipart/form-data or JSON"),
        (RAW, b"", 422, "the body has 0 bytes; expected a picture, or the pixels of N images: N times 784"),
        (RAW, bytes(783), 422, "the body has 783 bytes"),
        (RAW, bytes(784 * 257), 422, "the body has 257 images; one request may carry 256"),
        (RAW, b"\x93NUMPY\x01\0", 422, "a NumPy file; send array.tobytes"),
        (RAW, b"\0\0\x08\x03", 422, "an IDX file"),
        (b"image/heic", b"\0\0\0\x18ftypheic", 422, "a HEIC photo, as iPhones save them; convert it to JPEG"),
        (b"image/avif", b"\0\0\0\x1cftypavif", 422, "AVIF; convert it to PNG or JPEG"),
        (b"video/mp4", b"\0\0\0\x18ftypisom", 422, "a video or raw photo"),
        (b"image/tiff", b"II*\0", 422, "TIFF; convert it to PNG or JPEG"),
        (b"image/tiff", b"MM\0*", 422, "TIFF; convert it to PNG or JPEG"),
        (b"image/jp2", b"\0\0\0\x0cjP  ", 422, "JPEG 2000"),
        (b"image/jxl", b"\xff\x0a", 422, "JPEG XL"),
        (b"image/svg+xml", b'<?xml version="1.0"?><svg', 422, "SVG; render it to PNG"),
        (b"image/svg+xml", b"\n<svg xmlns", 422, "SVG; render it to PNG"),
        (b"application/pdf", b"%PDF-1.7", 422, "PDF; export the page as PNG"),
        (b"text/html", b"<!doctype HTML>", 422, "HTML; send the picture itself"),
        (b"text/plain", b"https://example.com/7.png", 422, "a URL; download the picture"),
        (RAW, b"\x1f\x8b\x08", 422, "gzip data; set Content-Encoding: gzip"),
        (b"application/zip", b"PK\x03\x04", 422, "a ZIP archive; send the pictures in it"),
        (PNG, b"\x89PNG\n\x1a\n", 422, "line ends were converted; .* --data-binary"),
        (PNG, "\ufffdPNG\r\n".encode(), 422, "converted to text"),
        (JPEG, "\xff\xd8\xff\xe0".encode(), 422, "converted to text"),
        (PNG, b"hello", 422, "the body is not a picture: it is 5 bytes starting with b'hello'; expected PNG, JPEG,"),
        (JSON, b"\0\0\0\x18ftypheic", 422, "a HEIC photo"),
        (b"", base64.b64encode(base64.b64encode(picture(DIGITS[0]))), 415, "Content-Type is missing"),
        (b"", b"data:," + base64.b64encode(picture(DIGITS[0])), 422, "without ;base64"),
        (b"", b"data:;base64," + base64.b64encode(base64.b64encode(picture(DIGITS[0]))), 422, "once, not twice"),
    ],
)  # fmt: skip
def test_an_unsupported_body_is_rejected_with_the_fix(
    content_type: bytes, content: bytes, status: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        decode_as(content_type, content)
    assert caught.value.status == status
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"[" + b"{}," * 100_000 + b"{}]", "100,000 values"),
        (b"[" * 100_000, "not JSON"),
        (b"[" + b"[]" * 2000 + b" " * 20_000, "2,000 lists and objects"),
        (b"{" + b'"":{}' * 4000 + b"}", "4,001 lists and objects"),
        (b"{" + b'"0123456789":0' * 2000 + b"}", "2,001 keys"),
    ],
)
def test_json_of_far_more_than_images_can_have_is_rejected_before_it_is_parsed(
    value: bytes, found: str
) -> None:
    with pytest.raises(RequestError, match=found) as caught:
        from_json(b'{"image":' + value, BodyLimits(max_images=8))
    assert caught.value.code == ("malformed_body" if "not" in found else "too_many_images")


def test_media_types_ignore_case_and_parameters_but_the_boundary() -> None:
    assert media_type(b"Application/JSON ; charset=utf-8") == (JSON, b"")
    assert media_type(b'multipart/Form-Data; boundary="x y"; a=b') == (MULTIPART, b"x y")
    assert media_type(MULTIPART) == (MULTIPART, b"")
    assert media_type(b" text/JSON;charset=utf-8") == (JSON, b"")


def test_only_numbers_raw_pixels_and_small_png_are_decoded_inline() -> None:
    def inline(kind: bytes, content: bytes) -> bool:
        return decodes_inline(Head(media_type=kind), content)

    assert inline(JSON, json.dumps({"image": ROWS}).encode())
    assert inline(PNG, picture(DIGITS[0]))
    assert inline(b"", picture(DIGITS[0]))
    assert inline(RAW, DIGITS.tobytes())
    assert not inline(JSON, b'{"image": "iVBO"}')
    assert not inline(JSON, b'{"images": ["iVBO"]}')
    assert not inline(PNG, picture(np.zeros((200, 200), np.uint8)))
    assert not inline(PNG, picture(DIGITS[0]) + bytes(20_000))
    assert not inline(PNG, picture(DIGITS[0], "JPEG"))
    assert not inline(RAW, picture(DIGITS[0], "JPEG"))
    assert not inline(JPEG, b"")
    assert not inline(MULTIPART, b"")
