"""The fast path: which requests take it, and that its responses are those of the ASGI application."""

import asyncio
import gzip
import inspect
import json
import re
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl

from serving.http.fast_path import FastPathProtocol
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.fast_path_server import DIGITS, Run, Running, one, request, run_with_server


@pytest.fixture
def run(one_model: Path) -> Run:
    """Run a scenario with a service."""
    return partial(run_with_server, one_model)


@pytest.fixture(params=[True, False], ids=["fast-path", "no-fast-path"])
def run_both(request: pytest.FixtureRequest, one_model: Path) -> Run:
    """Run a scenario with a service with and without the fast path."""
    return partial(run_with_server, one_model, fast_path=request.param)


@pytest.fixture(scope="module")
def digits(one_model: Path) -> list[int]:
    """The model's predictions of the sample digits."""
    session = Session(load_repository(one_model)["student"].path)
    return session.run(DIGITS).probabilities.argmax(axis=1).tolist()


@pytest.mark.parametrize(("fast_path", "parsed"), [(True, 1), (False, 40)])
def test_only_the_first_request_with_a_head_is_parsed_unless_the_fast_path_is_off(
    run: Run, digits: list[int], fast_path: bool, parsed: int
) -> None:
    async def scenario(service: Running) -> None:
        for _ in range(2):
            client = await service.connect()
            for index in range(20):
                status, answer = await client.ask(request(one(index)))
                assert (status, answer["predictions"][0]["digit"]) == (200, digits[index])
        assert service.parsed == parsed

    run(scenario, fast_path=fast_path)


def test_responses_are_those_of_the_asgi_application(run: Run) -> None:
    async def responses(service: Running, data: bytes) -> list[Any]:
        client = await service.connect()
        found = []
        for _ in range(2):
            client.writer.write(data)
            status, headers, body = await client.answer()
            headers.pop("server-timing", None)
            headers.pop("date", None)
            headers.pop("x-request-id")
            content = json.loads(body)
            timing = content.pop("timing", None)
            if timing:
                headers.pop("content-length")  # the times have more or fewer digits
            found.append((status, headers, content))
        return found

    async def scenario(service: Running) -> None:
        for data, status in (  # every head is new
            (request(one(0), "X-Case: 1"), 200),
            (request({"image": [300]}, "X-Case: 2"), 422),
            (request(None, "X-Case: 3", body=b"{"), 400),
            (request(None, "Content-Encoding: gzip", body=gzip.compress(json.dumps(one(0)).encode())), 200),
            (request(None, "X-Case: 4", "Content-Encoding: gzip", body=b"no"), 400),
        ):
            parsed = service.parsed
            asgi, fast = await responses(service, data)
            assert asgi == fast
            assert asgi[0] == status
            assert service.parsed == parsed + 1

    run(scenario)


def test_a_different_head_is_parsed_once(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        parsed = []
        for headers in ((), (), ("Accept: */*",), ("Accept: */*",), ()):
            before = service.parsed
            assert (await client.ask(request(one(0), *headers)))[0] == 200
            parsed.append(service.parsed - before)
        assert parsed == [1, 0, 1, 0, 0]

    run(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        ("X-Request-ID: {}",),
        ("traceparent: 00-{:032x}-{:016x}-01",),
        ("X-Request-ID: {}", "traceparent: 00-{:032x}-{:016x}-01", "Accept: */*", "tracestate: a={}, b=c"),
        ("tracestate: {}", "x-request-id:{}"),
    ],
)
def test_heads_that_differ_in_request_id_and_trace_context_take_the_fast_path(
    run: Run, digits: list[int], headers: tuple[str, ...]
) -> None:
    async def scenario(service: Running) -> None:
        for _ in range(2):
            client = await service.connect()
            for index in range(1, 8):
                fields = [header.format(index, index) for header in headers]
                client.writer.write(request(one(index), *fields))
                status, found, body = await client.answer()
                assert (status, json.loads(body)["predictions"][0]["digit"]) == (200, digits[index])
                if "x-request-id" in str(headers).lower():
                    assert found["x-request-id"] == str(index)
        assert service.parsed == 1

    run(scenario)


def test_every_response_has_an_id_of_its_own(run_both: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        ids = set()
        for index in range(100):
            client.writer.write(request(one(0) if index % 2 else {"image": 0}))
            ids.add((await client.answer())[1]["x-request-id"])
        assert len(ids) == 100
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)

    run_both(scenario)


def test_a_request_in_several_pieces_is_served(run_both: Run, digits: list[int]) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        await client.ask(request(one(0)))
        for cut in (1, 30, 200, 1000):
            data = request(one(1))
            client.writer.write(data[:cut])
            await client.writer.drain()
            await asyncio.sleep(0.02)
            assert (await client.ask(data[cut:]))[1]["predictions"][0]["digit"] == digits[1]
        assert service.parsed == 5

    run_both(scenario)


