"""A service mounted in this process, which counts the requests that do not take the fast path; `grpc` is an address."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from serving.__main__ import Serve
from serving.engine.admission.pacing import Rejections
from serving.engine.request import Endpoint
from serving.service import Service, build
from tests.support.requests.connections import Connection, post
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
KEEP_ALIVE_S = 1


def request(document: Any, *headers: str, path: str = "/predict", body: bytes | None = None) -> bytes:
    content = json.dumps(document).encode() if body is None else body
    return post(path, content, *headers, "User-Agent: test")


def one(index: int) -> dict[str, Any]:
    return {"image": DIGITS[index].tolist()}


TWO = request({"images": DIGITS[:2].tolist()})
"""With `max_batch` 1, these images are a run of their own, on the thread."""


class Running:
    """A running service; `parsed` counts the requests that passed through uvicorn's parser."""

    def __init__(self, service: Service) -> None:
        certificate = service.certificate
        self.service = service
        self.parsed = 0
        self.clients: list[Connection] = []
        self.server = uvicorn.Server(
            uvicorn.Config(
                self,
                port=0,
                http=service.protocol(),
                ws="none",
                lifespan="on",
                log_level="warning",
                timeout_keep_alive=KEEP_ALIVE_S,
                ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.parsed += scope["type"] == "http"
        await self.service.app(scope, receive, send)

    @property
    def rejections(self) -> Rejections:
        return self.service.admission.rejections

    @property
    def endpoint(self) -> Endpoint:
        route = self.service.routes.find("/predict")
        assert route
        return route.endpoint

    async def connect(self, tls: ssl.SSLContext | None = None) -> Connection:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.clients.append(await Connection.to("127.0.0.1", port, tls))
        return self.clients[-1]


@asynccontextmanager
async def running(models: Path, grpc: str | None = None, **settings: Any) -> AsyncIterator[Running]:
    running = Running(build(Serve(models_dir=models, **settings), grpc_address=grpc))
    serving = asyncio.create_task(running.server.serve())
    await until(lambda: running.server.started)
    try:
        yield running
    finally:
        for client in running.clients:
            client.writer.close()
        running.server.should_exit = True
        await serving


Scenario = Callable[[Running], Coroutine[Any, Any, None]]
Run = Callable[..., None]


def run_with_server(models: Path, scenario: Scenario, **settings: Any) -> None:
    """Run a scenario with a service; no request may remain in flight."""

    async def within() -> None:
        async with running(models, **settings) as service, asyncio.timeout(20):
            await scenario(service)
        assert service.endpoint.metrics.in_flight == 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(within())


def hold_runs(session: Any) -> threading.Event:
    """Make every run wait for the event returned, which is set."""
    released = threading.Event()
    released.set()
    run = session.run

    def held(images: Any) -> Any:
        released.wait()
        return run(images)

    session.run = held
    return released


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Poll a condition of the server, which offers no event."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.005)
