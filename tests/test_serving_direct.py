"""The short way of a client's next request: taken when it may be, and told from the whole way by nobody."""

import asyncio
import inspect
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from connections import Connection
from samples import sample_test
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http import httptools_impl

from benchmarks.servers import free_port
from serving.admission import Admission, Bounds
from serving.api import DigitAPI, ModelSettings
from serving.decode import Limits
from serving.direct import DirectProtocol, Head
from serving.endpoint import Endpoint
from serving.executors import InProcess
from serving.front import Front, Route
from serving.predict import Predict
from serving.repository import load_repository
from serving.session import Session

DIGITS = sample_test().images.numpy()
KEEP_ALIVE_S = 1
ROUTE: Any = object()  # a head only carries it


def request(document: Any, *headers: str, path: str = "/predict", body: bytes | None = None) -> bytes:
    content = json.dumps(document).encode() if body is None else body
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    lines += [f"Content-Length: {len(content)}", "User-Agent: test", "", ""]
    return "\r\n".join(lines).encode() + content


def one(index: int) -> dict[str, Any]:
    return {"image": DIGITS[index].tolist()}


def head_of(data: bytes) -> Head | None:
    return Head.of(data, {b"host": b"x"}, ROUTE)


def test_a_head_is_recognised_whatever_the_length_of_the_body() -> None:
    head = head_of(request(None, body=b"x" * 9))
    assert head
    for length in (0, 9, 10, 1234):
        assert head.body_of(request(None, body=b"y" * length)) == b"y" * length


@pytest.mark.parametrize(
    "other",
    [
        request(None, "Accept: */*", body=b"x"),
        request(None, body=b"x", path="/predict/teacher"),
        request(None, body=b"x").lower(),
        request(None, body=b"x") + b"more",
        request(None, body=b"xyz")[:-1],
        request(None, body=b"x") * 2,
        request(None, body=b"x").replace(b"Length: 1", b"Length: +1"),
        request(None, body=b"x").replace(b"Length: 1", b"Length: "),
        request(None, body=b"x").replace(b"Length: 1", b"Length: 99999999999999999999"),
        request(None, body=b"x").replace(b"\r\n", b"\n"),
        b"",
    ],
)
def test_anything_but_one_whole_request_with_that_head_is_not_recognised(other: bytes) -> None:
    head = head_of(request(None, body=b"x" * 9))
    assert head
    assert head.body_of(other) is None


@pytest.mark.parametrize(
    "headers",
    [
        {b"connection": b"close"},
        {b"transfer-encoding": b"chunked"},
        {b"expect": b"100-continue"},
        {b"upgrade": b"h2c"},
    ],
)
def test_a_head_that_changes_the_way_is_not_remembered(headers: dict[bytes, bytes]) -> None:
    assert Head.of(request(None, body=b"x"), headers, ROUTE) is None
    assert Head.of(request(None, body=b"x"), {b"connection": b"Keep-Alive"}, ROUTE)


def test_a_second_length_or_another_amount_of_body_is_not_remembered() -> None:
    assert head_of(request(None, "Content-Length: 1", body=b"x")) is None
    assert head_of(request(None, body=b"x") + b"y") is None
    assert head_of(request(None, body=b"xy")[:-1]) is None


class Running:
    """A server in this process, which says how many requests went the whole way."""

    def __init__(
        self,
        port: int,
        server: uvicorn.Server,
        endpoint: Endpoint,
        admission: Admission,
        thread: ThreadPoolExecutor,
    ) -> None:
        self.port, self.server, self.endpoint, self.admission, self.thread = (
            port,
            server,
            endpoint,
            admission,
            thread,
        )
        self.whole_way = 0
        self.clients: list[Connection] = []

    async def connect(self) -> Connection:
        self.clients.append(await Connection.to("127.0.0.1", self.port))
        return self.clients[-1]


