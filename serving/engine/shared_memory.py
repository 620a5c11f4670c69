"""Memory that the processes of the service share, in no folder.

The pages are allocated at once: where memory is short, the service fails at its start with a message, rather than later
with SIGBUS, as a process does that touches a new page of a file on a full disk.
"""

import mmap
import os
import tempfile
import weakref
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillery import DistilleryError


class SharedMemoryError(DistilleryError):
    """The memory cannot be allocated."""


class SharedRows:
    """`float64 [rows, columns]`, shared with child processes, whether forked or spawned; zeros at first."""

    array: NDArray[np.float64]

    def __init__(self, rows: int, columns: int, descriptor: int | None = None) -> None:
        """Allocate the memory, or map that of `descriptor`. Raises `SharedMemoryError`."""
        size = rows * columns * 8
        self._descriptor = allocate(bytes(size)) if descriptor is None else descriptor
        weakref.finalize(self, os.close, self._descriptor)
        self.array = np.frombuffer(mmap.mmap(self._descriptor, size), np.float64).reshape(rows, columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (*self.array.shape, DupFd(self._descriptor))


def _attached(rows: int, columns: int, descriptor: Any) -> SharedRows:
    return SharedRows(rows, columns, descriptor.detach())


def allocate(content: bytes) -> int:
    """Return the descriptor of memory with this content: anonymous on Linux, of a deleted file elsewhere.

    Raises `SharedMemoryError`.
    """
    descriptor: int
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("distillery")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except OSError as error:
        raise SharedMemoryError(f"no {len(content):,} bytes of shared memory: {error.strerror}") from None
    return descriptor
