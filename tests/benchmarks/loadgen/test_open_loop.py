"""The open loop: schedules, what is counted as latency, what a percentile is worth, the search for a rate."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from math import comb
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from benchmarks.load.latency import Latencies
from benchmarks.load.run import run_load
from benchmarks.load.workloads import service_workload
from benchmarks.loadgen.arrivals import all_at_once, draw_samples, poisson_arrivals
from benchmarks.loadgen.early_stopping import allowed_overlatency, estimate, least_queries
from benchmarks.loadgen.open_client import Plan, open_loop
from benchmarks.loadgen.open_loop import Bound, Timeline, timeline
from benchmarks.loadgen.server_search import Search, Settings
from benchmarks.systems.servers import free_port

# The smallest server that keeps connections: it answers every request at once, on one thread, and can be stopped.
ECHO = """
import asyncio, sys
HEAD = b"HTTP/1.1 %s X\\r\\nContent-Length: 2\\r\\n\\r\\nok" % sys.argv[2].encode()
async def answer(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\\r\\n")[0])
        await reader.readexactly(length)
        writer.write(HEAD)
async def serve():
    await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await asyncio.sleep(60)
asyncio.run(serve())
"""


@pytest.fixture
def echo() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], str]]]:
    started = []

    def start(status: int = 200) -> tuple[subprocess.Popen[bytes], str]:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-c", ECHO, str(port), str(status)], stderr=subprocess.DEVNULL
        )
        started.append(process)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process, f"http://127.0.0.1:{port}"
            time.sleep(0.02)
        raise TimeoutError("the server did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()


def plan_for(url: str, folder: Path, **settings: object) -> Plan:
    file = folder / "request.http"
    file.write_bytes(service_workload(url, "student").requests[0])
    defaults: dict[str, object] = {"connections": 32, "seed": 1, "limit_s": 5.0, "rate": 1000.0}
    port = int(url.rpartition(":")[2])
    return Plan(host="127.0.0.1", port=port, files=[str(file)], **(defaults | settings))  # type: ignore[arg-type]


def test_arrivals_are_poisson_and_the_same_for_the_same_seed() -> None:
    arrivals = poisson_arrivals(500, 100_000, seed=3)
    gaps = np.diff(arrivals, prepend=0.0)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 500, rel=0.02)  # an exponential's deviation is its mean
    for times in (0.5, 1, 2, 4):
        assert (gaps > times / 500).mean() == pytest.approx(np.exp(-times), abs=0.005)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.02)  # independent
    np.testing.assert_array_equal(arrivals, poisson_arrivals(500, 100_000, seed=3))
    assert not np.array_equal(arrivals, poisson_arrivals(500, 100_000, seed=4))
    assert all_at_once(3).tolist() == [0, 0, 0]


def test_samples_are_drawn_from_the_whole_library_and_not_by_the_gaps() -> None:
    samples = draw_samples(100, 10_000, seed=0)
    assert np.bincount(samples, minlength=100).min() > 50
    np.testing.assert_array_equal(samples, draw_samples(100, 10_000, seed=0))
    gaps = np.diff(poisson_arrivals(1, 10_000, seed=0), prepend=0.0)
    assert np.corrcoef(gaps, samples)[0, 1] == pytest.approx(0, abs=0.05)


def test_a_quantile_is_a_latency_that_was_seen_and_so_many_do_not_exceed() -> None:
    hundred = Latencies.from_samples(range(1, 101))
    assert [hundred.quantile(q) for q in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert Latencies.from_samples([7]).quantile(0.99) == 7


@pytest.mark.parametrize(("queries", "percentile"), [(64, 0.9), (700, 0.99), (900, 0.97)])
def test_so_many_queries_may_be_slow_as_the_binomial_distribution_says(
    queries: int, percentile: float
) -> None:
    slow = 1 - percentile
    terms = [comb(queries, k) * slow**k * percentile ** (queries - k) for k in range(queries + 1)]
    at_most = np.cumsum(terms)
    assert allowed_overlatency(queries, percentile) == np.flatnonzero(at_most <= 0.01)[-1]


def test_early_stopping_wants_as_many_queries_as_loadgen() -> None:
    assert least_queries(0.90) == 64  # MLPerf Inference Rules, SingleStream
    assert least_queries(0.99) == 662  # loadgen/mlperf.conf, MultiStream.min_query_count
    assert allowed_overlatency(458, 0.99) == -1  # 0.99 ** 458 > 0.01
    assert allowed_overlatency(459, 0.99) == 0
    assert allowed_overlatency(1_000_000, 0.99) == pytest.approx(10_000, rel=0.03)


def test_a_percentile_is_stated_with_what_its_queries_are_worth() -> None:
    latencies = Latencies.from_samples(range(1, 663))
    assert estimate(latencies, 0.99) == 661  # one of 662 may be slower
    assert estimate(Latencies.from_samples(range(64)), 0.99) is None


@pytest.mark.slow
def test_a_stall_is_seen_by_every_query_that_arrived_in_it(
    echo: Callable[..., tuple[subprocess.Popen[bytes], str]], tmp_path: Path
) -> None:
    server, url = echo()
    stall_s, rate = 0.2, 1000.0

    def stall() -> None:
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(stall_s)
        os.kill(server.pid, signal.SIGCONT)

    timer = Timer(0.5, stall)
    timer.start()
    closed = run_load(service_workload(url, "student"), 1, 1.2, tool="python").latencies
    timer.join()
    timer = Timer(0.5, stall)
    timer.start()
    seen = open_loop(plan_for(url, tmp_path, queries=1500, rate=rate))
    timer.join()

    def slow(latencies: Latencies) -> int:
        return int(latencies.counts[latencies.values > stall_s / 2 * 1e6].sum())

    assert slow(closed) <= 2  # the one that was under way, and perhaps a pause of the machine
    # Those that arrived in the first half of the stall waited for more than the other half, however few
    # connections there are: 100 expected, standard deviation 10.
    assert slow(seen.latencies) > 60
    assert seen.answered == 1500
    assert seen.latencies.quantile(1) >= stall_s * 0.9e6
    assert seen.late_p99_ms is not None
    assert seen.late_p99_ms < stall_s / 2 * 1e3  # waiting for a connection is not the generator's lateness


def test_an_open_loop_sends_at_the_rate_whatever_comes_back(
    echo: Callable[..., tuple[subprocess.Popen[bytes], str]], tmp_path: Path
) -> None:
    _, url = echo()
    seen = open_loop(plan_for(url, tmp_path, queries=1000, rate=2000.0))
    assert (seen.answered, seen.refused, seen.slow) == (1000, 0, 0)
    assert seen.answered / seen.seconds == pytest.approx(2000, rel=0.15)
    assert seen.busy is not None
    assert 0 < seen.busy <= 1
    at_once = open_loop(plan_for(url, tmp_path, queries=1000, rate=None))
    assert at_once.seconds < seen.seconds
    assert at_once.latencies.quantile(1) == pytest.approx(at_once.seconds * 1e6, rel=0.05)


def test_an_open_loop_ends_as_soon_as_it_has_failed(
    echo: Callable[..., tuple[subprocess.Popen[bytes], str]], tmp_path: Path
) -> None:
    server, url = echo()
    bound = Bound(ms=1e-3, allowed=5)
    seen = open_loop(plan_for(url, tmp_path, queries=5000, bound=bound))
    assert 5 < seen.slow <= seen.answered < 100
    assert seen.verdict(bound.allowed) == "system"
    Timer(0.3, os.kill, (server.pid, signal.SIGSTOP)).start()
    start = time.monotonic()
    seen = open_loop(plan_for(url, tmp_path, queries=5000, limit_s=0.6))
    assert time.monotonic() - start < 2
    assert seen.answered < seen.queries


def test_refused_queries_are_not_within_any_bound(
    echo: Callable[..., tuple[subprocess.Popen[bytes], str]], tmp_path: Path
) -> None:
    _, url = echo(503)
    bound = Bound(ms=1000, allowed=5)
    seen = open_loop(plan_for(url, tmp_path, queries=1000, bound=bound))
    assert seen.refused > bound.allowed
    assert seen.verdict(bound.allowed) == "system"


def test_a_generator_that_fell_behind_is_told_from_a_slow_system() -> None:
    def verdict(latency_ms: float, late_ms: float, busy: float | None = 0.2) -> str:
        latencies, late = np.full(1000, latency_ms / 1e3), np.full(1000, late_ms / 1e3)
        bound = Bound(ms=10, allowed=5)
        return timeline(latencies, late, queries=1000, seconds=1, bound=bound, busy=busy).verdict(5)

    assert verdict(9, 0) == "pass"
    assert verdict(9, 8) == "pass"  # late, and still in time
    assert verdict(12, 3) == "generator"
    assert verdict(12, 1) == "system"
    assert verdict(12, 1, busy=0.99) == "generator"  # it had no time to look at the answers either


def one_server(service_s: float) -> Callable[[float, int, int, Bound], Timeline]:
    """A queue before one server that takes `service_s` for each query, computed and not waited for."""

    def run_at(rate: float, queries: int, seed: int, bound: Bound) -> Timeline:
        free = 0.0
        latencies = []
        for arrival in poisson_arrivals(rate, queries, seed).tolist():
            free = max(free, arrival) + service_s
            latencies.append(free - arrival)
        return timeline(latencies, np.zeros(queries), queries=queries, seconds=free, bound=bound)

    return run_at


@pytest.mark.parametrize("guess", [20, 700, 5000])
def test_the_search_finds_the_highest_rate_from_below_and_from_above(guess: float) -> None:
    run_at = one_server(0.001)
    outcome = Search(run_at, Settings(seconds=10), seed=0).run(guess)
    assert outcome.rate is not None
    assert outcome.limited_by == "system"

    def p99_ms(rate: float) -> float:
        return run_at(rate, 200_000, 99, Bound(ms=10, allowed=0)).latencies.quantile(0.99) / 1e3

    assert p99_ms(outcome.rate) <= 10 < p99_ms(1.1 * outcome.rate)
    confirmed = [line for line in outcome.trace if line["step"] == "confirm"][-2:]
    assert [line["verdict"] for line in confirmed] == ["pass", "pass"]
    assert {line["rate"] for line in confirmed} == {round(outcome.rate, 1)}
    seeds = [line["seed"] for line in outcome.trace]
    assert len(set(seeds)) == len(seeds)


def test_a_system_that_keeps_the_bound_at_no_rate_has_no_figure() -> None:
    outcome = Search(one_server(0.02), Settings(), seed=0).run(1000)
    assert outcome.rate is None
    assert not outcome.confirmed
    assert min(line["rate"] for line in outcome.trace) == pytest.approx(66.2)  # 662 queries in 10 s


def test_a_rate_that_only_the_generator_fails_is_called_its_limit() -> None:
    def late_above_500(rate: float, queries: int, _: int, bound: Bound) -> Timeline:
        late = np.full(queries, 0.02 if rate > 500 else 0.0)
        return timeline(late + 0.001, late, queries=queries, seconds=1, bound=bound, busy=0.5)

    outcome = Search(late_above_500, Settings(), seed=0).run(100)
    assert outcome.limited_by == "generator"
    assert outcome.rate == pytest.approx(500, rel=0.05)
