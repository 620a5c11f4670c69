"""The segments of a JPEG file: what Pillow need not parse is separated before it opens the file.

Pillow parses EXIF and multi-picture blocks when it opens a JPEG: broken ones raise arbitrary exceptions although the
picture is intact, and a multi-picture file, as phones write, is treated as another format.
Specification: ITU-T T.81, annex B.
"""

import re
from typing import NamedTuple

_MAX_SEGMENTS = 1000  # of which a photo has dozens; each costs Pillow microseconds
_MAX_SCANS = (
    100  # of which a progressive photo has ten; each costs libjpeg the time of all pixels, in any few bytes
)
_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")  # after the data of a scan
_END = 0xD9
_SCAN = 0xDA
_SEQUENTIAL = {0xC0, 0xC1}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}  # none of them occurs between the first one and the scan
_DROPPED = {
    *range(0xE1, 0xEE),
    0xEF,
    0xFE,
}  # APPn and comments; APP0 (JFIF) and APP14 (Adobe) state the colours
_METADATA = {"exif": b"Exif\0\0", "xmp": b"http://ns.adobe.com/xap/1.0/\0"}


class Jpeg(NamedTuple):
    """A JPEG file without its metadata."""

    content: bytes
    metadata: dict[str, bytes]
    """EXIF and XMP, as far as present, by Pillow's names."""
    streamed: bool
    """Decoded row by row: sequential, in one scan. Otherwise libjpeg holds the coefficients of all pixels."""


def split_jpeg(content: bytes) -> Jpeg:
    """Separate the metadata from the picture. Raises `ValueError` unless segments with a scan follow each other."""
    kept, metadata, sequential, components = [content[:2]], dict[str, bytes](), False, 0
    at = 2
    for _ in range(_MAX_SEGMENTS):
        at = content.index(b"\xff", at)  # decoders skip anything else between segments
        marker = int.from_bytes(content[at + 1 : at + 2])
        if marker in {0x00, 0xFF}:  # padding
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            raise ValueError(f"marker {marker:#x} precedes the scan")
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        segment = content[at:end]
        if marker == _SCAN:
            streamed = sequential and segment[4:5] == bytes([components])
            if not streamed:
                _check_scans(content, end)
            return Jpeg(b"".join([*kept, content[at:]]), metadata, streamed)
        if marker in _FRAMES:
            sequential, components = marker in _SEQUENTIAL, int.from_bytes(segment[9:10])
        for name, start in _METADATA.items():
            if marker == 0xE1 and segment.startswith(start, 4):
                metadata.setdefault(name, segment[4:] if name == "exif" else segment[4 + len(start) :])
        if marker not in _DROPPED:
            kept.append(segment)
        at = end
    raise ValueError(f"its first {_MAX_SEGMENTS} segments have no scan")


def _check_scans(content: bytes, at: int) -> None:
    """Check the number of scans and other segments after the header of the first scan. Raises `ValueError`."""
    scans = 1
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(content, at)
        if found is None or (marker := found[0][1]) == _END:
            return
        scans += marker == _SCAN
        if scans > _MAX_SCANS:
            raise ValueError(f"it has more than {_MAX_SCANS} scans")
        at = found.end()
        if marker not in _WITHOUT_LENGTH:
            at += int.from_bytes(content[at : at + 2])
    raise ValueError(f"it has more than {_MAX_SEGMENTS} segments after its first scan")
