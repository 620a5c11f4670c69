"""Connections of clients that are slow, half-closed, or offer an upgrade, with and without the fast path."""

import asyncio
import json
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.support.fast_path_server import (
    DIGITS,
    KEEP_ALIVE_S,
    TWO,
    Run,
    Running,
    Scenario,
    hold_runs,
    one,
    request,
    running,
    until,
)
from tests.support.requests.connections import Connection

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAA")
"""The headers of Java's HttpClient and of `curl --http2`."""
WEBSOCKET = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
CLIENT_TIMEOUT_S = 0.5
REQUEST_TIMEOUT_S = 1.5
END = b"}}"
"""Of a response to /predict, and nowhere else in it."""


@pytest.fixture(scope="module", params=[True, False], ids=["fast-path", "no-fast-path"])
def run(request: pytest.FixtureRequest, one_model: Path) -> Iterator[Run]:
    """Run a scenario with a service with and without the fast path, which all scenarios share."""
    settings = {"client_timeout": CLIENT_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S, "max_batch": 1}
    serving = running(one_model, fast_path=request.param, **settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        service = runner.run(serving.__aenter__())

        async def within(scenario: Scenario) -> None:
            async with asyncio.timeout(20):
                await scenario(service)
            while service.clients:
                service.clients.pop().writer.close()
            await until(lambda: not service.endpoint.metrics.in_flight)

        yield lambda scenario: runner.run(within(scenario))
        runner.run(serving.__aexit__(None, None, None))


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


async def send(client: Connection, pieces: Iterable[bytes], pause: float = 0.02) -> None:
    """Send pieces so that the server receives each by itself."""
    for piece in pieces:
        client.writer.write(piece)
        await client.writer.drain()
        await asyncio.sleep(pause)


async def error_and_end(client: Connection) -> tuple[int, str]:
    """Return status and code of an error after which the server closes the connection."""
    status, headers, body = await client.answer()
    assert headers["connection"] == "close"
    assert await client.reader.read() == b""
    return status, json.loads(body)["error"]["code"]


def test_an_offer_to_upgrade_is_ignored_and_the_connection_remains_usable(run: Run) -> None:
    async def scenario(service: Running) -> None:
        plain = request(one(0))
        for offer in (H2C, WEBSOCKET, ("Connection: upgrade", "Upgrade: TLS/1.0")):
            data = request(one(1), *offer)
            head = data.index(b"\r\n\r\n") + 4
            for pieces in (
                [data],
                [data[:head], data[head:]],
                [data[:30], data[30 : head + 50], data[head + 50 :]],
            ):
                client = await service.connect()
                await send(client, pieces)
                assert (await client.answer())[0] == 200
                await send(client, pieces)
                assert (await client.answer())[0] == 200
                assert (await client.ask(plain))[0] == 200
            client.writer.write(data * 3)
            assert [(await client.answer())[0] for _ in range(3)] == [200] * 3
            assert (await client.ask(get("/models", *offer)))[1]["default"] == "student"
            assert (await client.ask(get("/v2", *offer)))[0] == 200
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(json.dumps(one(0))), json.dumps(one(0)).encode())
            chunked = get("/predict", *offer, "Transfer-Encoding: chunked", method="POST")
            assert (await client.ask(chunked + chunks))[0] == 200
            assert (await client.ask(get("/nothing", *offer)))[0] == 404
            assert (await client.ask(get("/predict", *offer)))[0] == 405
            client.writer.write(get("/models", "Connection: close, Upgrade", "Upgrade: h2c"))
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.reader.read() == b""

    run(scenario)


