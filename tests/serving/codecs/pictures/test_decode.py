"""Picture files are decoded within a limit on memory, whatever their format and metadata, or rejected."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.codecs.errors import InvalidPicture, RequestError, TooManyPixels
from serving.codecs.pictures.decode import decode_pictures
from tests.support.service import ROOT
from tests.support.training.samples import sample_test

Grey = NDArray[np.uint8]
DIGITS: list[Grey] = list(sample_test().images.numpy()[:20])
MAX_PIXELS = 16_000_000
LARGE = Image.fromarray(DIGITS[3]).resize((1400, 1400), Image.Resampling.BICUBIC)


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode with the least compression: fewer seconds for the same pixels."""
    fast = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0}}.get(kind, {})
    buffer = io.BytesIO()
    picture.save(buffer, kind, **fast | options)
    return buffer.getvalue()


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> Grey:
    image: Grey = decode_pictures([("picture", content)], max_pixels)[0]
    return image


def similar(image: Grey, other: Grey) -> bool:
    """Whether two images are the same but for the rounding of scaling and compression."""
    return float(np.abs(image.astype(float) - other).mean()) < 5


def png(width: int, height: int, *, data: bytes = b"", chunks: bytes = b"") -> bytes:
    """A PNG of the declared size with `data` as its compressed pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def exif(orientation: int, order: str = "<") -> bytes:
    """An EXIF block with one tag."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + start + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_exif(kind: str, picture: Image.Image, block: bytes) -> bytes:
    """Encode with an EXIF block that Pillow has not checked."""
    if kind == "JPEG":
        content = encode(picture, "JPEG", quality=95)
        return content[:2] + segment(0xE1, block) + content[2:]
    if kind == "PNG":
        content = encode(picture)
        return content[:33] + chunk(b"eXIf", block.removeprefix(b"Exif\0\0")) + content[33:]
    return encode(picture, "WEBP", lossless=True, exif=block)


ENCODERS: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG": encode,
    "interlaced": lambda picture: encode(picture, "PNG", interlace=1),
    "grey with alpha": lambda picture: encode(
        Image.merge("LA", (picture, Image.new("L", picture.size, 255)))
    ),
    "colour with alpha": lambda picture: encode(picture.convert("RGBA")),
    "palette": lambda picture: encode(picture.convert("RGB").quantize(64)),
    "16 bits": lambda picture: encode(Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)),
    "1 bit": lambda picture: encode(picture.convert("1")),
    "JPEG": lambda picture: encode(picture, "JPEG", quality=90),
    "progressive JPEG": lambda picture: encode(picture.convert("RGB"), "JPEG", quality=90, progressive=True),
    "CMYK JPEG": lambda picture: encode(picture.convert("CMYK"), "JPEG", quality=90),
    "WebP": lambda picture: encode(picture, "WEBP", quality=90),
    "WebP with alpha": lambda picture: encode(picture.convert("RGBA"), "WEBP", lossless=True),
    "GIF": lambda picture: encode(picture, "GIF"),
    "animated GIF": lambda picture: encode(
        picture, "GIF", save_all=True, append_images=[Image.new("L", picture.size)]
    ),
    "animated WebP": lambda picture: encode(
        picture, "WEBP", save_all=True, append_images=[Image.new("L", picture.size)]
    ),
    "BMP": lambda picture: encode(picture.convert("RGB"), "BMP"),
    "grey BMP": lambda picture: encode(picture, "BMP"),
}


@cache
def encoded(kind: str) -> bytes:
    """The large picture in one of the formats."""
    return ENCODERS[kind](LARGE)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_format_is_decoded_to_the_same_image(kind: str) -> None:
    assert similar(decode(encoded(kind)), decode(encoded("PNG")))


