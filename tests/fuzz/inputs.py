"""Fuzz targets of the inputs of bulk scoring: tar, NumPy and IDX files.

Parquet is read by pyarrow, which some mutations crash; bulk scoring reads it in a process that may die.
"""

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from serving.model.tensors import Images
from serving.scoring.inputs.base import BATCH, InputError, Unreadable
from serving.scoring.inputs.find import find_inputs
from tests.fuzz.files import folder
from tests.fuzz.target import Target

_MAX_ITEM_BYTES = 4096
_MAX_PARTS = 100


def _digits(count: int) -> Images:
    return np.arange(count * 784, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28)


def _picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(_digits(1)[0]).save(file, "PNG")
    return file.getvalue()


def _tar(form: int, kinds: Sequence[bytes] = (tarfile.REGTYPE,), name: str = "a.png") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for kind in kinds:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(_picture()) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(_picture()))
    return file.getvalue()


def tar_seeds() -> list[bytes]:
    kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE)
    negative = bytearray(_tar(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12  # a size of -1
    return [
        _tar(tarfile.USTAR_FORMAT),
        _tar(tarfile.GNU_FORMAT, kinds, "b" * 200 + ".png"),
        _tar(tarfile.PAX_FORMAT, kinds, "ü" * 200 + ".png"),
        bytes(negative),
        b"",
    ]


def npy_seeds() -> list[bytes]:
    def saved(array: Images) -> bytes:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    return [saved(_digits(2)), saved(_digits(2).reshape(2, 784)), saved(_digits(1)[:0]), b"\x93NUMPY"]


def idx_seeds() -> list[bytes]:
    plain = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4) for size in (2, 28, 28)) + _digits(2).tobytes()
    return [plain, gzip.compress(plain), plain[:10], b"\x1f\x8b"]


def reader(name: str) -> Callable[[bytes], None]:
    """Return a function that reads the parts of a file of this name; what is wrong with it is an error of one line."""

    def read(data: bytes) -> None:
        path = Path(folder().name, name)
        path.write_bytes(data)
        try:
            [source] = find_inputs([path], None)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
        for part in source.parts(1):
            try:
                for block in source.read(part, _MAX_ITEM_BYTES):
                    assert len(block) <= BATCH
            except Unreadable as error:
                assert "\n" not in str(error)  # noqa: PT017
            if part.number == _MAX_PARTS:
                break

    return read


TARGETS = (
    Target("tar", tar_seeds, reader("a.tar"), (b"ustar", b"path=", b"size=", b"GNU.sparse.map=", b"L", b"x")),
    Target("npy", npy_seeds, reader("a.npy"), (b"'descr'", b"'|u1'", b"'|O'", b"True", b"-1", b"(", b"28")),
    Target(
        "idx", idx_seeds, reader("a.gz"), (b"\0\0\x08\x03", b"\0\0\0\x1c", b"\xff\xff\xff\xff", b"\x1f\x8b")
    ),
)
