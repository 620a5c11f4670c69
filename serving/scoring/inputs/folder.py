"""A folder of pictures, and those in its subfolders."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

from serving.scoring.inputs.base import (
    Block,
    Input,
    InputError,
    Item,
    Part,
    Rejected,
    Stamp,
    changed,
    even_parts,
    open_regular,
    too_large,
    unsafe,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""Of what is read; other files, such as labels, are left out."""
_BLOCK = 16
"""Pictures in memory."""


def is_picture_name(name: str) -> bool:
    """Return whether a file is a picture by its name."""
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class Folder(Input):
    """Pictures in the order of their paths. Symbolic links are not followed."""

    pictures: int

    def parts(self, items: int) -> Iterator[Part]:
        names = [name for name, _ in _files(self.path)]
        if len(names) != self.pictures:
            raise changed(self)
        for part in even_parts(self, len(names), items):
            yield part._replace(place=tuple(names[part.first : part.stop]))

    def read(self, part: Part, max_bytes: int) -> Iterator[Block]:
        for start in range(0, len(part.place), _BLOCK):
            yield [
                Item(name, _read(self.path / name, max_bytes)) for name in part.place[start : start + _BLOCK]
            ]


def folder(path: Path) -> Folder:
    """List a folder. Raises `InputError` without any picture, `OSError`."""
    size = count = 0
    digest = hashlib.sha256()
    for name, found in _files(path):
        size, count = size + found.st_size, count + 1
        digest.update(b"%b\0%d %d\n" % (os.fsencode(name), found.st_size, found.st_mtime_ns))
    if not count:
        raise InputError(
            f"{path} contains no pictures ({', '.join(SUFFIXES)}); name other inputs by their files: *.tar"
        )
    return Folder(path, Stamp(size, int.from_bytes(digest.digest()[:7])), count)


def _files(top: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path of every picture, relative to `top`, in a fixed order."""
    for name in sorted(each.name for each in (top / below).iterdir()):
        path = f"{below}{name}"
        found = (top / path).lstat()
        if S_ISDIR(found.st_mode):
            yield from _files(top, f"{path}/")
        elif is_picture_name(name):
            yield path, found


def _read(path: Path, max_bytes: int) -> bytes | Rejected:
    try:
        found = path.lstat()
        if S_ISLNK(found.st_mode):
            return unsafe("it is a symbolic link; copy the file it leads to")
        if not S_ISREG(found.st_mode):
            return unsafe("it is not a regular file")
        if found.st_size > max_bytes:
            return too_large(found.st_size, max_bytes)
        with open_regular(path, follow=False) as file:
            return file.read(max_bytes)
    except OSError as error:
        return Rejected("unreadable_item", f"it cannot be read: {error.strerror or error}")
