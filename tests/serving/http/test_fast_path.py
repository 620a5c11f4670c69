"""The short way of a client's next request: taken when it may be, and told from the whole way by nobody."""

import asyncio
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols.http import httptools_impl

from serving.http.fast_path import DirectProtocol
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.fast_path_server import DIGITS, Run, Running, one, request, run_with_server


@pytest.fixture
def run(model_repository: Path) -> Run:
    """Run a scenario with a server."""
    return partial(run_with_server, model_repository)


@pytest.fixture
def digits(model_repository: Path) -> list[int]:
    """What the model says of the sample digits."""
    session = Session(load_repository(model_repository)["student"].path)
    return session.run(DIGITS)[1].argmax(axis=1).tolist()


def test_only_the_first_of_a_clients_requests_goes_the_whole_way(run: Run, digits: list[int]) -> None:
    async def scenario(service: Running) -> None:
        for _ in range(2):
            client = await service.connect()
            for index in range(20):
                status, answer = await client.ask(request(one(index)))
                assert (status, answer["predictions"][0]["digit"]) == (200, digits[index])
        assert service.whole_way == 2

    run(scenario)


def test_both_ways_answer_alike(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        answers = []
        for document in (one(0), one(0), {"image": [300]}, {"image": [300]}):
            client.writer.write(request(document, f"X-Way: {document is not None}"))
            status, headers, body = await client.answer()
            content = json.loads(body)
            content.pop("timing", None)
            answers.append((status, sorted(headers), content))
        whole, direct, _, direct_error = answers
        assert whole == direct
        other = await service.connect()  # whose first request goes the whole way
        other.writer.write(request({"image": [300]}))
        status, headers, body = await other.answer()
        assert direct_error == (status, sorted(headers), json.loads(body))
        assert direct_error[0] == 422
        assert service.whole_way == 2

    run(scenario)


def test_another_head_goes_the_whole_way_and_is_the_one_remembered(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        ways = []
        for headers in ((), (), ("Accept: */*",), ("Accept: */*",), ()):
            before = service.whole_way
            assert (await client.ask(request(one(0), *headers)))[0] == 200
            ways.append(service.whole_way - before)
        assert ways == [1, 0, 1, 0, 1]

    run(scenario)


def test_a_request_in_pieces_is_answered(run: Run, digits: list[int]) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        await client.ask(request(one(0)))
        for cut in (1, 30, 200, 1000):
            data = request(one(1))
            client.writer.write(data[:cut])
            await client.writer.drain()
            await asyncio.sleep(0.02)
            assert (await client.ask(data[cut:]))[1]["predictions"][0]["digit"] == digits[1]
        assert service.whole_way == 5

    run(scenario)


def test_what_looks_like_a_request_inside_a_body_is_a_body(run: Run) -> None:
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
        assert (await client.ask(inner))[0] == 200  # one answer each, and the connection is in step

    run(scenario)


@pytest.mark.parametrize("together", [True, False])
def test_pipelined_requests_are_answered_in_order(run: Run, digits: list[int], together: bool) -> None:
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

    run(scenario)


def test_the_key_and_the_limits_hold_on_the_short_way_too(run: Run) -> None:
    async def wrong_key(service: Running) -> None:
        client = await service.connect()
        for _ in range(2):
            assert (await client.ask(request(one(0), "X-API-Key: wrong!")))[0] == 401
        assert (await client.ask(request(one(0), "X-API-Key: secret")))[0] == 200
        assert (await client.ask(request(one(0), "X-API-Key: secret")))[0] == 200
        assert service.whole_way == 2

    async def too_long(service: Running) -> None:
        client = await service.connect()
        assert [(await client.ask(request(None, body=b"[0]")))[0] for _ in range(2)] == [422, 422]
        status, answer = await client.ask(request(one(0)))
        assert (status, answer["error"]["code"]) == (413, "body_too_large")

    run(wrong_key, api_key="secret")
    run(too_long, max_body_bytes=100)


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_what_is_relied_on_inside_uvicorn() -> None:
    protocol = httptools_impl.HttpToolsProtocol
    assert issubclass(DirectProtocol, protocol)
    for name in ("connection_lost", "data_received", "on_message_begin", "on_message_complete", "shutdown"):
        assert getattr(DirectProtocol, name) is not getattr(protocol, name)
    source = inspect.getsource(protocol)
    for part in (
        "self.cycle is None or self.cycle.response_complete",
        "self.timeout_keep_alive_task = self.loop.call_later(",
        "self.flow.resume_reading()",
        "self.server_state.total_requests += 1",
        "self.timeout_keep_alive, self.timeout_keep_alive_handler",
        'self.scope["method"] = method',
        "self.server_state.default_headers",
        "on_response=self.on_response_complete",
    ):
        assert part in source
    assert parameters(protocol) == ["config", "server_state", "app_state", "_loop"]
    assert httptools_impl.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
