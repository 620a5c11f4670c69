"""The line between the supervisor and one of its children: heartbeats one way, the start of the shutdown the other.

A socket pair that neither side ever waits on: a stopped process at one end cannot hold up the other.
"""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import wait

BEAT_SECONDS = 0.5
"""Between two heartbeats."""

_BEAT, _DRAIN = b".", b"d"


class Lifeline:
    """The child's end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._next = 0.0

    def beat(self) -> None:
        """Send a heartbeat; the first one reports that the child is ready. At most one per `BEAT_SECONDS`."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + BEAT_SECONDS
            with suppress(
                OSError
            ):  # full, because the supervisor is stopped, or closed, because it has ended
                self._end.send(_BEAT, socket.MSG_DONTWAIT)

    def drains(self) -> bool:
        """Return whether the supervisor has announced the shutdown since the last call."""
        with suppress(OSError):
            return bool(self._end.recv(1, socket.MSG_DONTWAIT))
        return False


class Monitor:
    """The supervisor's end."""

    def __init__(self) -> None:
        self._end, child = socket.socketpair()
        self.lifeline = Lifeline(child)
        self.last_beat: float | None = None
        """Time of the last heartbeat (`time.monotonic`); None before the first."""

    def fileno(self) -> int:
        """Return what `multiprocessing.connection.wait` waits on."""
        return self._end.fileno()

    def receive(self) -> None:
        """Take the heartbeats that have arrived."""
        with suppress(OSError):
            if self._end.recv(64, socket.MSG_DONTWAIT):
                self.last_beat = time.monotonic()

    def drain(self) -> None:
        """Announce the shutdown."""
        with suppress(OSError):
            self._end.send(_DRAIN, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Close both ends."""
        self._end.close()
        self.lifeline._end.close()  # noqa: SLF001 - of the same module


def end_with_parent() -> None:
    """In a child: exit when the parent has ended, even by SIGKILL."""
    parent = parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
