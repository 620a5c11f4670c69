"""The fast path: a repeated request is served without uvicorn's parser, a task or a coroutine.

The requests of one connection have the same head, except for the length of the body. The first one passes
through uvicorn's parser and the ASGI application (`serving.http.app`), and its head is remembered. A later
request that arrives whole and has the same head is taken from the socket's data to the batch, and its reply from
the batch to the socket. Any other request, however small the difference, passes through uvicorn again.

`--no-fast-path` turns it off. It relies on these internals of uvicorn's `HttpToolsProtocol`, which is therefore
pinned; `tests/serving/http/test_fast_path.py` checks them:

    cycle, pipeline, scope          the state of the request being parsed
    on_message_begin, _complete     the parser's callbacks at the start and end of a request
    on_response_complete            called when the ASGI application has sent a response
    flow                            back pressure; `pause_reading`, `resume_reading`, `write_paused`
    timeout_keep_alive(_task, _handler)   closes idle connections
    server_state                    default headers and the number of requests
    shutdown                        called on every connection when the server stops
    STATUS_LINE                     the first line of a response by status
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.codecs.base import Head, Reply
from serving.codecs.errors import RequestError
from serving.engine.admission import Admission
from serving.engine.request import InFlightRequest
from serving.http.app import Route

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_CLOSE = (b"connection", b"close")
_UNSUPPORTED = (b"expect", b"transfer-encoding", b"upgrade")


class RawHead(NamedTuple):
    """The head of a request, as bytes cut at the digits of its Content-Length, and in parsed form."""

    before: bytes
    after: bytes
    head: Head
    route: Route

    @classmethod
    def of(cls, data: bytes, headers: Mapping[bytes, bytes], query: bytes, route: Route) -> Self | None:
        """Return the head of `data`, a request accepted by the parser; None if the fast path cannot serve it."""
        end = data.find(b"\r\n\r\n") + 4
        lengths = list(_LENGTH.finditer(data, 0, end))
        if len(lengths) != 1 or any(name in headers for name in _UNSUPPORTED):
            return None
        if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        start, stop = lengths[0].span(1)
        if len(data) - end != int(data[start:stop]):
            return None
        try:
            return cls(data[:start], data[stop:end], route.codec.check(headers, query), route)
        except RequestError:
            return None

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body of `data` if it is exactly one request with this head, None otherwise."""
        if not data.startswith(self.before):
            return None
        start = len(self.before)
        stop = data.find(b"\r", start, start + 10)
        digits = data[start:stop]
        if not digits.isdigit() or not data.startswith(self.after, stop):
            return None
        body = data[stop + len(self.after) :]
        return body if len(body) == int(digits) else None


class FastPathProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the fast path."""

    def __init__(self, find: Callable[[str], Route | None], admission: Admission, **uvicorn: Any) -> None:
        """Serve the routes that `find` returns for a path; `uvicorn` are the arguments of its own protocol."""
        super().__init__(**uvicorn)
        self._find = find
        self._admission = admission
        self._raw_head: RawHead | None = None
        self._request: InFlightRequest | None = None
        self._within_message = False
        self._early = b""  # received while a request is in flight
        self._closing = False
        self._idle_since = 0.0

    def data_received(self, data: bytes) -> None:
        if self._request:
            self._early += data
            self.flow.pause_reading()
            return
        between_messages = self._is_between_messages()
        if between_messages and self._raw_head and (body := self._raw_head.body_of(data)) is not None:
            self._serve(self._raw_head.head, self._raw_head.route, body)
            return
        super().data_received(data)
        if between_messages:
            self._remember(data)

    def _serve(self, head: Head, route: Route, body: bytes) -> None:
        self._request = request = InFlightRequest(self._admission, route.codec, route.endpoint, self._send)
        try:
            self._admission.check(head.api_key, len(body))
            request.begin(head, body)
        except Exception as error:  # noqa: BLE001 - it becomes the reply
            request.set_exception(error)

    def _send(self, reply: Reply) -> None:
        """Write the reply to the request in flight."""
        parts = [STATUS_LINE[reply.status], b"content-length: %d" % len(reply.content)]
        headers = (*self.server_state.default_headers, *reply.headers)
        if self._closing and _CLOSE not in headers:
            headers = (*headers, _CLOSE)
        parts += (b"\r\n%b: %b" % header for header in headers)
        parts += (b"\r\n\r\n", reply.content)
        self.transport.write(b"".join(parts))
        self._request = None
        if self._closing:
            self.transport.close()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def on_message_begin(self) -> None:
        self._within_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._within_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._request:
            self._request.abandon()
            self._request = None
        super().connection_lost(exc)

    def close_after_response(self) -> None:
        """Close the connection with the next response, which says so."""
        self._closing = True

    def shutdown(self) -> None:
        if self._request:
            self._closing = True
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; uvicorn's timer would have to be cancelled and set for every request."""
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if self._request or left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(
                left if left > 0 else self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def _is_between_messages(self) -> bool:
        cycle = self.cycle
        return (
            not self._within_message
            and not self.flow.write_paused
            and (cycle is None or cycle.response_complete)
        )

    def _remember(self, data: bytes) -> None:
        """Remember the head of the request just parsed, if it is complete and the fast path can serve the next one."""
        if self._within_message or self.cycle is None or self.pipeline or self.scope["method"] != "POST":
            return
        route = self._find(self.scope["path"])
        if route is None or self.scope["http_version"] != "1.1":
            return
        headers = dict(self.scope["headers"])
        if raw_head := RawHead.of(data, headers, self.scope["query_string"], route):
            self._raw_head = raw_head
