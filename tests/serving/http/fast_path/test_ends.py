"""Requests that end early: clients that hang up, deadlines, shutdown, idle connections."""

import asyncio
import gc
import json
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.fast_path_server import (
    DIGITS,
    KEEP_ALIVE_S,
    TWO,
    Run,
    Running,
    hold_runs,
    one,
    request,
    run_with_server,
    until,
)
from tests.support.otlp_receiver import attributes, receiving
from tests.support.service import eventually


@pytest.fixture
def run(one_model: Path) -> Run:
    """Run a scenario with a service."""
    return partial(run_with_server, one_model)


@pytest.fixture(params=[True, False], ids=["fast-path", "no-fast-path"])
def run_both(request: pytest.FixtureRequest, one_model: Path) -> Run:
    """Run a scenario with a service with and without the fast path."""
    return partial(run_with_server, one_model, fast_path=request.param)


def test_a_client_that_hangs_up_does_not_affect_others(run_both: Run) -> None:
    async def scenario(service: Running) -> None:
        clients = [await service.connect() for _ in range(4)]
        await asyncio.gather(*(client.ask(request(one(0))) for client in clients))
        for client in clients:
            client.writer.write(request({"images": [DIGITS[0].tolist()] * 60}))
            await asyncio.sleep(0)
            client.writer.transport.abort()
        survivor = await service.connect()
        assert (await survivor.ask(request(one(1))))[0] == 200

    run_both(scenario)


def test_late_and_abandoned_requests_leave_the_queue_without_a_run(run: Run) -> None:
    async def scenario(service: Running) -> None:
        endpoint = service.endpoint
        released = hold_runs(endpoint.api.session)
        runs = endpoint.api.metrics._runs
        first, fast, asgi, leaver = [await service.connect() for _ in range(4)]
        for client in (fast, leaver):
            await client.ask(request(one(0)))
        released.clear()
        try:
            for in_flight, client in enumerate((first, fast, asgi, leaver), start=1):
                client.writer.write(TWO)
                await until(lambda expected=in_flight: endpoint.metrics.in_flight == expected)
            leaver.writer.transport.abort()
            await until(lambda: endpoint.metrics.in_flight == 3)
            for client in (first, fast, asgi):
                status, _, body = await client.answer()
                assert (status, json.loads(body)["error"]["code"]) == (504, "timed_out")
        finally:
            released.set()
        assert (await asgi.ask(TWO))[0] == 200
        assert runs[2].count == 2  # the first one's, which had begun, and the last one's
        assert service.parsed == 1

    run(scenario, max_batch=1, request_timeout=1)


def test_a_request_in_flight_is_completed_when_the_server_shuts_down(run_both: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        await client.ask(request(one(0)))
        released = hold_runs(service.endpoint.api.session)
        released.clear()
        try:
            client.writer.write(TWO)
            await until(lambda: service.endpoint.metrics.in_flight)
            service.server.should_exit = True
            await until(lambda: not service.server.servers[0].is_serving())
        finally:
            released.set()
        assert (await client.answer())[0] == 200
        assert await client.reader.read() == b""

    run_both(scenario, max_batch=1)


def test_a_body_that_does_not_arrive_in_time_is_a_408_and_closes_the_connection(run_both: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        client.writer.write(request(one(0))[:-1])
        status, headers, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "slow_body")
        assert headers["connection"] == "close"
        assert await client.reader.read() == b""

    run_both(scenario, client_timeout=0.2)


def test_a_request_that_times_out_has_a_span_with_the_status_error(
    run_both: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(service: Running) -> None:
        released = hold_runs(service.endpoint.api.session)
        client = await service.connect()
        await client.ask(request(one(0)))
        released.clear()
        try:
            client.writer.write(TWO.replace(b"\r\n\r\n", b"\r\nX-Request-ID: late\r\n\r\n"))
            assert (await client.answer())[0] == 504
        finally:
            released.set()
        await asyncio.to_thread(eventually, lambda: collector.of("late"))

    with receiving() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        run_both(scenario, max_batch=1, request_timeout=0.3, tracing=True)
        span = collector.of("late")
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert [event.name for event in span.events] == ["body received", "body decoded"]
    assert attributes(span)["error.type"] == "timed_out"


def test_an_idle_connection_is_closed_and_an_active_one_is_not(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        for _ in range(5):
            assert (await client.ask(request(one(0))))[0] == 200
            await asyncio.sleep(0.4 * KEEP_ALIVE_S)
        answered = time.monotonic()
        assert (await client.ask(request(one(0))))[0] == 200
        assert await client.reader.read() == b""
        assert time.monotonic() - answered > 0.9 * KEEP_ALIVE_S
        assert service.parsed == 1

    run(scenario)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", b'{"images": [' + bytes(3_000_000)),
        ("/predict", b'{"images": ["' + b"A" * 3_000_000 + b'"]}'),
        ("/predict", b"\xff\xd8\xff" + bytes(3_000_000)),
        (
            "/v2/models/student/infer",
            b'{"inputs": [{"data": [' + b"0," * 100_000 + b"0]}]}" + b" " * 3_000_000,
        ),
    ],
    ids=["JSON", "base64", "JPEG", "V2"],
)
def test_the_body_of_a_rejected_request_is_not_kept_until_a_garbage_collection(
    run_both: Run, path: str, body: bytes
) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        data = request(None, path=path, body=body)
        await client.ask(data)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                assert (await client.ask(data))[0] in {400, 422}
            gc.collect()
            unreachable = [one for garbage in gc.garbage for one in gc.get_referents(garbage)]
            assert not [one for one in unreachable if isinstance(one, bytes | str) and len(one) > 1_000_000]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    run_both(scenario)
