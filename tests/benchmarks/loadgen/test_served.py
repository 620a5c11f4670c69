"""LoadGen's queries over HTTP, to a small server that responds at once, with the status that the model's name is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load.workloads import BodyKind, service_workload
from benchmarks.loadgen.run import Outcome, Scenario, run_loadgen
from benchmarks.loadgen.served import ServedSystem
from benchmarks.systems.servers import free_port

pytest.importorskip("mlperf_loadgen")

SERVER = """
import asyncio, sys
async def respond(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        (status,) = {b"200", b"503", b"closed"} & set(head.split(b" ")[1].split(b"/"))
        if status == b"closed":
            return writer.close()
        length = int(head.lower().partition(b"\\r\\ncontent-length: ")[2].partition(b"\\r\\n")[0])
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 %s X\\r\\nContent-Length: 2\\r\\n\\r\\nok" % status)
async def serve():
    await asyncio.start_server(respond, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(serve())
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        yield f"http://127.0.0.1:{port}"
        server.kill()


SHORT = {"min_duration_ms": 50, "min_query_count": 20, "server_target_qps": 1000}


def run(url: str, scenario: Scenario, model: str = "200", **settings: Any) -> Outcome:
    bodies: dict[int, BodyKind] = {1: "json", 8: "binary-8", 64: "binary-64"}
    workloads = {samples: service_workload(url, model, body) for samples, body in bodies.items()}
    system = ServedSystem(workloads, path=Path("unused"), connections=4)
    return run_loadgen(system, scenario, SHORT | settings, seed=1)


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream"])
def test_a_stream_sends_one_request_per_query(url: str, scenario: Scenario) -> None:
    outcome = run(url, scenario)
    assert outcome.queries >= 20
    assert outcome.rejected == 0
    assert 0 < outcome.p50_ms <= outcome.p90_ms <= outcome.p99_ms


def test_server_queries_share_the_connections(url: str) -> None:
    # 500 queries at once, on 4 connections: most wait for a free one
    outcome = run(url, "Server", min_query_count=500, server_target_qps=1e5, server_target_latency_ns=10**10)
    assert outcome.queries >= 500
    assert outcome.rejected == 0
    assert outcome.samples_per_s is None


def test_offline_samples_are_sent_64_per_request(url: str) -> None:
    outcome = run(url, "Offline", offline_expected_qps=20_000)
    assert outcome.queries == 1
    assert outcome.samples_per_s
    assert outcome.samples_per_s > 0


def test_rejected_queries_make_a_server_run_invalid(url: str) -> None:
    outcome = run(url, "Server", "503", server_target_latency_ns=10**10)
    assert outcome.rejected == outcome.queries
    assert not outcome.valid


@pytest.mark.parametrize("scenario", ["SingleStream", "Server", "Offline"])
def test_a_connection_that_the_server_closes_is_an_error(url: str, scenario: Scenario) -> None:
    with pytest.raises(BenchmarkError, match=f"service, closed, {scenario}: the server closed"):
        run(url, scenario, "closed")
