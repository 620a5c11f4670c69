"""A service over HTTP as a system under test."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import urlsplit

from benchmarks.load.connection import PATIENCE_S, Connection, Pool
from benchmarks.load.workloads import Workload, check_answers
from benchmarks.loadgen.run import Issue, Query, Run, Scenario

BATCH = 64
"""Samples per request in Offline."""
OFFLINE_CONNECTIONS = 8
"""Enough to keep every core busy with requests of 64 samples."""
SAMPLES: Mapping[Scenario, int] = {"SingleStream": 1, "MultiStream": 8, "Server": 1, "Offline": BATCH}
"""Per request."""
POLL_S = 0.05
OK = 200


class ServedSystem:
    """A model behind HTTP: `workloads` by samples per request (1, 8 and 64), `connections` in Server.

    The requests are encoded before the run. Those of several samples hold consecutive digits, and the first sample
    that LoadGen draws chooses among them.
    """

    separate = True

    def __init__(self, workloads: Mapping[int, Workload], *, path: Path, connections: int) -> None:
        self.name, self.model = workloads[1].server, workloads[1].model
        self._workloads, self._path = workloads, path
        self._connections = {"Server": connections, "Offline": OFFLINE_CONNECTIONS}

    def check(self) -> None:
        for workload in self._workloads.values():
            check_answers(workload, self._path)

    @contextmanager
    def open(self, scenario: Scenario, run: Run) -> Iterator[Issue]:
        workload = self._workloads[SAMPLES[scenario]]
        address = urlsplit(workload.url)
        pool = Pool(str(address.hostname), address.port or 80, self._connections.get(scenario, 1))
        try:
            if scenario in self._connections:
                with _Multiplexer(pool, workload, run).receiving() as issue:
                    yield issue
            else:
                yield _one_by_one(pool, workload, run)
        finally:
            pool.close()


def _one_by_one(pool: Pool, workload: Workload, run: Run) -> Issue:
    """Send a request and wait for its response."""
    (connection,) = pool.connections

    def issue(queries: Sequence[Query]) -> None:
        pool.begin(connection, _request(workload, queries))
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for _, status in pool.responses(PATIENCE_S):
                run.complete(queries, rejected=status != OK)
                return
        raise ConnectionError(f"no response within {PATIENCE_S} s")

    return issue


class _Multiplexer:
    """Sends each request on a free connection, or queues it until one is free; a thread receives the responses."""

    def __init__(self, pool: Pool, workload: Workload, run: Run) -> None:
        self._pool, self._workload, self._run = pool, workload, run
        self._lock = Lock()
        self._free = deque(pool.connections)  # used in rotation: the service closes idle connections
        self._waiting: deque[Sequence[Query]] = deque()
        self._in_flight: dict[Connection, Sequence[Query]] = {}
        self._closed = False
        self._error: OSError | None = None

    @contextmanager
    def receiving(self) -> Iterator[Issue]:
        thread = Thread(target=self._receive)
        thread.start()
        try:
            yield self._issue
        finally:
            self._closed = True
            thread.join()

    def _issue(self, queries: Sequence[Query]) -> None:
        samples = self._workload.images_per_request
        with self._lock:
            self._waiting.extend(
                queries[start : start + samples] for start in range(0, len(queries), samples)
            )
            self._send()

    def _send(self) -> None:
        """Use the free connections; after an error, end all queries, because LoadGen waits for every one."""
        try:
            while self._waiting and self._free and not self._error:
                connection, queries = self._free.popleft(), self._waiting.popleft()
                self._in_flight[connection] = queries
                self._pool.begin(connection, _request(self._workload, queries))
        except OSError as error:
            self._error = error
        if self._error:
            for queries in (*self._in_flight.values(), *self._waiting):
                self._run.fail(queries, self._error)
            self._in_flight.clear()
            self._waiting.clear()

    def _receive(self) -> None:
        last = time.monotonic()
        while not (self._closed or self._error):
            try:
                for connection, status in self._pool.responses(POLL_S):
                    last = time.monotonic()
                    with self._lock:
                        if queries := self._in_flight.pop(connection, None):
                            self._run.complete(queries, rejected=status != OK)
                        self._free.append(connection)
                        self._send()
                if not self._in_flight:
                    last = time.monotonic()
                elif time.monotonic() - last > PATIENCE_S:
                    raise ConnectionError(f"no response within {PATIENCE_S} s")
            except OSError as error:
                with self._lock:
                    self._error = error
                    self._send()


def _request(workload: Workload, queries: Sequence[Query]) -> bytes:
    return workload.requests[queries[0][1] % len(workload.requests)]
