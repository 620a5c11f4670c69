"""A closed loop over HTTP/1.1 in a process of its own, for machines without wrk.

    python -m benchmarks.client HOST PORT CONNECTIONS SECONDS REQUEST_FILE...

Each file is one complete request; they are sent in turns. Every connection sends its next request as soon as
the answer to the last one has come. Bare sockets and epoll, because a client that costs more than the service
measures itself. Prints one line of JSON, the same that `wrk.lua` prints.
"""

import json
import select
import socket
import sys
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

PATIENCE_S = 10
"""Nothing at all came for so long: the server hangs."""


class Connection:
    """One keep-alive connection with at most one request under way."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent = memoryview(b"")
        self.received = b""
        self.started = 0.0

    def begin(self, request: bytes) -> None:
        """Start the clock and send as much as the socket takes."""
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
        """Read what has come and return the status once the answer is complete."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return None
        return int(head[9:12])


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    if start < 0:
        raise ConnectionError(f"the answer has no Content-Length: {head[:200]!r}")
    return int(lowered[start + 17 :].split(b"\r\n", 1)[0])


def closed_loop(
    host: str, port: int, connections: int, seconds: float, requests: list[bytes]
) -> dict[str, object]:
    """Keep `connections` requests under way for `seconds` and report every answer that came in that time."""
    endless = cycle(requests)
    microseconds: Counter[int] = Counter()
    refused = 0
    poll = select.epoll()
    by_descriptor = {}
    for _ in range(connections):
        connection = Connection(host, port)
        by_descriptor[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
    start = time.perf_counter()
    deadline = start + seconds
    for descriptor, connection in by_descriptor.items():
        connection.begin(next(endless))
        _watch(poll, descriptor, connection)
    now = start
    while now < deadline:
        events = poll.poll(PATIENCE_S)
        if not events:
            raise ConnectionError(f"no answer within {PATIENCE_S} s")
        for descriptor, event in events:
            connection = by_descriptor[descriptor]
            if event & select.EPOLLOUT:
                connection.send()
                _watch(poll, descriptor, connection)
            if event & ~select.EPOLLOUT and (status := connection.receive()) is not None:
                now = time.perf_counter()
                microseconds[round((now - connection.started) * 1e6)] += 1
                refused += status != 200
                connection.begin(next(endless))
                _watch(poll, descriptor, connection)
        now = time.perf_counter()
    for connection in by_descriptor.values():
        connection.socket.close()
    return {
        "requests": microseconds.total(),
        "duration_us": round((now - start) * 1e6),
        "errors": {"status": refused},
        "latency": sorted(microseconds.items()),
    }


def _watch(poll: select.epoll, descriptor: int, connection: Connection) -> None:
    poll.modify(descriptor, select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0))


if __name__ == "__main__":
    host_, port_, connections_, seconds_, *files = sys.argv[1:]
    try:
        report = closed_loop(
            host_, int(port_), int(connections_), float(seconds_), [Path(file).read_bytes() for file in files]
        )
    except OSError as error:
        sys.exit(str(error))
    print("RESULT", json.dumps(report))
