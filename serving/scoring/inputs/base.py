"""The interface of an input: split into parts, each read as blocks of images or of items to decode.

Inputs come from anyone. None is trusted: sizes are checked before anything is read, and whatever cannot be read is
`Unreadable`, which sets a part aside and ends no run.
"""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from distillery import DistilleryError
from serving.codecs.errors import RequestError
from serving.model.tensors import Images

BATCH = 256
"""Images per run of the model, as in the largest request that the service takes by default."""
IMAGES, PICTURES = 65_536, 1024
"""Items per part: a second or several of work, of which flushing a file to the disk takes little."""


class InputError(DistilleryError):
    """An input that is missing, of an unknown kind, or changed."""


class Unreadable(Exception):  # noqa: N818 - named after the problem
    """An input, or the rest of a part, cannot be read. The message names what was found and what is expected."""


class Rejected(NamedTuple):
    """Why an item has no prediction: code and message, as in a response of the service."""

    code: str
    message: str

    @classmethod
    def by(cls, error: RequestError) -> "Rejected":
        """Return the reason that a codec gave."""
        return cls(error.code, str(error))


def unsafe(message: str) -> Rejected:
    """Return the reason for an item that is not read at all."""
    return Rejected("unsafe_item", message)


class Item(NamedTuple):
    """One item of a block: a body as `POST /predict` takes it, pixels `uint8 [28, 28]`, or why it is neither."""

    name: str | None
    content: bytes | Images | Rejected


Block = Images | Sequence[Item]
"""Consecutive items: valid images `uint8 [N, 28, 28]` without names, N ≤ `BATCH`, or anything else."""


class Part(NamedTuple):
    """Items `first` to `stop` − 1 of an input, the unit of work and of output."""

    input: "Input"
    number: int
    first: int
    stop: int
    size: float
    """Bytes of the input that the part takes, about."""
    place: Any = None
    """Where reading begins, by kind of input."""


class Stamp(NamedTuple):
    """What shows that an input has changed."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970, or a hash of the names, sizes and times of a folder's files."""


@dataclass(frozen=True)
class Input(ABC):
    """A file or folder."""

    path: Path
    """Absolute, without symbolic links."""
    stamp: Stamp

    @property
    def part_items(self) -> int:
        """Items per part by default."""
        return PICTURES

    @abstractmethod
    def parts(self, items: int) -> Iterator[Part]:
        """Split into parts of `items` items; the same input always has the same parts. Raises `Unreadable`."""

    @abstractmethod
    def read(self, part: Part, max_bytes: int) -> Iterator[Block]:
        """Yield the items of a part; those of more than `max_bytes` are rejected unread. Raises `Unreadable`."""


def even_parts(source: Input, total: int, items: int) -> Iterator[Part]:
    """Split an input of `total` items."""
    for number, first in enumerate(range(0, total, items)):
        stop = min(first + items, total)
        yield Part(source, number, first, stop, source.stamp.size * (stop - first) / total)


def file_stamp(path: Path) -> Stamp:
    """Return size and time of a file. Raises `OSError`."""
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns)


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; never wait for the writer of a pipe. Raises `OSError`.

    With `follow` false, a symbolic link is an error.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def open_unchanged(source: Input) -> BinaryIO:
    """Open the file of an input. Raises `InputError` if it is not the one that the run began with, `Unreadable`."""
    try:
        file = open_regular(source.path)
    except OSError as error:
        raise Unreadable(f"it cannot be opened: {error.strerror or error}") from None
    found = os.fstat(file.fileno())
    if Stamp(found.st_size, found.st_mtime_ns) != source.stamp:
        file.close()
        raise changed(source)
    return file


def changed(source: Input) -> InputError:
    """Return the error for an input that is not the one that the run began with."""
    return InputError(f"{source.path} has changed during the run; score it into another folder")


def too_large(size: int, limit: int) -> Rejected:
    """Return the reason for an item above the limit of a body."""
    return Rejected("body_too_large", f"it has {size:,} bytes; one item may have {limit:,}")
