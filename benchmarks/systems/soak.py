"""The traffic of a soak: correct requests whose responses are checked, hostile ones, bursts, and kills."""

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.load.workloads import TOLERANCE, Workload
from benchmarks.systems.servers import ServerProcess, api_processes
from serving.model.session import open_session

PATIENCE_S = 15.0
"""A request that takes longer has hung: a process that hangs is replaced within 10 s."""
OVERLOADED = (503, 504)
_REQUESTS_PER_S = 100  # of a client, at most
_RECONNECT_SHARE = 0.05
_TYPES = (
    "application/json",
    "image/png",
    "application/octet-stream",
    "multipart/form-data; boundary=x",
    "text/plain",
)


class Events:
    """What happened: counts, failures that are not allowed, and the times in which failures are."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.recoveries: list[float] = []
        """Seconds from each kill to the replacement."""
        self._disturbed: list[list[float]] = []
        self._lock = threading.Lock()

    def count(self, what: str) -> None:
        """Count something that is allowed to happen."""
        with self._lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        """Record something that is never allowed to happen; the first hundred are kept."""
        with self._lock:
            self.counts["failures"] += 1
            if len(self.failures) < 100:
                self.failures.append(what)

    @contextmanager
    def disturbance(self) -> Iterator[None]:
        """Allow requests to be lost, or to be slow, within the context and a second afterwards."""
        times = [time.monotonic(), float("inf")]
        self._disturbed.append(times)
        try:
            yield
        finally:
            times[1] = time.monotonic() + 1.0

    def disturbed(self, start: float, end: float) -> bool:
        """Return whether something disturbed the service between two times."""
        return any(start <= until and since <= end for since, until in self._disturbed)


class Responses:
    """The expected probabilities of every request of the workloads."""

    def __init__(self, workloads: Sequence[Workload], models: dict[str, Path]) -> None:
        self.requests: list[tuple[Workload, bytes, NDArray[np.float32]]] = []
        sessions = {name: open_session(path) for name, path in models.items()}
        for workload in workloads:
            session = sessions[workload.model]
            for prepared, images in zip(workload.requests, workload.groups, strict=True):
                (expected,) = session.run(["probabilities"], {"image": images})
                self.requests.append((workload, prepared, expected))


class CorrectClient:
    """Sends correct requests, most on a connection kept alive, and compares every response with the expected one."""

    def __init__(self, responses: Responses, events: Events, seed: int) -> None:
        self._responses = responses
        self._events = events
        self._choose = random.Random(seed)  # noqa: S311 - no secret
        self._address = urlsplit(responses.requests[0][0].url)
        self._connection: socket.socket | None = None

    def run(self, ended: threading.Event) -> None:
        """Send one request after the other until the end."""
        while not ended.is_set():
            self._send()
            if self._choose.random() < _RECONNECT_SHARE:
                self._close()
            time.sleep(self._choose.expovariate(_REQUESTS_PER_S))
        self._close()

    def _send(self) -> None:
        workload, prepared, expected = self._choose.choice(self._responses.requests)
        started = time.monotonic()
        try:
            if self._connection is None:
                self._connection = _connect(self._address.hostname, self._address.port)
            status, found = _exchange(self._connection, prepared, workload)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            if self._events.disturbed(started, time.monotonic()):
                self._events.count("lost with a process")
            else:
                self._events.fail(f"{workload}: no response: {error!r}")
            return
        if found is None:
            if status in OVERLOADED and self._events.disturbed(started, time.monotonic()):
                self._events.count(f"status {status}")
            else:
                self._events.fail(f"{workload}: status {status}")
        elif found.shape == expected.shape and np.abs(found - expected).max() <= TOLERANCE:
            self._events.count("correct")
        else:
            self._events.fail(f"{workload}: the response is that of another request")

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def _connect(host: str | None, port: int | None) -> socket.socket:
    connection = socket.create_connection((str(host), port or 80), PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _exchange(
    connection: socket.socket, prepared: bytes, workload: Workload
) -> tuple[int, NDArray[np.float64] | None]:
    """Return status and probabilities. Raises `OSError` and `HTTPException` for a connection without a response."""
    connection.sendall(prepared)
    with http.client.HTTPResponse(connection, method="POST") as response:
        response.begin()
        content = response.read()
        if response.status != 200:
            return response.status, None
        return 200, np.array(workload.read(response.headers, content), dtype=np.float64)


def send_hostile(url: str, valid: Sequence[bytes], events: Events, ended: threading.Event, seed: int) -> None:
    """Send what no correct client sends; the response, if any, must be a client error or an overload."""
    choose = random.Random(seed)  # noqa: S311
    address = urlsplit(url)
    while not ended.is_set():
        data, complete = _hostile(choose, address.path, choose.choice(valid))
        started = time.monotonic()
        try:
            with _connect(address.hostname, address.port) as connection:
                connection.sendall(data)
                if not complete:
                    time.sleep(choose.uniform(0, 0.2))
                    events.count("abandoned")
                    continue
                head = connection.recv(64)
        except OSError:
            head = b""
        if time.monotonic() - started > PATIENCE_S - 1 and not events.disturbed(started, time.monotonic()):
            events.fail(f"no response to {data[:80]!r}")
        status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0
        if status >= 500 and not (status in OVERLOADED and events.disturbed(started, time.monotonic())):
            events.fail(f"status {status} for {data[:80]!r}")
        events.count("hostile")
        time.sleep(choose.expovariate(50))


def _hostile(choose: random.Random, path: str, valid: bytes) -> tuple[bytes, bool]:
    """Return bytes to send, and whether a response or the end of the connection must follow."""
    kind = choose.randrange(5)
    if kind == 0:
        return choose.randbytes(choose.randrange(1, 2000)) + b"\r\n\r\n", True
    if kind == 1:
        body = choose.randbytes(choose.randrange(5000))
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {choose.choice(_TYPES)}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, True
    if kind == 2:
        return valid[: choose.randrange(1, len(valid))], False
    if kind == 3:
        return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode(), True
    end = valid.find(b"\r\n\r\n") + 4
    damaged = bytearray(valid)
    for _ in range(choose.randrange(1, 20)):
        damaged[choose.randrange(end, len(damaged))] = choose.randrange(256)
    return bytes(damaged), True


def burst(workload: Workload, events: Events, *, connections: int, seconds: float, deadline: float) -> None:
    """Overload the service with clients that retry at once."""
    address = urlsplit(workload.url)
    with tempfile.TemporaryDirectory(prefix="distillery-load-") as folder, events.disturbance():
        files = [Path(folder) / f"{number}.http" for number in range(len(workload.requests))]
        for file, request in zip(files, workload.requests, strict=True):
            file.write_bytes(request)
        place = (str(address.hostname), str(address.port), str(connections))
        numbers = ("0", f"{seconds:g}", f"{deadline:g}")
        subprocess.run(
            [sys.executable, "-m", "benchmarks.load.overload", *place, *numbers, *map(str, files)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds + 60,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        events.count("bursts")


def kill_one(server: ServerProcess, events: Events, choose: random.Random) -> None:
    """Kill or stop one API process, and wait until it is replaced."""
    before = api_processes(server)
    victim = choose.choice(before)
    number = choose.choice((signal.SIGKILL, signal.SIGSTOP))
    with events.disturbance():
        started = time.monotonic()
        os.kill(victim.pid, number)
        while time.monotonic() - started < PATIENCE_S:
            try:
                pids = {process.pid for process in api_processes(server)}
            except psutil.Error:  # one has just ended
                continue
            if victim.pid not in pids and len(pids) == len(before):
                events.recoveries.append(round(time.monotonic() - started, 2))
                events.count(f"{number.name}")
                return
            time.sleep(0.05)
    events.fail(f"the process that got {number.name} was not replaced within {PATIENCE_S:g} s")


def probe(workload: Workload, events: Events) -> float | None:
    """Return the seconds of one request on a new connection; None while the service is disturbed."""
    address = urlsplit(workload.url)
    started = time.monotonic()
    with suppress(OSError, http.client.HTTPException), _connect(address.hostname, address.port) as connection:
        status, _ = _exchange(connection, workload.requests[0], workload)
        if status == 200 and not events.disturbed(started, time.monotonic()):
            return time.monotonic() - started
    return None
