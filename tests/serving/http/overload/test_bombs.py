"""Small bodies made to take much memory or time, over HTTP: the response, and the memory of the service."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.support.service import Service
from tests.support.training.samples import sample_test

PIXELS = sample_test().images[0].flatten().tolist()
IMAGE = json.dumps(PIXELS).encode()
ONE = json.dumps({"image": PIXELS}).encode()
MAX_GROWTH_BYTES = 150_000_000


def zeros(megabytes: int, window_bits: int = zlib.MAX_WBITS) -> bytes:
    """Compressed zeros without an end, which nobody should read; made of equal blocks, because that is quick."""
    compressor = zlib.compressobj(wbits=window_bits)
    blocks = [compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
    return blocks[0] + blocks[1] * (megabytes - 1)


GIGABYTE = zeros(1000, 16 + zlib.MAX_WBITS)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


def pixel(value: bytes) -> bytes:
    """A valid image but for one value."""
    return b'{"image": [%b, %b]}' % (value, b", ".join([b"0"] * 783))


ROW = b"\0" + bytes(28)
SMALL = (b"IDAT", zlib.compress(ROW * 14 + b"\0" + b"\xff" * 14 + bytes(14) + ROW * 13))
FRAME = b",\0\0\0\0\x1c\0\x1c\0\0\x08\x01\0\0"
BOMBS = {
    "nesting": (b'{"image": ' + b"[" * 1_000_000, {}, 400, "malformed_body"),
    "nesting of objects": (b'{"image": ' * 100_000, {}, 422, "too_many_images"),
    "a number beyond double": (pixel(b"1e999"), {}, 400, "malformed_body"),
    "a million digits": (pixel(b"9" * 1_000_000), {}, 400, "malformed_body"),
    "65 bits": (pixel(b"18446744073709551616"), {}, 422, "invalid_type"),
    "a fraction": (pixel(b"0.5"), {}, 422, "invalid_type"),
    "not a number": (pixel(b"NaN"), {}, 400, "malformed_body"),
    "minus infinity": (pixel(b"-Infinity"), {}, 400, "malformed_body"),
    "invalid UTF-8": (b'{"image": "\xff"}', {}, 400, "malformed_body"),
    "a lone surrogate": (b'{"image": "\\ud800"}', {}, 400, "malformed_body"),
    "a NUL": (b'{"image": "\0"}', {}, 400, "malformed_body"),
    "two keys, of which the last counts": (b'{"image": [], "image": %b}' % IMAGE, {}, 200, None),
    "the other way round": (b'{"image": %b, "image": []}' % IMAGE, {}, 422, "invalid_shape"),
    "a gigabyte in gzip": (GIGABYTE, {"Content-Encoding": "gzip"}, 413, "body_too_large"),
    "gzip in gzip": (gzip.compress(GIGABYTE), {"Content-Encoding": "gzip"}, 422, "invalid_picture"),
    "gzip named twice": (gzip.compress(ONE), {"Content-Encoding": "gzip, gzip"}, 415, "unsupported_encoding"),
    "empty gzip members": (gzip.compress(b"") * 100_000, {"Content-Encoding": "gzip"}, 400, "malformed_body"),
    "PNG of 64 megapixels": (
        png(8000, 8000, (b"IDAT", zeros(65))),
        {},
        413,
        "too_many_pixels",
    ),
    "PNG with too many pixels for its size": (
        png(28, 28, (b"IDAT", zeros(1000))),
        {},
        422,
        None,
    ),
    "text in PNG": (
        png(28, 28, (b"zTXt", b"a\0\0" + zeros(1000)), SMALL),
        {},
        422,
        "invalid_picture",
    ),
    "frames of GIF": (
        b"GIF89a\x1c\0\x1c\0\x80\0\0\0\0\0\xff\xff\xff" + FRAME * 100_000,
        {},
        422,
        "invalid_picture",
    ),
}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=20) as client:
        yield client
        assert client.post("/predict", content=ONE).status_code == 200


def memory(service: Service) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in service.children())


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_has_a_documented_response_and_takes_little_memory(
    service: Service, client: httpx.Client, name: str
) -> None:
    body, headers, status, code = BOMBS[name]
    before = memory(service)
    answer = client.post("/predict", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    if code:
        assert answer.json()["error"]["code"] == code, answer.text
    assert len(answer.content) < 2000
    assert memory(service) - before < MAX_GROWTH_BYTES