STORED: dict[int, Callable[[Grey], Grey]] = {  # how a camera stores a picture, by EXIF orientation
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,  # to be turned by 90° clockwise for viewing
    7: lambda upright: np.rot90(upright, 2).T,
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation: int) -> None:
    small = DIGITS[3]
    large = np.asarray(LARGE.resize((280, 280)))
    block = exif(orientation, "<" if orientation % 2 else ">")
    for kind in ("PNG", "WEBP"):
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](small)))
        assert np.array_equal(decode(with_exif(kind, stored, block)), small)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](large)))
    assert similar(decode(with_exif("JPEG", stored, block)), decode(encode(Image.fromarray(large))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_does_not_prevent_reading_the_picture(kind: str) -> None:
    """Pillow raises AttributeError, TypeError and others for some of these blocks (Pillow#7839, #6882)."""
    generator = np.random.default_rng(0)
    picture = Image.fromarray(DIGITS[3])
    plain = decode(encode(picture))
    whole = Image.Exif()
    whole.update(
        {0x0112: 1, 0x011A: 72.0, 0x0128: 2, 0x010F: "maker", 0x9003: "2026:01:01", 0x8769: {0x9000: b"0"}}
    )
    blocks = [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 60, exif(0), exif(9)]
    for _ in range(200):
        damaged = bytearray(whole.tobytes())
        for place in generator.integers(6, len(damaged), 6):
            damaged[place] = generator.integers(0, 256)
        blocks.append(bytes(damaged))
    for block in blocks:
        image = decode(with_exif(kind, picture, block))
        turned = [np.rot90(plain, turns) for turns in range(4)]  # some blocks are valid
        assert any(similar(image, one) or similar(image, one.T) for one in turned)


def test_a_multi_picture_file_of_a_phone_is_decoded_at_a_reduced_scale() -> None:
    content = encode(LARGE, "MPO", save_all=True, append_images=[LARGE.resize((100, 100))], quality=90)
    assert b"MPF\0" in content
    assert similar(decode(content, max_pixels=LARGE.width * LARGE.height // 4), decode(encoded("PNG")))


def test_a_damaged_multi_picture_index_does_not_prevent_reading_the_picture() -> None:
    content = encoded("JPEG")
    assert np.array_equal(
        decode(content[:2] + segment(0xE2, b"MPF\0II*\0\0\0") + content[2:]), decode(content)
    )


def test_a_picture_that_declares_too_many_pixels_is_rejected_without_decoding() -> None:
    for side in (9_000, 100_000):
        bomb = png(side, side, data=zlib.compress(bytes(10_000_000)))
        with pytest.raises(TooManyPixels, match="more than 64,000,000 pixels; scale the picture down"):
            decode(bomb)
    with pytest.raises(TooManyPixels, match="5000×5000, for which decoding holds 25,000,000 pixels"):
        decode(png(5000, 5000))


def test_the_pixel_limit_applies_to_all_pictures_together() -> None:
    picture = encode(LARGE.resize((100, 100)))
    assert decode_pictures([("a", picture), ("b", picture)], 20_000).shape == (2, 28, 28)
    with pytest.raises(TooManyPixels, match="b is 100×100"):
        decode_pictures([("a", picture), ("b", picture)], 19_999)


def test_a_sequential_jpeg_counts_with_the_pixels_of_its_reduced_scale() -> None:
    assert LARGE.width * LARGE.height == 1_960_000
    decode(encoded("JPEG"), max_pixels=1_960_000 // 16)
    decode(encoded("progressive JPEG"), max_pixels=1_960_000)
    with pytest.raises(TooManyPixels, match="send it as baseline JPEG"):
        decode(encoded("progressive JPEG"), max_pixels=1_959_999)


def test_a_sequential_jpeg_of_several_scans_counts_with_all_its_pixels() -> None:
    """For libjpeg holds the coefficients of all components until the last scan."""
    content = bytearray(encode(LARGE.convert("RGB"), "JPEG"))
    scan = content.index(b"\xff\xda")
    assert content[scan + 4] == 3
    several = content[:scan] + segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") + content[scan + 14 :]
    with pytest.raises(TooManyPixels):
        decode(bytes(several), max_pixels=1_959_999)


def test_webp_counts_four_times() -> None:
    decode(encoded("WebP"), max_pixels=4 * 1_960_000)
    with pytest.raises(TooManyPixels, match="holds 7,840,000 pixels"):
        decode(encoded("WebP"), max_pixels=4 * 1_960_000 - 1)


BOMBS = {
    "GIF": b"GIF89a\xff\xff\xff\xff\x00\x00\x00!\xf9\x04\x09\x00\x00\x01\x00,\0\0\0\0\xff\xff\xff\xff\0\x08\x02\0;",
    "GIF in a small screen": b"GIF89a\1\0\1\0\x00\x00\x00!\xf9\x04\x09\0\0\1\0,\0\0\0\0\xff\xff\xff\xff\0\x08\2\0;",
    "WebP": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0".ljust(60, b"\0"),
    "BMP": encode(Image.new("L", (4, 4)), "BMP").replace(
        struct.pack("<ii", 4, 4), struct.pack("<ii", 60000, 60000)
    ),
    "JPEG": encode(Image.new("L", (8, 8)), "JPEG").replace(b"\x08\0\x08\0\x08", b"\x08\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_declares_a_huge_picture_is_rejected_without_allocating_it(kind: str) -> None:
    before = peak_bytes()
    with pytest.raises(RequestError):
        decode(BOMBS[kind])
    assert peak_bytes() - before < 300e6  # 4 bytes for each of 2³² pixels, if they were allocated


def scans(count: int, between: bytes = b"") -> bytes:
    """A progressive JPEG that repeats one of its scans with its Huffman table."""
    content = encode(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    start = content.index(b"\xff\xc4", content.index(b"\xff\xda"))
    end = content.index(b"\xff\xc4", start + 2)
    return content[:start] + (content[start:end] + between) * count + content[start:]


EMPTY = {
    "chunks of PNG": png(28, 28, chunks=chunk(b"teSt", b"") * 50_000),
    "pixels of PNG": png(28, 28).replace(chunk(b"IDAT", b""), chunk(b"IDAT", b"") * 50_000),
    "extensions of GIF": b"GIF89a\x1c\0\x1c\0\0\0\0" + b"!\xfe\1a\0" * 50_000,
    "bytes in GIF": b"GIF89a\x1c\0\x1c\0\0\0\0" + b"\1" * 200_000,
    "scans of JPEG": scans(200),
    "scans of JPEG behind an end in a comment": scans(200, segment(0xFE, b"\xff\xd9")),
    "scans of JPEG behind a marker without length": scans(200, b"\xff\x01"),
    "comments behind a scan": scans(1, segment(0xFE, b"") * 2000),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_file_of_very_many_empty_parts_is_rejected_before_all_are_parsed(kind: str) -> None:
    with pytest.raises(InvalidPicture, match=r"it has more than 100,000 parts|100 scans|1000 segments after"):
        decode(EMPTY[kind])


def test_a_picture_in_many_parts_is_decoded() -> None:
    content = encode(LARGE, "PNG", compress_level=0)
    head, data = content[:33], zlib.compress(np.pad(np.asarray(LARGE), ((0, 0), (1, 0))).tobytes(), 0)
    parts = b"".join(chunk(b"IDAT", data[start : start + 1024]) for start in range(0, len(data), 1024))
    assert similar(decode(head + parts + chunk(b"IEND", b"")), DIGITS[3])
    video = segment(0xDA, b"") * 200  # what phones append to a photo may look like scans
    assert similar(decode(encoded("progressive JPEG") + video), DIGITS[3])


def peak_bytes() -> int:
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


INCOMPLETE = {
    "empty": b"",
    "text": b"hello",
    "cut-off PNG": encode(Image.fromarray(DIGITS[3]))[:200],
    "PNG without pixels": png(64, 64),
    "cut-off JPEG": encode(LARGE.resize((280, 280)), "JPEG")[:500],
    "JPEG signature": b"\xff\xd8\xff",
    "JPEG without a scan": b"\xff\xd8\xff\xd9",
    "JPEG of too many segments": b"\xff\xd8" + segment(0xC4, b"") * 2000,
    "WebP signature": b"RIFF\0\0\0\0WEBPVP8 ",
    "GIF signature": b"GIF89a",
    "BMP signature": b"BM".ljust(20, b"\0"),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_an_incomplete_file_is_rejected(kind: str) -> None:
    with pytest.raises(InvalidPicture, match=r"^picture is ") as caught:
        decode(INCOMPLETE[kind])
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ENCODERS)
def test_damaged_pictures_never_cause_an_internal_error(kind: str) -> None:
    generator = np.random.default_rng(0)
    whole = ENCODERS[kind](LARGE.resize((60, 60)))
    for _ in range(100):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 8):
            damaged[place] = generator.integers(0, 256)
        try:
            image = decode(bytes(damaged))
        except (InvalidPicture, TooManyPixels):
            continue
        assert image.shape == (28, 28)


STATUS = Path("/proc/self/status")
PEAK = """
import re, sys
from pathlib import Path
from serving.codecs.pictures.decode import decode_pictures

def peak_kilobytes(path):
    decode_pictures([("photo", Path(path).read_bytes())], 16_000_000)
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before, *peaks = map(peak_kilobytes, sys.argv[1:])
print(*(peak - before for peak in peaks))
"""
PHOTOS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda photo: encode(photo.convert("RGB"), "JPEG", quality=95),
    "progressive JPEG": lambda photo: encode(photo.convert("RGB"), "JPEG", quality=95, progressive=True),
    "PNG": lambda photo: encode(photo.convert("RGB")),
    "PNG with alpha": lambda photo: encode(Image.merge("RGBA", (photo,) * 4)),
    "PNG of 16 bits": lambda photo: encode(Image.fromarray(np.asarray(photo).astype(np.uint16) << 8)),
}


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak memory of a process from /proc")
def test_photos_of_12_megapixels_are_decoded_within_100_megabytes(tmp_path: Path) -> None:
    """One after the other: what one of them leaves allocated counts for the next ones."""
    photo = Image.fromarray(DIGITS[3]).resize((4032, 3024))
    files = [tmp_path / kind for kind in ("small", *PHOTOS)]
    files[0].write_bytes(encode(photo.resize((100, 100))))
    for file, encode_photo in zip(files[1:], PHOTOS.values(), strict=True):
        file.write_bytes(encode_photo(photo))
    command = [sys.executable, "-c", PEAK, *files]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peaks = dict(zip(PHOTOS, map(int, run.stdout.split()), strict=True))
    assert max(peaks.values()) * 1024 < 100_000_000, peaks
