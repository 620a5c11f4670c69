"""Files that are read again when they change: API keys and the certificate.

They are polled, which works in every process, and where signals and notifications do not: in containers, on network
file systems, behind the symbolic links of a Kubernetes volume.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

SETTLE_SECONDS = 0.1
"""Without a change, before files are read: a certificate and its key are written one after the other."""


class WatchedFiles(Generic[T]):
    """What `read` makes of some files."""

    def __init__(self, read: Callable[[], T], *files: Path) -> None:
        """Read the files. Raises what `read` raises."""
        self._read = read
        self._paths = files
        self._stamps = self._seen = self._current()
        self._seen_at = 0.0
        self.value = read()

    def reload(self) -> bool:
        """Read the files again if they have changed; return whether they have.

        Raises what `read` raises, once for every change; `value` is then that of before.
        """
        stamps = self._current()
        if stamps == self._stamps:
            return False
        now = time.monotonic()
        if stamps != self._seen:
            self._seen, self._seen_at = stamps, now
        if now - self._seen_at < SETTLE_SECONDS:
            return False
        self._stamps = stamps
        self.value = self._read()
        return True

    def _current(self) -> list[tuple[int, ...] | None]:
        return [stamp(path) for path in self._paths]


def stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written, replaced or moved behind a symbolic link."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
