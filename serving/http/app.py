"""The routes that predict: plain ASGI in front of FastAPI.

Routing, dependencies and validation by FastAPI cost more than a distilled student. So these routes are
answered here, whatever their protocol. Every other path goes on to FastAPI; `serving.http.openapi` describes
these in its document.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.codecs.base import Protocol, Reply, Request
from serving.codecs.errors import MethodNotAllowed, RequestError
from serving.engine.admission import CLIENT_GONE, Admission, Flight
from serving.engine.endpoint import ClientGoneError, Endpoint


class Route(NamedTuple):
    """What answers a path."""

    protocol: Protocol
    endpoint: Endpoint


class Unserved(NamedTuple):
    """What answers the paths of a protocol that name no model of ours."""

    protocol: Protocol
    owns: Callable[[str], bool]
    explain: Callable[[str], RequestError]


class Front:
    """The ASGI application in front of FastAPI's."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission
        self._routes: Mapping[str, Route] = {}
        self._unserved: tuple[Unserved, ...] = ()

    def open(self, routes: Mapping[str, Route], *unserved: Unserved) -> None:
        """Start answering these paths."""
        self._routes = routes
        self._unserved = unserved

    def route(self, path: str) -> Route | None:
        """What answers `path`."""
        return self._routes.get(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if route := self._routes.get(path):
            flight = self._admission.begin(*route, _task().cancel)
            work = self._predict(flight, route.endpoint, scope, receive)
        elif unserved := next((one for one in self._unserved if one.owns(path)), None):
            flight = self._admission.begin(unserved.protocol, None, _task().cancel)
            work = self._explain(flight, unserved, scope)
        else:
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE
        try:
            reply = await self._admission.answer(flight, work)
            await _send(send, reply)
            status = reply.status
        except ClientGoneError:
            pass
        finally:
            self._admission.end(flight, status)

    async def _predict(self, flight: Flight, endpoint: Endpoint, scope: Scope, receive: Receive) -> Reply:
        headers = self._admit(flight, scope)
        content = await self._read(flight, receive)
        flight.received = received = time.monotonic()
        return await endpoint.answer(flight.protocol, Request(headers, content), received, receive)

    async def _explain(self, flight: Flight, unserved: Unserved, scope: Scope) -> Reply:
        self._admit(flight, scope)
        raise unserved.explain(scope["path"])

    def _admit(self, flight: Flight, scope: Scope) -> dict[bytes, bytes]:
        """Refuse what can be refused before the body is read; return the headers."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._admission.check(headers.get(b"x-api-key", b""), int(headers.get(b"content-length", 0)))
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"found {scope['method']}; predictions are asked for with POST")
        flight.protocol.check(headers)
        return headers

    async def _read(self, flight: Flight, receive: Receive) -> bytes:
        """Read the body, however it is cut into pieces."""
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]  # the usual case: it came in one piece
            self._admission.check_length(len(body))
            return body
        pieces = bytearray()
        while message["type"] == "http.request":
            pieces += message["body"]
            self._admission.hold(flight, len(pieces))
            if not message.get("more_body"):
                return bytes(pieces)
            message = await receive()
        raise ClientGoneError


async def _send(send: Send, reply: Reply) -> None:
    headers = [(b"content-length", b"%d" % len(reply.content)), *reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.content})


def _task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task  # noqa: S101 - uvicorn gives every request its own
    return task
