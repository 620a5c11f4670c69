"""The line between the supervisor and one of its children.

Heartbeats one way, or why the child cannot start; the start of the shutdown the other. Beside it, a channel of messages
in both directions (`serving.processes.channel`).

Socket pairs that neither side ever waits on: a stopped process at one end cannot hold up the other.
"""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import NoReturn

from serving.processes.channel import Channel

BEAT_SECONDS = 0.5
"""Between two heartbeats."""

_BEAT, _DRAIN = b".", b"d"
_FAILED = b"!"
"""Followed by the reason."""


class Lifeline:
    """The child's end."""

    def __init__(self, end: socket.socket, channel: Channel) -> None:
        self._end = end
        self._next = 0.0
        self.channel = channel

    def beat(self) -> None:
        """Send a heartbeat; the first one reports that the child is ready. At most one per `BEAT_SECONDS`."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + BEAT_SECONDS
            with suppress(
                OSError
            ):  # full, because the supervisor is stopped, or closed, because it has ended
                self._end.send(_BEAT, socket.MSG_DONTWAIT)

    def fail(self, reason: str) -> NoReturn:
        """End this process at once, with the reason for the supervisor's message."""
        with suppress(OSError):
            self._end.send(_FAILED + reason.encode(), socket.MSG_DONTWAIT)
        os._exit(1)

    def drains(self) -> bool:
        """Return whether the supervisor has announced the shutdown since the last call."""
        with suppress(OSError):
            return bool(self._end.recv(1, socket.MSG_DONTWAIT))
        return False


class Monitor:
    """The supervisor's end."""

    def __init__(self) -> None:
        self._end, child = socket.socketpair()
        self.channel, of_child = Channel.pair()
        self.lifeline = Lifeline(child, of_child)
        self.generation: int | None = None
        """Of what the child serves (`serving.release.controller`); None until it has reported."""
        self.last_beat: float | None = None
        """Time of the last heartbeat (`time.monotonic`); None before the first."""
        self.failure = ""
        """Why the child has ended itself."""

    def fileno(self) -> int:
        """Return what `multiprocessing.connection.wait` waits on."""
        return self._end.fileno()

    def receive(self) -> None:
        """Take what has arrived."""
        with suppress(OSError):
            beats, _, reason = self._end.recv(65536, socket.MSG_DONTWAIT).partition(_FAILED)
            if beats:
                self.last_beat = time.monotonic()
            self.failure = reason.decode() or self.failure

    def drain(self) -> None:
        """Announce the shutdown."""
        with suppress(OSError):
            self._end.send(_DRAIN, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Close both ends."""
        self.channel.close()
        self.lifeline.channel.close()
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
