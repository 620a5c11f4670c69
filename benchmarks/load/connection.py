"""Connections of the load generators in Python: HTTP/1.1 over plain sockets and a selector.

A client library costs more CPU time per request than the service, and would measure itself.
"""

import socket
import time
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

PATIENCE_S = 10
"""Without any response for this long, the server hangs."""


class Connection:
    """One keep-alive HTTP/1.1 connection with at most one request in flight."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent = memoryview(b"")
        self.received = b""
        self.started = 0.0

    def begin(self, request: bytes) -> None:
        """Start the clock and send as much as the socket accepts."""
        self.unsent = memoryview(request)
        self.received = b""
        self.started = time.perf_counter()
        self.send()

    def send(self) -> None:
        """Send more of the request."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return

    def receive(self) -> int | None:
        """Read available bytes; return the status once the response is complete, else None."""
        part = self.socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part
        end = self.received.find(b"\r\n\r\n")
        if end < 0 or len(self.received) < end + 4 + _content_length(self.received[:end]):
            return None
        return int(self.received[9:12])


class Pool:
    """Connections to one server."""

    def __init__(self, host: str, port: int, connections: int) -> None:
        self.connections = [Connection(host, port) for _ in range(connections)]
        """All connections, idle and in flight."""
        self._selector = DefaultSelector()
        for connection in self.connections:
            self._selector.register(connection.socket, EVENT_READ, connection)

    def begin(self, connection: Connection, request: bytes) -> None:
        """Send a request; `responses` sends what the socket does not accept yet."""
        connection.begin(request)
        if connection.unsent:
            self._selector.modify(connection.socket, EVENT_READ | EVENT_WRITE, connection)

    def responses(self, timeout: float) -> Iterator[tuple[Connection, int]]:
        """Wait up to `timeout` seconds for events; yield each connection with a complete response, and its status."""
        for key, events in self._selector.select(timeout):
            connection: Connection = key.data
            if events & EVENT_WRITE:
                connection.send()
                if not connection.unsent:
                    self._selector.modify(connection.socket, EVENT_READ, connection)
            if events & EVENT_READ and (status := connection.receive()) is not None:
                yield connection, status

    def close(self) -> None:
        """Close all connections, with requests in flight or not."""
        self._selector.close()
        for connection in self.connections:
            connection.socket.close()


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    if start < 0:
        raise ConnectionError(f"the response has no Content-Length: {head[:200]!r}")
    return int(lowered[start + 17 :].split(b"\r\n", 1)[0])
