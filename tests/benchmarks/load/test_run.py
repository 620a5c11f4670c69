"""The load generators, against a small server that counts requests."""

import selectors
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load import connection
from benchmarks.load.closed_loop import closed_loop
from benchmarks.load.run import Tool, choose_tool, run_load, uncorrected
from benchmarks.load.workloads import Workload, service_workload
from benchmarks.systems.servers import free_port

WITHOUT_WRK = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: make system")
TOOLS = ["python", pytest.param("wrk", marks=[pytest.mark.wrk, WITHOUT_WRK])]


class CountingServer(ThreadingHTTPServer):
    """Responds to every POST after `delay_s` and counts the bodies."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, status: int = 200, delay_s: float = 0.0, keep_alive: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status, self.delay_s, self.keep_alive = status, delay_s, keep_alive
        self.bodies: Counter[bytes] = Counter()
        self.lock = threading.Lock()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CountingServer

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the run has ended
            return
        with self.server.lock:
            self.server.bodies[body] += 1
        time.sleep(self.server.delay_s)
        if not self.server.keep_alive:
            self.close_connection = True
            return
        self.wfile.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % self.server.status)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def counting_server(**settings: Any) -> Iterator[tuple[CountingServer, str]]:
    with CountingServer(**settings) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def few_digits(url: str, body: Any = "json") -> Workload:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    return service_workload(url, "student", body, images)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_closed_loop_counts_and_times_every_response(tool: Tool) -> None:
    with counting_server(delay_s=0.01) as (server, url):
        workload = few_digits(url)
        load = run_load(workload, 4, 0.5, tool=tool)
        bodies = Counter(server.bodies)
    assert load.tool == tool
    assert load.latencies.total <= bodies.total() <= load.latencies.total + 4  # in flight at the end
    assert load.latencies.quantile(0.5) >= 10_000  # µs
    assert load.requests_per_s == pytest.approx(load.latencies.total / load.seconds)
    assert load.requests_per_s <= 400  # 4 connections, 10 ms
    assert {request.partition(b"\r\n\r\n")[2] for request in workload.requests} == set(bodies)
    assert max(bodies.values()) - min(bodies.values()) <= 1 + 4  # sent cyclically


def test_a_closed_loop_needs_no_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where Python has none; both run here, so `select` stands for any other selector."""
    monkeypatch.setattr(connection, "DefaultSelector", selectors.SelectSelector)
    with counting_server() as (server, url):
        workload = few_digits(url)
        address = urlsplit(url)
        report = closed_loop(str(address.hostname), int(address.port or 0), 2, 0.2, list(workload.requests))
        assert 0 < report["requests"] <= server.bodies.total()
    assert report["errors"] == {"status": 0}


@pytest.mark.parametrize("tool", TOOLS)
def test_bodies_larger_than_a_socket_buffer_arrive_whole(tool: Tool) -> None:
    body = b"0123456789" * 500_000
    request = b"POST /predict/student HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with counting_server() as (server, url):
        run_load(replace(few_digits(url), requests=(request,)), 3, 0.3, tool=tool)
        assert set(server.bodies) == {body}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_run_with_failed_requests_is_an_error(tool: Tool) -> None:
    with counting_server(status=503) as (_, url), pytest.raises(BenchmarkError, match=r"'status': [1-9]"):
        run_load(few_digits(url), 2, 0.2, tool=tool)


def test_a_closed_connection_is_an_error() -> None:
    with (
        counting_server(keep_alive=False) as (_, url),
        pytest.raises(BenchmarkError, match="closed the connection"),
    ):
        run_load(few_digits(url), 2, 0.2, tool="python")


def test_an_unreachable_server_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match=r"student, json: the load generator failed: .*refused"):
        run_load(few_digits(f"http://127.0.0.1:{free_port()}"), 2, 0.2, tool="python")


def test_without_wrk_the_python_generator_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert choose_tool("auto") == "python"
    with pytest.raises(BenchmarkError, match="make system"):
        choose_tool("wrk")


def wrk_report(seen: Counter[int], connections: int) -> dict[str, Any]:
    """wrk 4.1's report of these latencies: its stats_correct, sample by sample."""
    duration = sum(value * count for value, count in seen.items()) // connections
    interval = duration // max(1, seen.total() // connections)
    shown = Counter(seen)
    for value, count in seen.items():
        lower = value - interval
        while lower > interval:
            shown[lower] += count
            lower -= interval
    return {"requests": seen.total(), "duration_us": duration, "latency": list(shown.items())}


@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_the_correction_of_wrk_is_removed_exactly(connections: int, sigma: float) -> None:
    samples = np.random.default_rng(0).lognormal(5, sigma, 20_000).astype(int) + 1
    seen = Counter(samples.tolist())
    report = wrk_report(seen, connections)
    assert uncorrected(report, connections) == seen
    if sigma > 0.05:
        assert sum(count for _, count in report["latency"]) > seen.total()  # there was something to remove


def test_a_histogram_with_another_correction_is_rejected() -> None:
    report = wrk_report(Counter({100: 50, 1000: 5}), 1)
    report["latency"].append((101, 1))
    with pytest.raises(BenchmarkError, match="--tool python"):
        uncorrected(report, 1)
