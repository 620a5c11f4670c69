"""A bounded load from one host: keep-alive connections, each with one request at a time; and what became of them."""

import http.client
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from benchmarks.cluster.hosts import Host

PATIENCE_S = 20
"""Without a response for this long, a request has failed."""
CLOSED, TIMED_OUT = 0, -1
"""In place of a status: the connection was closed or refused; no response."""
SLOW_S = 0.5
"""Requests that take longer are counted as slow."""


class Outcome(NamedTuple):
    """A request: when it was sent (`time.monotonic`), until when, and its response."""

    start: float
    end: float
    status: int
    """`CLOSED` or `TIMED_OUT` without one."""
    retries: int
    """By the client, on another connection."""


class Load:
    """Closed loops on keep-alive connections, each with at most `rate` requests per second; a thread each.

    As HTTP clients do, it opens a new connection where the kept one has been closed meanwhile, and sends a request once
    more whose connection is closed before a response; the latter unless not `retry_safe`.
    """

    def __init__(
        self,
        host: Host,
        url: str,
        bodies: Sequence[bytes],
        *,
        connections: int = 8,
        rate: float = 25,
        retry_safe: bool = True,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._host, self._url, self._bodies = host, urlsplit(url), bodies
        self._rate = rate
        self._retry_safe = retry_safe
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"load-{number}")
            for number in range(connections)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def between(self, start: float, end: float) -> list[Outcome]:
        """Return the requests that were sent in this time."""
        return [one for one in self.outcomes if start <= one.start < end]

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._url.netloc, timeout=PATIENCE_S)
        with self._host.entered(), closing(connection):
            due = time.monotonic() + number / len(self._threads) / self._rate
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + 1 / self._rate, time.monotonic())
                self.outcomes.append(self._send(connection, self._bodies[number % len(self._bodies)]))
                number += 1

    def _send(self, connection: http.client.HTTPConnection, body: bytes) -> Outcome:
        start = time.monotonic()
        if _is_closed(connection.sock):
            connection.close()
        status, retries = self._exchange(connection, body), 0
        if status == CLOSED and self._retry_safe:
            status, retries = self._exchange(connection, body), 1
        return Outcome(start, time.monotonic(), status, retries)

    def _exchange(self, connection: http.client.HTTPConnection, body: bytes) -> int:
        """Return the status; `CLOSED` or `TIMED_OUT` without one."""
        try:
            connection.request("POST", self._url.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return TIMED_OUT if isinstance(error, TimeoutError) else CLOSED
        return response.status


def _is_closed(connection: socket.socket | None) -> bool:
    """Return whether the server has closed a connection on which no response is due."""
    return connection is not None and bool(select.select([connection], [], [], 0)[0])


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the counts: `sent`, `failed` (no status 200), statuses, `retried`; and slow requests.

    `slow_s` is the time, in seconds, in which at least one request was in flight that took longer than `SLOW_S`.
    """
    statuses = Counter(one.status for one in outcomes)
    slow = [(one.start, one.end) for one in outcomes if one.end - one.start > SLOW_S]
    return {
        "sent": len(outcomes),
        "failed": len(outcomes) - statuses[200],
        "rejected": statuses[503],
        "closed": statuses[CLOSED],
        "timed_out": statuses[TIMED_OUT],
        "other_statuses": {
            str(one): n for one, n in sorted(statuses.items()) if one > 0 and one not in {200, 503}
        },
        "retried": sum(one.retries for one in outcomes),
        "slow": len(slow),
        "slow_s": round(covered(slow), 2),
        "longest_s": round(max((one.end - one.start for one in outcomes), default=0.0), 3),
    }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the total length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
