"""Answer a client's next request without a task, a coroutine or a second parse of its head.

The requests of one connection have the same head, but for the length of the body. So the first one goes the
whole way, through uvicorn's parser and the ASGI application, and its head is remembered. One that comes whole
and has the same head goes from the socket's data to the batch, and from the batch to the socket. Anything
else, however slightly different, goes the whole way again.

This relies on the inside of uvicorn's `HttpToolsProtocol`; tests/serving/http/test_fast_path.py says on what.
"""

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.codecs.base import Protocol, Query, Reply, Request
from serving.codecs.errors import InternalError, RequestError
from serving.engine.admission import CLIENT_GONE, Admission
from serving.engine.batching import Prediction
from serving.engine.endpoint import Endpoint
from serving.http.app import Front, Route

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_CHANGES_THE_WAY = (b"expect", b"transfer-encoding", b"upgrade")

_logger = logging.getLogger("distillery")


class Head(NamedTuple):
    """The head of a request whose next one will look the same, cut at the digits of its Content-Length."""

    before: bytes
    after: bytes
    headers: Mapping[bytes, bytes]
    route: Route

    @classmethod
    def of(cls, data: bytes, headers: Mapping[bytes, bytes], route: Route) -> Self | None:
        """Remember the head of a request that the parser has accepted, when it is a plain one."""
        end = data.find(b"\r\n\r\n") + 4
        lengths = list(_LENGTH.finditer(data, 0, end))
        if len(lengths) != 1 or any(name in headers for name in _CHANGES_THE_WAY):
            return None
        if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        start, stop = lengths[0].span(1)
        if len(data) - end != int(data[start:stop]):
            return None
        return cls(data[:start], data[stop:end], headers, route)

    def body_of(self, data: bytes) -> bytes | None:
        """The body of one whole request with this head; None for anything else."""
        if not data.startswith(self.before):
            return None
        start = len(self.before)
        stop = data.find(b"\r", start, start + 10)
        digits = data[start:stop]
        if not digits.isdigit() or not data.startswith(self.after, stop):
            return None
        body = data[stop + len(self.after) :]
        return body if len(body) == int(digits) else None


class Exchange:
    """A request under way, and its answer's way back. To a batcher it is what a future is."""

    __slots__ = ("_admission", "_connection", "_decoded", "_endpoint", "_protocol", "_query", "flight")

    def __init__(self, connection: "DirectProtocol", admission: Admission, route: Route) -> None:
        self._connection: DirectProtocol | None = connection
        self._admission = admission
        self._protocol: Protocol = route.protocol
        self._endpoint: Endpoint = route.endpoint
        self.flight = admission.begin(route.protocol, route.endpoint, self.cancel)

    def begin(self, request: Request) -> None:
        """Decode the request and queue its images, or refuse it."""
        try:
            self._admission.check(request.headers.get(b"x-api-key", b""), len(request.content))
            self.flight.received = time.monotonic()
            self._query: Query = self._endpoint.decode(self._protocol, request)
            self._decoded = time.monotonic()
            self._endpoint.submit(self._query.images, self)
        except RequestError as error:
            self._finish(self._protocol.refuse(error))
        except Exception as error:  # noqa: BLE001 - the last resort
            self.set_exception(error)

    def done(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._connection is None

    def set_result(self, prediction: Prediction) -> None:
        """Send the answer."""
        received = self.flight.received or self._decoded
        try:
            reply = self._endpoint.encode(self._protocol, self._query, prediction, received, self._decoded)
        except Exception as error:  # noqa: BLE001 - it must not reach those who share the batch
            self.set_exception(error)
        else:
            self._finish(reply)

    def set_exception(self, error: BaseException) -> None:
        """Send what `Admission.answer` would."""
        if isinstance(error, RequestError):
            self._finish(self._protocol.refuse(error))
            return
        _logger.error("a prediction failed", exc_info=error)
        self._finish(self._protocol.refuse(InternalError()))

    def cancel(self) -> None:
        """Refuse it for taking too long."""
        self._finish(self._protocol.refuse(self._admission.too_late(self.flight)))

    def abandon(self) -> None:
        """The client has hung up."""
        self._connection = None
        self._admission.end(self.flight, CLIENT_GONE)

    def _finish(self, reply: Reply) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.send(reply)
            self._admission.end(self.flight, reply.status)


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the short way beside it."""

    def __init__(self, front: Front, admission: Admission, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._front = front
        self._admission = admission
        self._head: Head | None = None
        self._exchange: Exchange | None = None
        self._within_message = False
        self._early = b""  # what came while an answer was under way
        self._ending = False
        self._idle_since = 0.0

    def data_received(self, data: bytes) -> None:
        if self._exchange:
            self._early += data
            self.flow.pause_reading()
            return
        between_messages = self._is_between_messages()
        if between_messages and self._head and (body := self._head.body_of(data)) is not None:
            request = Request(self._head.headers, body)
            if self._head.route.protocol.is_quick(request):
                self._exchange = Exchange(self, self._admission, self._head.route)
                self._exchange.begin(request)
                return
        super().data_received(data)
        if between_messages:
            self._remember(data)

    def on_message_begin(self) -> None:
        self._within_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._within_message = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange:
            self._exchange.abandon()
            self._exchange = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._exchange:
            self._ending = True
        else:
            super().shutdown()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """Close what is idle; uvicorn's own would be cancelled and set again at every request."""
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if self._exchange or left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(
                left if left > 0 else self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def send(self, reply: Reply) -> None:
        """Write the answer to the exchange under way."""
        parts = [STATUS_LINE[reply.status], b"content-length: %d" % len(reply.content)]
        parts += (b"\r\n%b: %b" % header for header in (*self.server_state.default_headers, *reply.headers))
        parts += (b"\r\n\r\n", reply.content)
        self.transport.write(b"".join(parts))
        self._exchange = None
        if self._ending:
            self.transport.close()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def _is_between_messages(self) -> bool:
        cycle = self.cycle
        return (
            not self._within_message
            and not self.flow.write_paused
            and (cycle is None or cycle.response_complete)
        )

    def _remember(self, data: bytes) -> None:
        """Keep the head of what was just begun, when it is one whole request for a route of ours."""
        if self._within_message or self.cycle is None or self.pipeline or self.scope["method"] != "POST":
            return
        route = self._front.route(self.scope["path"])
        if route is None or self.scope["http_version"] != "1.1":
            return
        headers = dict(self.scope["headers"])
        headers.pop(b"content-length", None)  # each request has its own
        try:
            route.protocol.check(headers)
        except RequestError:
            return
        self._head = Head.of(data, headers, route)
