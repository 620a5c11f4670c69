"""A load that does not spare the server, in a process of its own: an open loop, or a closed one that retries at once.

    python -m benchmarks.load.overload HOST PORT CONNECTIONS RATE SECONDS DEADLINE REQUEST_FILE...

With a RATE above 0, requests arrive at random (a Poisson process) whether or not earlier ones have been answered, each
on an idle connection; one that finds none is counted as `unsent`. With RATE 0, every connection sends its next request
as soon as the last one is answered, whatever the status. A connection that the server closes is opened again. Prints
one line of JSON: `good` are responses with status 200 within DEADLINE seconds, `latency_us` is that of all with 200,
`cpu` are the seconds of CPU time that the load has taken in this process.
"""

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import Any

import numpy as np

from benchmarks.load.connection import PATIENCE_S, Connection

RECONNECT_S = 0.01
"""Before a connection that the server has closed is opened again."""


class Clients:
    """Connections, and what became of the requests on them."""

    def __init__(
        self, host: str, port: int, connections: int, requests: list[bytes], deadline: float
    ) -> None:
        self.idle: deque[Connection] = deque()
        self.statuses: Counter[int] = Counter()
        """By status; 0: the connection was closed before the response."""
        self.good = 0
        self.microseconds: Counter[int] = Counter()
        self._address = host, port
        self._deadline = deadline
        self._requests = cycle(requests)
        self._selector = DefaultSelector()
        self._closed: deque[float] = deque()
        for _ in range(connections):
            self._open()

    def send(self, request: bytes | None = None, due: float | None = None) -> bool:
        """Send a request, by default the next one, on an idle connection; return whether there was one.

        Its latency counts from `due`, by `time.perf_counter`, or from now.
        """
        if not self.idle:
            return False
        connection = self.idle.popleft()
        try:
            connection.begin(next(self._requests) if request is None else request)
            connection.started = due or connection.started
        except OSError:
            self._lost(connection)
        else:
            if connection.unsent:
                self._selector.modify(connection.socket, EVENT_READ | EVENT_WRITE, connection)
        return True

    def receive(self, timeout: float) -> None:
        """Wait for responses, up to `timeout` seconds; the connections are then idle."""
        while self._closed and self._closed[0] <= time.perf_counter():
            self._closed.popleft()
            self._open()
        for key, events in self._selector.select(timeout):
            connection: Connection = key.data
            try:
                if events & EVENT_WRITE:
                    connection.send()
                    if not connection.unsent:
                        self._selector.modify(connection.socket, EVENT_READ, connection)
                        if not connection.started:
                            self.idle.append(connection)
                status = connection.receive() if events & EVENT_READ else None
            except OSError:
                self._lost(connection)
                continue
            if status is not None:
                self._answered(connection, status)

    def close(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def _open(self) -> None:
        connection = Connection(*self._address)
        self._selector.register(connection.socket, EVENT_READ, connection)
        self.idle.append(connection)

    def _answered(self, connection: Connection, status: int) -> None:
        self.statuses[status] += 1
        if status == 200:
            seconds = time.perf_counter() - connection.started
            self.microseconds[round(seconds * 1e6)] += 1
            self.good += seconds <= self._deadline
        connection.started = 0.0
        if not connection.unsent:  # otherwise rejected early: idle when the rest of the body is sent
            self.idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        if connection.started:
            self.statuses[0] += 1
        elif connection in self.idle:
            self.idle.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._closed.append(time.perf_counter() + RECONNECT_S)


def arrivals(rate: float) -> Iterator[float]:
    """Yield the seconds from one arrival of a Poisson process to the next."""
    generator = np.random.default_rng(0)
    while True:
        yield from generator.exponential(1 / rate, 1000).tolist()


def run(clients: Clients, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests for `seconds`; return what became of them."""
    start, cpu = time.perf_counter(), time.process_time()
    now = start
    unsent = 0
    gaps = arrivals(rate) if rate else None
    due = start
    while now < start + seconds:
        if gaps is None:
            while clients.send():
                pass
            clients.receive(PATIENCE_S)
        else:
            while due <= now:
                unsent += not clients.send()
                due += next(gaps)
            clients.receive(max(0.0, min(due, start + seconds) - time.perf_counter()))
        now = time.perf_counter()
    return {
        "seconds": round(now - start, 4),
        "cpu": round(time.process_time() - cpu, 4),
        "unsent": unsent,
        "good": clients.good,
        "statuses": dict(clients.statuses),
        "latency_us": sorted(clients.microseconds.items()),
    }


if __name__ == "__main__":
    host_, port_, connections_, rate_, seconds_, deadline_, *files = sys.argv[1:]
    bodies = [Path(file).read_bytes() for file in files]
    clients_ = Clients(host_, int(port_), int(connections_), bodies, float(deadline_))
    print("RESULT", json.dumps(run(clients_, float(rate_), float(seconds_))))
