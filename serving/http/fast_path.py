"""The fast path: a repeated request is served without uvicorn's parser, a task or a coroutine.

The requests of a client have the same head, except for the length of the body. The first one passes through
uvicorn's parser and the ASGI application (`serving.http.prediction_routes`), and its head is remembered, for all
connections of the process. A later request that arrives whole and has the same head is taken from the socket's data to
the batch, and its reply from the batch to the socket; one that would be late is rejected before its body has arrived.
Any other request, however small the difference, passes through uvicorn again.

`--no-fast-path` turns it off. It relies on these internals of uvicorn's `HttpToolsProtocol`, which is therefore
pinned; `serving.http.connection` relies on them too, and `tests/serving/http/fast_path/test_fast_path.py` checks them:

    cycle, pipeline, scope          the state of the request being parsed
    parser, url, headers            the parser, and what it has found
    on_message_begin, on_headers_complete, on_message_complete   the parser's callbacks
    on_response_complete            called when the ASGI application has sent a response
    flow                            back pressure; `pause_reading`, `resume_reading`, `write_paused`
    timeout_keep_alive(_task, _handler)   closes idle connections
    server_state                    default headers and the number of requests
    shutdown                        called on every connection when the server stops
    STATUS_LINE                     the first line of a response by status
"""

import re
from asyncio import TimerHandle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serving.codecs.base import Head, Reply
from serving.codecs.errors import Header, Overloaded, RequestError
from serving.engine.admission.admission import Admission
from serving.engine.request import InFlightRequest, check_backlog
from serving.http.connection import HttpConnection
from serving.http.prediction_routes import Route

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_CLOSE = (b"connection", b"close")
_MAX_HEADS = 256
_MAX_SHARED_BYTES = 4096
_UNSUPPORTED = (b"expect", b"transfer-encoding")


