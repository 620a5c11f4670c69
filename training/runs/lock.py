"""Locks that exclude other commands from a folder. The operating system frees the lock of a process that ends."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distillery import DistilleryError
from distillery.files import file_errors, make_folder
from training.distributed import on_rank_0

LOCK = ".lock"
"""The file in a folder; it names the process that holds the lock, or the last one that did."""
NOTICE_S = 1.0
"""A command that waits for longer says so."""


class LockedError(DistilleryError):
    """A folder that another command is using."""


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Exclude other commands from `folder`, which is created: wait for them, or raise `LockedError`.

    Raises `FileError` for a folder that cannot be written.
    """
    lock, notified = FileLock(folder / LOCK), False

    def acquire() -> bool:
        nonlocal notified
        with file_errors(folder):
            make_folder(folder)
            try:
                lock.acquire(timeout=NOTICE_S if wait else 0)
            except Timeout:
                holder = _holder(folder)
                if not wait:
                    raise LockedError(
                        f"another command is using {folder}: {holder}; wait for it, or choose another folder"
                    ) from None
                if not notified:
                    print(f"waiting for {holder}, which is using {folder}", file=sys.stderr, flush=True)
                notified = True
                return False
            except NotImplementedError as error:
                raise OSError(str(error)) from None
        with suppress(OSError):  # on a full disk, the lock is held all the same
            (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        return True

    while not on_rank_0(acquire):  # the other ranks wait for each attempt: none may wait for long
        pass
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether another command holds the lock of `folder`."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _holder(folder: Path) -> str:
    with suppress(OSError, ValueError):
        return (folder / LOCK).read_text(encoding="utf-8").strip() or "an unknown process"
    return "an unknown process"
