"""Messages between the supervisor and a child, which neither ever waits for.

A message is a datagram on a socket pair. One that is large, such as models, is in memory of which the datagram carries
the descriptor: however slowly the other side reads, the sender is done. Messages are pickles, because both ends are
processes of this service.
"""

import mmap
import os
import pickle
import socket
import weakref
from collections.abc import Iterator
from typing import Any, Self

from serving.engine.shared_memory import allocate

_INLINE_BYTES = 8192
"""Of a datagram: what most messages fit in, and the socket's buffer many times."""
_MESSAGE, _ATTACHED = b"m", b"a"


class Channel:
    """One end of the line."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends."""
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        return cls(first), cls(second)

    def fileno(self) -> int:
        """Return what to wait on for messages."""
        return self._end.fileno()

    def send(self, message: object) -> bool:
        """Send a message; return whether it was: not to a process that has ended, or that has read nothing for long.

        Raises `SharedMemoryError` for a large one.
        """
        encoded = message if isinstance(message, Encoded) else Encoded(message)
        try:
            socket.send_fds(self._end, [encoded.data], encoded.descriptors, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def receive(self) -> Iterator[Any]:
        """Yield the messages that have arrived; a large one as an `Attached`."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._end, _INLINE_BYTES + 1, 1, socket.MSG_DONTWAIT
                )
            except OSError:
                return
            if not data:
                return
            yield Attached(descriptors[0]) if data == _ATTACHED else pickle.loads(data[1:])  # noqa: S301

    def close(self) -> None:
        """Close this end."""
        self._end.close()


class Encoded:
    """A message that is encoded once and can be sent to several processes."""

    def __init__(self, message: object) -> None:
        """Raises `SharedMemoryError` for a large one."""
        content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self.descriptors: list[int] = []
        self.data = _MESSAGE + content
        if len(content) > _INLINE_BYTES:
            self.data, self.descriptors = _ATTACHED, [allocate(content)]
            weakref.finalize(self, os.close, self.descriptors[0])


class Attached:
    """A large message, not read yet."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> Any:
        """Return the message; once, on a thread where the event loop must not be held up."""
        try:
            # Mapped: the position in the file is that of all its readers.
            with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as content:
                return pickle.loads(content)  # noqa: S301 - of a process of this service
        finally:
            os.close(self._descriptor)
