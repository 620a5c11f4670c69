"""Coverage-guided fuzzing of request bodies: pictures of every format with their metadata, forms, JSON, base64.

    make fuzz                                            # 100,000 inputs
    python -m tests.serving.codecs.fuzz FOLDER -runs=N   # FOLDER keeps inputs that reach new code; libFuzzer's options

A body may be rejected, but only with a `RequestError`; anything else, a hang or an exhausted memory is a failure, and
libFuzzer writes the input to a file. The seeds are valid bodies; checksums of PNG are corrected after each mutation,
because inputs would end there otherwise.
"""

import base64
import io
import json
import struct
import sys
import warnings
import zlib
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["PIL", "serving.codecs"]):
    from PIL import Image, ImageDraw, PngImagePlugin

    from serving.codecs.base import BodyLimits, Head
    from serving.codecs.bodies import JSON, MULTIPART, RAW, decode
    from serving.codecs.errors import RequestError

MAX_BYTES = 8192
_LIMITS = BodyLimits(max_images=8, max_pixels=1_000_000)
_PNG = b"\x89PNG\r\n\x1a\n"


def seeds() -> list[bytes]:
    """Return valid bodies, most of them pictures with metadata."""
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
    pictures = [
        encode(grey, "PNG", exif=exif, pnginfo=text, dpi=(72, 72), icc_profile=b"profile"),
        encode(colour, "PNG", transparency=(250, 250, 250)),
        encode(alpha, "PNG"),
        encode(grey.convert("1"), "PNG"),
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
    small = encode(grey.convert("1"), "PNG")
    digits = base64.b64encode(small)
    return [
        *pictures,
        digits,
        b"data:image/png;base64," + digits,
        json.dumps({"image": digits.decode()}).encode(),
        json.dumps({"images": [[0] * 784]}).encode(),
        b"\xef\xbb\xbf" + json.dumps({"image": [[0] * 28] * 28}).encode(),
        b'--x\r\nContent-Disposition: form-data; name="t"\r\n\r\n7\r\n--x\r\nContent-Disposition: form-data; name="f"; '
        b'filename="7.png"\r\nContent-Type: image/png\r\n\r\n%s\r\n--x--\r\n' % small,
        bytes(784),
    ]


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Encode a picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def mutate(body: bytes, max_size: int, seed: int) -> bytes:  # noqa: ARG001 - atheris' signature
    """Mutate a body, and correct the checksums of a PNG."""
    mutated: bytes = atheris.Mutate(body, max_size)
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


def decode_any(body: bytes) -> None:
    """Decode a body under the media type that suits it; every other exception than a `RequestError` ends the run."""
    kind = {b"-": MULTIPART, b"{": JSON, b"\0": RAW}.get(body[:1], b"")
    try:
        images = decode(Head(media_type=kind), body, _LIMITS)
    except RequestError:
        return
    assert images.dtype == np.uint8
    assert images.shape[1:] == (28, 28)
    assert len(images)


def main() -> None:
    """Write the seeds to the folder given and fuzz."""
    folder = Path(sys.argv[1])
    for index, seed in enumerate(seeds()):
        (folder / f"seed{index:02}").write_bytes(seed)
    warnings.simplefilter("ignore")
    options = [f"-max_len={MAX_BYTES}", "-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], decode_any, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
