"""Arrays of images: NumPy's `.npy` and MNIST's IDX, as it is or with gzip.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
http://yann.lecun.com/exdb/mnist (IDX)
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from serving.model.tensors import PIXELS, SIDE, Images
from serving.scoring.inputs.base import (
    BATCH,
    IMAGES,
    Block,
    Input,
    Part,
    Unreadable,
    even_parts,
    file_stamp,
    open_unchanged,
)

IDX_MAGIC = b"\0\0"
GZIP_MAGIC = b"\x1f\x8b"
_MAX_DEFLATE = 1032
"""Bytes that one byte of deflate expands to at most."""
_ERRORS = (OSError, EOFError, ValueError, zlib.error)


@dataclass(frozen=True)
class ArrayFile(Input):
    """Images of 28×28 bytes, from `offset` on."""

    images: int
    offset: int
    compressed: bool = False

    @property
    def part_items(self) -> int:
        return IMAGES

    def parts(self, items: int) -> Iterator[Part]:
        return even_parts(self, self.images, items)

    def read(self, part: Part, max_bytes: int) -> Iterator[Block]:  # noqa: ARG002 - images have 784 bytes
        file = _compressed(self) if self.compressed else open_unchanged(self)
        try:
            file.seek(self.offset + part.first * PIXELS)
            for first in range(part.first, part.stop, BATCH):
                count = min(BATCH, part.stop - first)
                content = file.read(count * PIXELS)
                if len(content) != count * PIXELS:
                    raise Unreadable(
                        f"it ends within image {first + len(content) // PIXELS}; its header says {self.images:,}"
                    )
                yield _images(content)
        except _ERRORS as error:
            raise Unreadable(f"it is damaged: {error}") from None
        finally:
            if not self.compressed:
                file.close()


def _images(content: bytes) -> Images:
    return np.frombuffer(content, np.uint8).reshape(-1, SIDE, SIDE)


@lru_cache(maxsize=1)
def _compressed(source: ArrayFile) -> BinaryIO:
    """Open a compressed file, or return it open: the next part is usually further on."""
    open_unchanged(source).close()
    return cast("BinaryIO", gzip.open(source.path))


def npy_file(path: Path) -> ArrayFile:
    """Read the header of `uint8 [N, 28, 28]` or `[N, 784]`. Raises `Unreadable`, `OSError`."""
    stamp = file_stamp(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
        except Exception as error:  # noqa: BLE001 - NumPy tokenizes a damaged header as Python
            raise Unreadable(f"it is not a NumPy file: {str(error).partition('.')[0]}") from None
        offset = file.tell()
    if dtype != np.uint8:
        raise Unreadable(f"it has the type {dtype}; expected uint8, ink 0–255")
    _check_shape(shape)
    if fortran and len(shape) > 1:
        raise Unreadable("it is in Fortran order; save numpy.ascontiguousarray(array)")
    if stamp.size - offset < prod(shape):
        raise Unreadable(f"it has {stamp.size:,} bytes; its shape {shape} takes {offset + prod(shape):,}")
    return ArrayFile(path, stamp, shape[0], offset)


def idx_file(path: Path) -> ArrayFile:
    """Read the header of an IDX file with N images, perhaps with gzip. Raises `Unreadable`, `OSError`."""
    stamp = file_stamp(path)
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            header = gzip.GzipFile(fileobj=file).read(16) if compressed else file.read(16)
        except _ERRORS as error:
            raise Unreadable(f"it is not valid gzip: {error}") from None
    if header[:2] != IDX_MAGIC or len(header) < 4:
        subject = "what gzip has compressed" if compressed else "it"
        raise Unreadable(f"{subject} is not an IDX file: it begins with {header[:4]!r}")
    kind, dimensions = header[2], header[3]
    offset = 4 + 4 * dimensions
    if kind != 8:
        raise Unreadable(f"its type is {kind:#x}; expected 0x8, unsigned bytes")
    shape = tuple(int.from_bytes(header[at : at + 4]) for at in range(4, min(offset, len(header)), 4))
    _check_shape(shape)
    needed = offset + prod(shape)
    if stamp.size * (_MAX_DEFLATE if compressed else 1) < needed:
        raise Unreadable(f"it has {stamp.size:,} bytes, too few for the {shape[0]:,} images of its header")
    return ArrayFile(path, stamp, shape[0], offset, compressed)


def _check_shape(shape: tuple[int, ...]) -> None:
    if shape[1:] not in {(SIDE, SIDE), (PIXELS,)} or shape[0] < 0:
        raise Unreadable(f"its shape is {shape}; expected (N, 28, 28) or (N, 784)")
