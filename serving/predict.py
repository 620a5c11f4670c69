"""`POST /predict` and `POST /predict/{model}`: plain ASGI in front of FastAPI.

Routing, dependencies and validation by FastAPI cost more than a distilled student. So these two routes are
answered here, with everything a route needs: authentication, limits of size, time and number, metrics, one
error body. Every other path goes on to FastAPI; `serving.openapi` describes these two in its document.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.decode import Body, media_type
from serving.endpoint import ClientGoneError, Endpoint, Reply
from serving.errors import (
    BodyTooLarge,
    MethodNotAllowed,
    Overloaded,
    RequestError,
    SlowBody,
    TimedOut,
    Unauthorized,
    UnknownModel,
    UnsupportedMediaType,
    error_body,
)
from serving.metrics import count_unknown_model

PREFIX = "/predict"
CLIENT_GONE = 499  # nobody hears it; the metrics do

_logger = logging.getLogger("distillery")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a process grants to one request, and to all of them together."""

    max_body_bytes: int = 4 * 1024 * 1024
    max_in_flight: int = 1024
    max_held_bytes: int = 256 * 1024 * 1024
    """Of the bodies of all requests under way that came in more than one piece."""
    request_timeout: float = 5.0
    api_key: str | None = None


class Flight:
    """A request under way; whoever finds it late says so and cancels its task."""

    __slots__ = ("held_bytes", "late", "received", "started", "task")

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.received: float | None = None  # when its whole body was here
        self.held_bytes = 0
        self.late = False
        self.task = asyncio.current_task()


class PredictRoutes:
    """The ASGI application in front of FastAPI's."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds
        self._key = bounds.api_key.encode() if bounds.api_key else None
        self._endpoints: Mapping[str, Endpoint] = {}
        self._models = ""
        self._flights: dict[Flight, None] = {}  # oldest first
        self._held_bytes = 0

    def open(self, endpoints: Mapping[str, Endpoint], default: str) -> None:
        """Start answering for these models, by name."""
        self._endpoints = {f"{PREFIX}/{name}": endpoint for name, endpoint in endpoints.items()}
        self._endpoints |= {PREFIX: endpoints[default]}
        self._models = ", ".join(endpoints)

    def cancel_late(self) -> None:
        """End what has been under way for too long; called now and then, it spares each request a timer."""
        started_before = time.monotonic() - self._bounds.request_timeout
        for flight in self._flights:
            if flight.started > started_before:
                break
            if flight.task and not flight.late:
                flight.late = True
                flight.task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        endpoint = self._endpoints.get(path)
        if endpoint is None and not path.startswith(f"{PREFIX}/"):
            await self._app(scope, receive, send)
            return
        flight = Flight()
        self._flights[flight] = None
        if endpoint:
            endpoint.metrics.in_flight += 1
        status = CLIENT_GONE
        try:
            reply = await self._reply(flight, endpoint, scope, receive)
            await _send(send, reply)
            status = reply.status
        except ClientGoneError:
            pass
        finally:
            del self._flights[flight]
            self._held_bytes -= flight.held_bytes
            if endpoint:
                endpoint.metrics.in_flight -= 1
                seconds = time.monotonic() - flight.received if flight.received else None
                endpoint.metrics.answered(status, seconds=seconds)
            else:
                count_unknown_model(status)

    async def _reply(
        self, flight: Flight, endpoint: Endpoint | None, scope: Scope, receive: Receive
    ) -> Reply:
        try:
            kind, content_type = self._admit(scope)
            if endpoint is None:
                name = scope["path"][len(PREFIX) + 1 :][:80]
                raise UnknownModel(f"there is no model {name!r}; this service has {self._models}")
            content = await self._read(flight, receive)
            flight.received = received = time.monotonic()
            return await endpoint.answer(Body(kind, content_type, content), received, receive)
        except RequestError as error:
            return _refusal(error)
        except asyncio.CancelledError:
            if not flight.late or not flight.task:
                raise
            flight.task.uncancel()
            limit = f"within {self._bounds.request_timeout:g} s"
            if flight.received is None:
                return _refusal(SlowBody(f"the body was not here {limit}; send it faster"))
            return _refusal(TimedOut(f"the answer was not ready {limit}; try again"))
        except ClientGoneError:
            raise
        except Exception:  # the last resort: the client gets the documented body, the log the traceback
            _logger.exception("a prediction failed")
            return Reply(500, error_body("internal_error", "the service failed; its log says why"))

    def _admit(self, scope: Scope) -> tuple[bytes, bytes]:
        """Refuse what can be refused before the body is read; return its media type and `Content-Type`."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._key and not hmac.compare_digest(headers.get(b"x-api-key", b""), self._key):
            raise Unauthorized("the header X-API-Key is missing or wrong")
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"found {scope['method']}; predictions are asked for with POST")
        content_type = headers.get(b"content-type", b"")
        kind = media_type(content_type)
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedMediaType("the body has a Content-Encoding; send it as it is")
        self._check_length(int(headers.get(b"content-length", 0)))
        if len(self._flights) > self._bounds.max_in_flight:
            raise Overloaded(f"{self._bounds.max_in_flight} requests are under way; try again in a second")
        return kind, content_type

    async def _read(self, flight: Flight, receive: Receive) -> bytes:
        """Read the body, however it is cut into pieces."""
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]  # the usual case: it came in one piece
            self._check_length(len(body))
            return body
        pieces = bytearray()
        while message["type"] == "http.request":
            pieces += message["body"]
            self._check_length(len(pieces))
            self._held_bytes += len(pieces) - flight.held_bytes
            flight.held_bytes = len(pieces)
            if self._held_bytes > self._bounds.max_held_bytes:
                raise Overloaded("the bodies under way fill the memory set aside; try again in a second")
            if not message.get("more_body"):
                return bytes(pieces)
            message = await receive()
        raise ClientGoneError

    def _check_length(self, found: int) -> None:
        if found > self._bounds.max_body_bytes:
            raise BodyTooLarge(
                f"the body has {found:,} bytes or more; this service reads {self._bounds.max_body_bytes:,}"
            )


def _refusal(error: RequestError) -> Reply:
    return Reply(error.status, error_body(error.code, str(error)), error.headers)


async def _send(send: Send, reply: Reply) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(reply.content)),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.content})