def test_requests_with_an_offer_take_the_fast_path(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client, before = await service.connect(), service.parsed
        for _ in range(5):
            assert (await client.ask(request(one(0), *H2C)))[0] == 200
        parsed = service.parsed - before
        assert parsed <= 1 if service.service.settings.fast_path else parsed == 5

    run(scenario)


def test_what_is_not_http_gets_an_error_after_the_responses_before_it(run: Run) -> None:
    async def scenario(service: Running) -> None:
        for wrong in (
            b"\x16\x03\x01\x02\x00\x01",
            get("a:80", method="CONNECT"),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ):
            client = await service.connect()
            client.writer.write(wrong)
            assert await error_and_end(client) == (400, "malformed_request")
            client = await service.connect()
            client.writer.write(request(one(0)) * 2 + wrong)
            assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
            assert await client.reader.read() == b""
        for path in ("/predict", "/predict/nobody", "/nothing"):
            client = await service.connect()
            client.writer.write(get(path, "Transfer-Encoding: chunked", method="POST") + b"no length")
            assert await error_and_end(client) == (400, "malformed_request")

    run(scenario)


def test_an_error_in_a_body_ends_the_connection_after_the_responses_before_it(run: Run, caplog: Any) -> None:
    async def scenario(service: Running) -> None:
        head = get("/predict", "Transfer-Encoding: chunked", "Expect: 100-continue", method="POST")
        malformed = head + b"7\r\n12345678\r\n0\r\n\r\n"
        plain = request(one(0))
        for before in (0, 1, 3):
            client = await service.connect()
            client.writer.write(plain * before + malformed + plain)
            for _ in range(before):
                assert (await client.answer())[0] == 200
            if before:
                assert await client.reader.read() == b""
            else:
                assert await error_and_end(client) == (400, "malformed_request")
        client = await service.connect()
        client.writer.write(get("/predict/nobody", "Transfer-Encoding: chunked", method="POST"))
        assert (await client.answer())[0] == 404
        client.writer.write(b"no chunk\r\n")
        assert await client.reader.read() == b""  # rather than a second response

    run(scenario)
    assert not caplog.records


def test_a_head_that_grows_without_end_is_rejected(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        client.writer.write(b"GET / HTTP/1.1\r\n")
        line = b"X-Padding: " + b"x" * 1000 + b"\r\n"
        await send(client, [line * 60] * 10, pause=0.005)
        assert await error_and_end(client) == (431, "head_too_large")

    run(scenario)


async def a_head_that_does_not_arrive_in_time_is_a_408_and_closes_the_connection(service: Running) -> None:
    fresh, used, dripping = [await service.connect() for _ in range(3)]
    for _ in range(2):
        assert (await used.ask(request(one(0))))[0] == 200
    started = time.monotonic()
    fresh.writer.write(b"G")
    used.writer.write(request(one(0))[:40])
    for byte in get("/models", "X-Padding: " + "x" * 100):
        dripping.writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
        if dripping.reader._buffer:
            break
    for client in (fresh, used, dripping):
        assert await error_and_end(client) == (408, "slow_head")
    assert time.monotonic() - started < 4 * CLIENT_TIMEOUT_S


async def a_connection_without_a_request_is_closed_like_an_idle_one(service: Running) -> None:
    silent, blank, used = [await service.connect() for _ in range(3)]
    assert (await used.ask(get("/models")))[0] == 200
    started = time.monotonic()
    for _ in range(8):
        blank.writer.write(b"\r\n")  # allowed between requests
        used.writer.write(b"\r\n")
        await asyncio.sleep(0.1 * KEEP_ALIVE_S)
    for client in (silent, blank, used):
        assert await client.reader.read() == b""
    assert 0.9 * KEEP_ALIVE_S < time.monotonic() - started < 4 * KEEP_ALIVE_S


def padded(length: int) -> bytes:
    """Return a request whose body ends with spaces."""
    return request(None, body=json.dumps(one(0)).encode().ljust(length))


async def a_body_may_take_any_time_while_it_makes_progress(service: Running) -> None:
    client = await service.connect()
    data = padded(100_000)
    started = time.monotonic()
    await send(client, [data[start : start + 8000] for start in range(0, len(data), 8000)], pause=0.15)
    assert time.monotonic() - started > REQUEST_TIMEOUT_S > 2 * CLIENT_TIMEOUT_S
    assert (await client.answer())[0] == 200


async def a_body_that_stalls_or_drips_is_a_408_and_closes_the_connection(service: Running) -> None:
    async def drip(client: Connection, data: bytes) -> None:
        for start in range(0, len(data), 100):
            if client.reader.at_eof() or client.writer.is_closing():
                return
            client.writer.write(data[start : start + 100])
            await asyncio.sleep(0.05)

    stalled, dripping = await service.connect(), await service.connect()
    stalled.writer.write(padded(100_000)[:60_000])
    data = padded(100_000)
    sending = asyncio.create_task(drip(dripping, data))
    for client in (stalled, dripping):
        assert await error_and_end(client) == (408, "slow_body")
    sending.cancel()


async def the_rest_of_a_body_whose_response_is_sent_has_a_time_limit(service: Running) -> None:
    client = await service.connect()
    data = request(None, path="/predict/nobody", body=b" " * 1000)
    client.writer.write(data[:-500])
    assert (await client.answer())[0] == 404
    await asyncio.sleep(0.1)
    client.writer.write(data[-500:])
    assert (await client.ask(request(one(0))))[0] == 200  # the rest was skipped
    client.writer.write(data[:-500])
    assert (await client.answer())[0] == 404
    assert await client.reader.read() == b""


def test_a_half_closed_client_gets_its_responses(run: Run) -> None:
    async def scenario(service: Running) -> None:
        for data, count in ((request(one(0)), 1), (request(one(0)) * 3, 3), (get("/models"), 1)):
            for used in (False, True):
                client = await service.connect()
                if used:
                    await client.ask(request(one(0)))
                client.writer.write(data)
                client.writer.write_eof()
                assert [(await client.answer())[0] for _ in range(count)] == [200] * count
                assert await client.reader.read() == b""
        for incomplete in (request(one(0))[:-1], request(one(0))[:40], b""):
            client = await service.connect()
            client.writer.write(incomplete)
            client.writer.write_eof()
            assert await client.reader.read() == b""

    run(scenario)


def test_a_half_closed_client_gets_a_response_that_takes_long_and_one_that_is_gone_frees_its_place(
    run: Run,
) -> None:
    async def scenario(service: Running) -> None:
        released = hold_runs(service.endpoint.api.session)
        waiting, gone = await service.connect(), await service.connect()
        for client in (waiting, gone):
            await client.ask(request(one(0)))
        released.clear()
        try:
            for client in (waiting, gone):
                client.writer.write(TWO)
            await until(lambda: service.endpoint.metrics.in_flight == 2)
            waiting.writer.write_eof()
            gone.writer.close()
            await until(lambda: service.endpoint.metrics.in_flight == 1)
            assert await waiting.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        finally:
            released.set()
        assert (await waiting.answer())[0] == 200
        assert await waiting.reader.read() == b""

    run(scenario)


async def a_client_that_does_not_read_its_response_is_disconnected(service: Running) -> None:
    images, path = {"images": DIGITS[:60].tolist()}, "/predict?include=input"
    connections = service.server.server_state.connections
    for requests, headers in ((1, ()), (5, ()), (1, ("Connection: close",))):
        data = request(images, *headers, path=path)
        silent, connection = await narrow_client(service)
        reading, _ = await narrow_client(service)
        for client in (reading, silent):
            client.sendall(data * requests)
        assert await asyncio.to_thread(receive, reading, requests) == requests
        await until(lambda ended=connection: ended not in connections)
        assert await asyncio.to_thread(receive, silent, requests) < requests
        for client in (reading, silent):
            client.close()


async def narrow_client(service: Running) -> tuple[socket.socket, Any]:
    """Return a client, and the server's end of its connection, which buffers little on both ends."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    client.settimeout(10)
    connections: set[Any] = service.server.server_state.connections
    await asyncio.to_thread(client.connect, service.server.servers[0].sockets[0].getsockname())
    address = client.getsockname()
    await until(lambda: any(one.client == address for one in connections))
    [connection] = [one for one in connections if one.client == address]
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    return client, connection


def receive(client: socket.socket, requests: int) -> int:
    """Read the responses to `requests` as far as they come; return the number of complete ones."""
    found, piece = b"", b"-"
    while piece and found.count(END) < requests:
        try:
            piece = client.recv(100_000)
        except ConnectionResetError:
            break
        found += piece
    return found.count(END)


def test_slow_clients_are_limited_and_do_not_affect_each_other(run: Run) -> None:
    async def scenario(service: Running) -> None:
        async with asyncio.TaskGroup() as at_once:
            for one_of_them in (
                a_head_that_does_not_arrive_in_time_is_a_408_and_closes_the_connection,
                a_connection_without_a_request_is_closed_like_an_idle_one,
                a_body_may_take_any_time_while_it_makes_progress,
                a_body_that_stalls_or_drips_is_a_408_and_closes_the_connection,
                the_rest_of_a_body_whose_response_is_sent_has_a_time_limit,
                a_client_that_does_not_read_its_response_is_disconnected,
            ):
                at_once.create_task(one_of_them(service))

    run(scenario)
