"""Seeds and mutations of pictures: every format and kind of metadata that Pillow writes."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from tests.fuzz.target import Mutation

_PNG = b"\x89PNG\r\n\x1a\n"


def pictures() -> list[bytes]:
    """Return pictures of a digit, most of them with metadata."""
    grey = Image.new("L", (40, 30), 250)
    ImageDraw.Draw(grey).line([(10, 5), (28, 6), (18, 26)], fill=20, width=3)
    colour = Image.merge("RGB", (grey, grey.rotate(10), grey))
    alpha = Image.merge("RGBA", (*colour.split(), grey))
    exif = Image.Exif()
    exif.update(
        {0x010F: "maker", 0x0112: 6, 0x011A: 72.5, 0x011B: 72.5, 0x0128: 2, 0x0132: "2026:01:01 00:00:00"}
    )
    exif.get_ifd(0x8769).update({0x9000: b"0231", 0x829A: (1, 60), 0x9286: b"comment", 0xA002: 40})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 1.5)})
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "seven", zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    xmp = b'<x:xmpmeta xmlns:tiff="t" tiff:Orientation="3"/>'
    return [
        encode(grey, "PNG", exif=exif, pnginfo=text, dpi=(72, 72), icc_profile=b"profile"),
        encode(colour, "PNG", transparency=(250, 250, 250)),
        encode(alpha, "PNG"),
        small_picture(),
        encode(colour.quantize(8), "PNG", transparency=0),
        encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"),
        encode(grey, "PNG", save_all=True, append_images=[grey.rotate(90)]),
        encode(colour, "JPEG", exif=exif, xmp=xmp, comment=b"seven", icc_profile=b"profile", dpi=(72, 72)),
        encode(grey, "JPEG", exif=exif),
        encode(colour, "JPEG", progressive=True),
        encode(colour.convert("CMYK"), "JPEG"),
        encode(grey, "MPO", save_all=True, append_images=[grey]),
        encode(colour, "WEBP", exif=exif, xmp=xmp, icc_profile=b"profile"),
        encode(alpha, "WEBP", lossless=True),
        encode(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)]),
        encode(grey, "GIF", comment=b"seven"),
        encode(colour.quantize(8), "GIF", transparency=0, interlace=1),
        encode(grey, "GIF", save_all=True, append_images=[grey.rotate(90)], disposal=2, loop=0),
        encode(grey, "BMP"),
        encode(colour, "BMP"),
        encode(alpha, "BMP"),
        encode(grey.convert("1"), "BMP"),
    ]


def small_picture() -> bytes:
    """Return a picture in few bytes."""
    picture = Image.new("1", (40, 30), 1)
    ImageDraw.Draw(picture).line([(10, 5), (28, 6), (18, 26)], fill=0, width=3)
    return encode(picture, "PNG")


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Encode a picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def mutate_picture(body: bytes, max_size: int, choices: random.Random, mutation: Mutation) -> bytes:  # noqa: ARG001
    """Mutate a picture, and correct the checksums of a PNG, where inputs would end otherwise."""
    mutated = mutation(body, max_size)
    if not mutated.startswith(_PNG):
        return mutated
    corrected = bytearray(_PNG)
    at = len(_PNG)
    while at + 12 <= len(mutated):
        (length,) = struct.unpack_from(">I", mutated, at)
        length = min(length, len(mutated) - at - 12)
        chunk = mutated[at + 4 : at + 8 + length]
        corrected += struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return bytes(corrected)