class RawHead(NamedTuple):
    """The head of a request, as bytes cut at the digits of its Content-Length, and in parsed form."""

    before: bytes
    after: bytes
    head: Head
    route: Route
    response_headers: Sequence[Header]
    """Of every response to such a request."""
    closes: bool
    """Whether the client will send no further request on the connection."""

    @classmethod
    def of(
        cls,
        data: bytes,
        headers: Mapping[bytes, bytes],
        query: bytes,
        route: Route,
        response_headers: Sequence[Header] = (),
        *,
        closes: bool = False,
    ) -> Self | None:
        """Return the head of `data`, a request accepted by the parser; None if the fast path cannot serve it."""
        end = data.find(b"\r\n\r\n") + 4
        lengths = list(_LENGTH.finditer(data, 0, end))
        if len(lengths) != 1 or any(name in headers for name in _UNSUPPORTED):
            return None
        start, stop = lengths[0].span(1)
        if len(data) - end != int(data[start:stop]):
            return None
        try:
            head = route.codec.check(headers, query)
        except RequestError:
            return None
        return cls(data[:start], data[stop:end], head, route, response_headers, closes)

    def find_body(self, data: bytes) -> tuple[int, int] | None:
        """Return where in `data` its body begins, and its length, if `data` has this head; None otherwise."""
        if not data.startswith(self.before):
            return None
        start = len(self.before)
        stop = data.find(b"\r", start, start + 10)
        digits = data[start:stop]
        if not digits.isdigit() or not data.startswith(self.after, stop):
            return None
        return stop + len(self.after), int(digits)

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body of `data` if it is exactly one request with this head, None otherwise."""
        start, length = self.find_body(data) or (0, -1)
        return data[start:] if len(data) - start == length else None


class RawHeads:
    """The heads that the connections of a process have in common, the newest `_MAX_HEADS`."""

    def __init__(self) -> None:
        self._heads: dict[tuple[bytes, bytes], RawHead] = {}

    def add(self, raw_head: RawHead) -> None:
        """Remember a head for other connections."""
        if len(raw_head.before) + len(raw_head.after) > _MAX_SHARED_BYTES:
            return
        if len(self._heads) >= _MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[raw_head.before, raw_head.after] = raw_head

    def find(self, data: bytes) -> RawHead | None:
        """Return the head of `data`, if it is known."""
        if length := _LENGTH.search(data, 0, _MAX_SHARED_BYTES):
            start, stop = length.span(1)
            return self._heads.get((data[:start], data[stop : data.find(b"\r\n\r\n", stop) + 4]))
        return None


class FastPathProtocol(HttpConnection):
    """An HTTP connection with the fast path."""

    def __init__(
        self,
        admission: Admission,
        find: Callable[[str], Route | None],
        response_headers: Callable[[Mapping[bytes, bytes]], Sequence[Header]],
        heads: RawHeads,
        **uvicorn: Any,
    ) -> None:
        """Serve the routes that `find` returns for a path.

        `response_headers` returns the headers that the ASGI application adds to any response to a request with the
        headers given; `heads` are those of the process, `uvicorn` are the arguments of its own protocol.
        """
        super().__init__(admission, **uvicorn)
        self._find = find
        self._heads = heads
        self._held: tuple[TimerHandle, Reply] | None = None
        self._admission = admission
        self._response_headers = response_headers
        self._raw_head: RawHead | None = None
        self._request: InFlightRequest | None = None
        self._early = b""  # received while a request is in flight
        self._unread = 0  # bytes still to come of the body of a request that was rejected for its head

    def in_flight(self) -> bool:
        return self._request is not None or super().in_flight()

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            return
        if self._unread:
            unread = self._unread
            self._unread = max(0, unread - len(data))
            data = data[unread:]
            if not data:
                return
        if self._request:
            self._early += data
            self.flow.pause_reading()
            return
        between_messages = self._is_between_messages()
        if between_messages and self._take(data):
            return
        super().data_received(data)
        if between_messages:
            self._remember(data)

    def _serve(self, raw_head: RawHead, data: bytes, start: int) -> None:
        head, route, length = raw_head.head, raw_head.route, len(data) - start
        self._request = request = InFlightRequest(self._admission, route.codec, route.endpoint, self._send)
        try:
            request.check(head.api_key, length)
            request.admit(head, length)
            request.begin(head, data[start:])  # not copied before: most of an overload is rejected
        except Exception as error:  # noqa: BLE001 - it becomes the reply
            request.set_exception(error)

    def _take(self, data: bytes) -> bool:
        """Serve `data` if its head is known, and its body complete or too much work; return whether it is served."""
        raw_head = self._raw_head
        body = raw_head.find_body(data) if raw_head else None
        if body is None:
            raw_head = self._heads.find(data)
            body = raw_head.find_body(data) if raw_head else None
            if body is None:
                return False
            self._raw_head = raw_head
        assert raw_head  # noqa: S101 - it has a body
        start, length = body
        missing = length - (len(data) - start)
        if missing == 0:
            self._serve(raw_head, data, start)
            return True
        if missing > 0 and self._reject_early(raw_head, length):
            self._unread = missing
            return True
        return False

    def _reject_early(self, raw_head: RawHead, length: int) -> bool:
        """Reject a request whose body has not arrived yet, and which uvicorn would read first, if it is overloaded."""
        admission, head, route = self._admission, raw_head.head, raw_head.route
        client = admission.access.client(head.api_key)
        try:
            check_backlog(admission, route.endpoint, head, length, client)
        except Overloaded as error:
            self._request = request = InFlightRequest(admission, route.codec, route.endpoint, self._send)
            try:
                request.check(
                    head.api_key, length
                )  # an invalid key is the first error, as on the longer path
                request.set_exception(error)
            except RequestError as other:
                request.set_exception(other)
            return True
        return False

    def _send(self, reply: Reply) -> None:
        """Write the reply to the request in flight; a rejection maybe later."""
        if reply.status == Overloaded.status and (delay := self.pacing.hold()):
            self._held = self.loop.call_later(delay, self._release, reply), reply
        else:
            self._write_reply(reply)

    def _release(self, reply: Reply) -> None:
        self._held = None
        self.pacing.release()
        self._write_reply(reply)

    def _write_reply(self, reply: Reply) -> None:
        assert self._raw_head  # noqa: S101 - it is replaced only between requests
        headers = (*self.server_state.default_headers, *reply.headers, *self._raw_head.response_headers)
        parts = [STATUS_LINE[reply.status], b"content-length: %d" % len(reply.content)]
        if (self._closing or self._raw_head.closes) and _CLOSE not in headers:
            headers = (*headers, _CLOSE)
        parts += (b"\r\n%b: %b" % header for header in headers)
        parts += (b"\r\n\r\n", reply.content)
        self.transport.write(b"".join(parts))
        self._request = None
        if self._is_last or _CLOSE in headers:
            self._is_last = True
            self._within_message = self._unread > 0
            self._finish()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._held:
            self._held[0].cancel()
            self.pacing.release()
        if self._request:
            self._request.abandon()
            self._request = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._request:
            self._closing = True
            if self._held:
                timer, reply = self._held
                timer.cancel()
                self._release(reply)
        else:
            super().shutdown()

    def can_interrupt(self) -> bool:
        return self._request is not None or super().can_interrupt()

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
        if route is None or self.scope["http_version"] != "1.1" or self._closing:
            return
        headers = dict(self.scope["headers"])
        response_headers = self._response_headers(headers)
        closes = not self.cycle.keep_alive
        query = self.scope["query_string"]
        if raw_head := RawHead.of(data, headers, query, route, response_headers, closes=closes):
            self._raw_head = raw_head
            self._heads.add(raw_head)
