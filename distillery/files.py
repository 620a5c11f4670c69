"""Files that are complete or absent, whatever ends the process that writes them.

A file is written under a temporary name, `.NAME-ID.tmp`, flushed to the disk and renamed. Nothing reads such names, and
the next write into a folder deletes those that a killed process has left there.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from distillery.errors import DistilleryError

TEMPORARY = ".tmp"
_MAKE_SPACE = "make space there, then run the same command to continue"
_MAKE_WRITABLE = "make it writable for this user, or choose another folder"
_FIXES = {
    errno.ENOSPC: _MAKE_SPACE,
    errno.EDQUOT: _MAKE_SPACE,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), then run the same command to continue",
    errno.EACCES: _MAKE_WRITABLE,
    errno.EPERM: _MAKE_WRITABLE,
    errno.EROFS: _MAKE_WRITABLE,
}


class FileError(DistilleryError):
    """A folder that cannot be written: full, read-only, in the place of a file."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}; {fix}")
        self.reason = reason
        """The message without the fix, for a program that goes on."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all, even if the machine loses power. Creates missing folders.

    Other users can read the file as far as the umask allows. Raises `FileError`.
    """
    with file_errors(path.parent):
        make_folder(path.parent)
        _delete_leftovers(path.parent)
        with _temporary_file(path) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        flush_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Create `folder` if it is missing; raise `FileError` if no file can be written into it, before long work."""
    with file_errors(folder):
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))


@contextmanager
def file_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system in writing to `folder` into a `FileError` with the fix."""
    try:
        yield
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "choose another folder")
        raise FileError(f"{folder} cannot be written: {error.strerror or error}", fix) from None


def make_folder(folder: Path) -> None:
    """Create `folder` and missing parents so that they outlast a loss of power. Raises `FileError`, `OSError`."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise FileError(f"{folder} is a file, expected a folder", "choose another one") from None
        flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    with suppress(OSError):  # not every file system can, and the folder need not be readable
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def is_outdated(source: Path, *outputs: Path) -> bool:
    """Return whether any of `outputs` is missing or older than `source`, a file or a link."""
    changed = source.lstat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns < changed for path in outputs)


def _temporary_file(path: Path) -> BinaryIO:
    """Create a temporary file next to `path`; its lock shows other processes that it is being written."""
    while True:
        file = path.with_name(f".{path.name}-{secrets.token_hex(4)}{TEMPORARY}").open("xb")
        with suppress(OSError):  # no locks on this file system: nothing deletes leftovers then
            fcntl.flock(file, fcntl.LOCK_EX)
        if Path(file.name).exists():
            return file
        file.close()  # another process took it for a leftover before it was locked


def _delete_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError), leftover.open("r+b") as file:  # BlockingIOError: it is being written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