@asynccontextmanager
async def running(models: Path, bounds: Bounds, max_batch: int) -> AsyncIterator[Running]:
    entry = load_repository(models)["student"]
    api = DigitAPI(entry, ModelSettings(Limits(), max_batch=max_batch))
    api.setup("cpu")
    with ThreadPoolExecutor(1) as threads:
        endpoint = Endpoint(api, InProcess(api, threads), threads)
        admission = Admission(bounds)

        async def nothing_else(*_: Any) -> None:
            raise AssertionError("only predictions are asked for")

        front = Front(nothing_else, admission)
        front.open({"/predict": Route(Predict(), endpoint)})

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            service.whole_way += 1
            await front(scope, receive, send)

        port = free_port()
        protocol: Any = partial(DirectProtocol, front, admission)
        config = uvicorn.Config(
            counted,
            port=port,
            http=protocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        server = uvicorn.Server(config)
        service = Running(port, server, endpoint, admission, threads)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn gives no event
            await asyncio.sleep(0.01)
        try:
            yield service
        finally:
            for client in service.clients:
                client.writer.close()
            server.should_exit = True
            await serving


Scenario = Callable[[Running], Coroutine[Any, Any, None]]
Run = Callable[..., None]


@pytest.fixture
def run(model_repository: Path) -> Run:
    """Run a scenario with a server."""

    def run(scenario: Scenario, *, max_batch: int = 64, **bounds: Any) -> None:
        async def within() -> None:
            async with running(model_repository, Bounds(**bounds), max_batch) as service, asyncio.timeout(20):
                await scenario(service)
            assert service.endpoint.metrics.in_flight == 0

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(within())

    return run


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


def test_a_client_that_hangs_up_leaves_the_batch(run: Run) -> None:
    async def scenario(service: Running) -> None:
        clients = [await service.connect() for _ in range(4)]
        await asyncio.gather(*(client.ask(request(one(0))) for client in clients))
        for client in clients:  # many images are run on the thread, one request after the other
            client.writer.write(request({"images": [DIGITS[0].tolist()] * 60}))
            await asyncio.sleep(0)
            client.writer.transport.abort()
        survivor = await service.connect()
        assert (await survivor.ask(request(one(1))))[0] == 200

    run(scenario)


def test_what_is_late_or_given_up_leaves_the_batch_before_it_is_computed(run: Run) -> None:
    two = request({"images": DIGITS[:2].tolist()})  # more than a batch of one: each a run, on the thread

    async def scenario(service: Running) -> None:
        runs = service.endpoint._api.metrics._runs

        def metrics_say(in_flight: int) -> bool:
            return service.endpoint.metrics.in_flight == in_flight

        first, direct, whole, leaver = [await service.connect() for _ in range(4)]
        for client in (direct, leaver):
            await client.ask(request(one(0)))
        free = threading.Event()
        service.thread.submit(free.wait)
        try:
            for waiting, client in enumerate((first, direct, whole, leaver), start=1):
                client.writer.write(two)
                await until(partial(metrics_say, waiting))
            leaver.writer.transport.abort()
            await until(partial(metrics_say, 3))
            await asyncio.sleep(0.25)
            service.admission.cancel_late()
            for client in (first, direct, whole):
                status, _, body = await client.answer()
                assert (status, json.loads(body)["error"]["code"]) == (504, "timed_out")
        finally:
            free.set()
        assert (await whole.ask(two))[0] == 200
        assert runs[2].count == 2  # the first one's, which had begun, and the last one's
        assert service.whole_way == 4

    run(scenario, max_batch=1, request_timeout=0.2)


def test_an_answer_under_way_is_given_when_the_server_ends(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        await client.ask(request(one(0)))
        client.writer.write(request({"images": [DIGITS[0].tolist()] * 60}))
        service.server.should_exit = True
        assert (await client.answer())[0] == 200
        assert await client.reader.read() == b""

    run(scenario)


def test_a_connection_is_closed_when_it_has_been_idle_and_not_before(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        for _ in range(5):
            assert (await client.ask(request(one(0))))[0] == 200
            await asyncio.sleep(0.4 * KEEP_ALIVE_S)
        answered = time.monotonic()
        assert (await client.ask(request(one(0))))[0] == 200
        assert await client.reader.read() == b""
        assert 0.9 * KEEP_ALIVE_S < time.monotonic() - answered < 2 * KEEP_ALIVE_S
        assert service.whole_way == 1

    run(scenario)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a connection gives no event
            await asyncio.sleep(0.005)


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
