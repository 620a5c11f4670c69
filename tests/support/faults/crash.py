"""End this process at its n-th change of a folder, as SIGKILL and the loss of power do at any moment.

Changes are those that Python's audit events and `os.fsync` show: files opened for writing, flushed, renamed, deleted,
folders and links created. A file that is being flushed loses its second half first: its content had not arrived.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR
_flush = os.fsync


def kill_at(change: int, folder: Path) -> None:
    """Kill this process with SIGKILL just before the given change, counted from 1, of anything in `folder`."""
    numbers, inside = count(1), str(folder)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and (event != "open" or (arguments[2] or 0) & WRITING):
            paths = [os.fsdecode(path) for path in arguments if isinstance(path, str | bytes)]
            if any(path.startswith(inside) for path in paths) and next(numbers) == change:
                kill()

    def flush(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if place.is_relative_to(folder) and next(numbers) == change:
            if place.is_file():
                os.truncate(place, place.stat().st_size // 2)
            kill()
        _flush(descriptor)

    os.fsync = flush
    sys.addaudithook(hook)
