"""Tar files, as WebDataset names their members: `KEY.EXTENSION`, of which the pictures are scored.

Nothing is extracted: members are read where they are, and a member's name is only a name.
https://github.com/webdataset/webdataset#the-webdataset-format
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from serving.scoring.inputs.base import (
    Block,
    Input,
    Item,
    Part,
    Rejected,
    Unreadable,
    file_stamp,
    open_unchanged,
    too_large,
    unsafe,
)
from serving.scoring.inputs.folder import is_picture_name

_BLOCK = 16
"""Pictures in memory."""
MAX_NAME = 4096
"""Characters of a member's name."""
_MAX_HEADER = 1024 * 1024
"""Bytes of a long name or of extended attributes, which are read at once."""


@dataclass(frozen=True)
class TarArchive(Input):
    """Pictures in the order of the file. `Part.place` is the position of a part's first header."""

    def parts(self, items: int) -> Iterator[Part]:
        number = first = begin = count = 0
        with open_unchanged(self) as file:
            try:
                for member in _members(file, 0):
                    if count == items:
                        yield Part(self, number, first, first + count, member.offset - begin, begin)
                        number, first, begin, count = number + 1, first + count, member.offset, 0
                    count += 1
            except Unreadable:
                count += 1  # one item of the last part, whose reader fails at the same place
        if count:
            yield Part(self, number, first, first + count, self.stamp.size - begin, begin)

    def read(self, part: Part, max_bytes: int) -> Iterator[Block]:
        with open_unchanged(self) as file:
            block: list[Item] = []
            left = part.stop - part.first
            try:
                for member in _members(file, part.place):
                    block.append(Item(member.name[:MAX_NAME], _content(member, file, max_bytes)))
                    left -= 1
                    if not left:
                        break
                    if len(block) == _BLOCK:
                        yield block
                        block = []
            except Unreadable:
                yield block
                raise
            yield block


class _Bounded:
    """A file of which `tarfile` may read a limited number of bytes at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _members(file: BinaryIO, offset: int) -> Iterator[tarfile.TarInfo]:
    """Yield the pictures among the members from a position on. Raises `Unreadable`."""
    file.seek(offset)
    try:
        with tarfile.open(fileobj=cast("BinaryIO", _Bounded(file)), mode="r:") as archive:
            position = -1
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it would keep all of them
                if member.size < 0 or member.offset <= position:
                    raise ValueError("members overlap")
                position = member.offset
                if is_picture_name(member.name) and not member.isdir():
                    yield member
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001 - tarfile raises nearly everything on damaged files
        raise Unreadable(f"it is not a tar file, or damaged: {error or type(error).__name__}") from None


def _content(member: tarfile.TarInfo, file: BinaryIO, max_bytes: int) -> bytes | Rejected:
    name = PurePosixPath(member.name)
    if len(member.name) > MAX_NAME:
        return unsafe(f"its name has {len(member.name):,} characters; expected at most {MAX_NAME:,}")
    if name.is_absolute() or ".." in name.parts:
        return unsafe("its name leads out of the archive")
    if member.issym() or member.islnk():
        return unsafe(f"it is a link to {member.linkname[:80]!r}")
    if not member.isreg() or member.issparse():
        return unsafe("it is not a regular file")
    if member.size > max_bytes:
        return too_large(member.size, max_bytes)
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) < member.size:
        raise Unreadable(f"it ends within {member.name[:80]!r}")
    return content


def tar_file(path: Path) -> TarArchive:
    """Return the input. Raises `OSError`."""
    return TarArchive(path, file_stamp(path))
