"""A server in this process that takes the fast path and counts the requests that did not."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from serving.codecs.bodies import Limits
from serving.codecs.predict import Predict
from serving.engine.admission import Admission, Bounds
from serving.engine.endpoint import Endpoint
from serving.engine.executors import InProcess
from serving.engine.lit_api import DigitAPI, ModelSettings
from serving.http.app import Front, Route
from serving.http.fast_path import DirectProtocol
from serving.model.repository import load_repository
from tests.support.connections import Connection
from tests.support.samples import sample_test
from tests.support.service import free_port

DIGITS = sample_test().images.numpy()
KEEP_ALIVE_S = 1


def request(document: Any, *headers: str, path: str = "/predict", body: bytes | None = None) -> bytes:
    content = json.dumps(document).encode() if body is None else body
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    lines += [f"Content-Length: {len(content)}", "User-Agent: test", "", ""]
    return "\r\n".join(lines).encode() + content


def one(index: int) -> dict[str, Any]:
    return {"image": DIGITS[index].tolist()}


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


def run_with_server(models: Path, scenario: Scenario, *, max_batch: int = 64, **bounds: Any) -> None:
    """Run a scenario with a server."""

    async def within() -> None:
        async with running(models, Bounds(**bounds), max_batch) as service, asyncio.timeout(20):
            await scenario(service)
        assert service.endpoint.metrics.in_flight == 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(within())