def test_a_body_that_looks_like_a_request_is_a_body(run_both: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        inner = request(one(0))
        await client.ask(inner)
        outer = request(None, body=inner)
        client.writer.write(outer[: -len(inner)])
        await client.writer.drain()
        await asyncio.sleep(0.02)
        status, answer = await client.ask(inner)
        assert (status, answer["error"]["code"]) == (400, "malformed_body")
        assert (await client.ask(inner))[0] == 200  # one response each: the connection is in step

    run_both(scenario)


@pytest.mark.parametrize("together", [True, False])
def test_pipelined_requests_are_served_in_order(run_both: Run, digits: list[int], together: bool) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        await client.ask(request(one(0)))
        requests = [request(one(index)) for index in range(8)]
        if together:
            client.writer.write(b"".join(requests))
        else:
            for data in requests:
                client.writer.write(data)
                await asyncio.sleep(0)
        found = [json.loads((await client.answer())[2])["predictions"][0]["digit"] for _ in requests]
        assert found == digits[:8]

    run_both(scenario)


def test_a_connection_for_every_request_is_closed_after_its_response(
    run_both: Run, digits: list[int]
) -> None:
    async def scenario(service: Running) -> None:
        found = []
        for index in range(3):
            client = await service.connect()
            data = request(one(index), "Connection: close")
            client.writer.write(data + data)  # nothing follows the request that announces the end
            _, headers, body = await client.answer()
            assert headers["connection"] == "close"
            assert await client.reader.read() == b""
            found.append(json.loads(body)["predictions"][0]["digit"])
        assert found == digits[:3]
        for index in range(3):
            client = await service.connect()
            client.writer.write(request(one(index), "Connection: close"))
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.reader.read() == b""
        assert service.parsed == (4 if service.service.settings.fast_path else 6)

    run_both(scenario)


def test_every_request_is_checked_for_the_api_key(run_both: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        for key, status in (("wrong!", 401), ("wrong!", 401), ("secret", 200), ("secret", 200)):
            assert (await client.ask(request(one(0), f"X-API-Key: {key}")))[0] == status
        assert service.parsed == (2 if service.service.settings.fast_path else 4)

    run_both(scenario, api_key="secret")


def test_every_request_is_checked_for_the_length_of_its_body(run_both: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        assert [(await client.ask(request(None, body=b"[0]")))[0] for _ in range(2)] == [422, 422]
        status, answer = await client.ask(request(one(0)))
        assert (status, answer["error"]["code"]) == (413, "body_too_large")

    run_both(scenario, max_body_bytes=100)


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_uvicorn_has_the_internals_that_the_fast_path_relies_on() -> None:
    assert version("uvicorn") == "0.54.0"
    protocol = httptools_impl.HttpToolsProtocol
    assert issubclass(FastPathProtocol, protocol)
    for name in (
        *("_should_upgrade", "connection_lost", "connection_made", "data_received", "eof_received"),
        *("on_headers_complete", "on_message_begin", "on_message_complete", "on_response_complete"),
        *("pause_writing", "resume_writing", "shutdown", "timeout_keep_alive_handler"),
    ):
        assert getattr(FastPathProtocol, name) is not getattr(protocol, name)
    source = inspect.getsource(protocol)
    for part in (
        "self.cycle is None or self.cycle.response_complete",
        "self.pipeline.appendleft((self.cycle, app))",
        "self.timeout_keep_alive_task = self.loop.call_later(",
        "self.flow.resume_reading()",
        "self.server_state.total_requests += 1",
        "self.timeout_keep_alive, self.timeout_keep_alive_handler",
        'self.scope["method"] = method',
        'self.scope["path"] = full_path',
        '"http_version": "1.1"',
        "self.server_state.default_headers",
        "on_response=self.on_response_complete",
        "self.parser.should_upgrade() and self._should_upgrade()",
        "set_dangerous_leniencies(lenient_data_after_close=True)",
        "self.headers.append((name, value))",
        "transport=self.transport",
    ):
        assert part in source
    response = inspect.getsource(httptools_impl.RequestResponseCycle)
    used = set(re.findall(r"self\.transport\.(\w+)", response))
    assert used == {"write", "is_closing", "close"}  # of serving.http.connection
    assert "self.response_complete = True" in response
    assert "self.transport.close()\n                self.on_response()" in response
    assert parameters(protocol) == ["config", "server_state", "app_state", "_loop"]
    assert hasattr(FlowControl, "pause_reading")
    assert "self.write_paused" in inspect.getsource(FlowControl)
    assert httptools_impl.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
