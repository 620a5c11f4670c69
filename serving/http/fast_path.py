"""The fast path: a repeated request is served without uvicorn's parser, a task or a coroutine.

The requests of a client have the same head, except for the length of the body, the request id and the trace context
(`VARIABLE`). The first one passes through
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
from serving.engine.request import Endpoint, InFlightRequest, check_backlog
from serving.engine.telemetry import correlation
from serving.engine.telemetry.correlation import NO_CORRELATION, REQUEST_ID, Correlation
from serving.http.connection import HttpConnection
from serving.http.prediction_routes import Route

LENGTH = b"content-length"
VARIABLE = {LENGTH: rb"[0-9]{1,9}", **correlation.PATTERNS}
"""The headers whose values may differ between requests with the same head, and the values that may."""
_FIELD = re.compile(
    rb"\r\n(?:%b)(?=\r\n)" % b"|".join(b"(?:%b: ?)(%b)" % header for header in VARIABLE.items()),
    re.IGNORECASE,
)
_VALID = [re.compile(pattern).fullmatch for pattern in VARIABLE.values()]
_MAX_VALUE = 513
_CLOSE = (b"connection", b"close")
_MAX_HEADS = 256
_MAX_SHARED_BYTES = 4096
_UNSUPPORTED = (b"expect", b"transfer-encoding")


class Template(NamedTuple):
    """The head of a request as bytes, cut at its variable values."""

    fields: tuple[tuple[bytes, int], ...]
    """What precedes each value, and the index of its header in `VARIABLE`."""
    after: bytes
    """What follows the last one."""

    @classmethod
    def of(cls, data: bytes, end: int) -> tuple[Self, dict[int, bytes]] | None:
        """Return the template of the head that ends at `end`, and its values; None with a header twice."""
        fields = []
        values: dict[int, bytes] = {}
        cut = 0
        for found in _FIELD.finditer(data, 0, end):
            header = (found.lastindex or 0) - 1
            start, stop = found.span(header + 1)
            fields.append((data[cut:start], header))
            values[header] = data[start:stop]
            cut = stop
        if len(values) != len(fields):
            return None
        return cls(tuple(fields), data[cut:end]), values

    def size(self) -> int:
        """Return the number of bytes that all requests with this head have in common."""
        return sum(len(before) for before, _ in self.fields) + len(self.after)


class RawHead(NamedTuple):
    """The head of a request, as a template and in parsed form."""

    template: Template
    places: tuple[int, int, int, int]
    """Of each variable header among the values found, in the order of `VARIABLE`; -1 for one that is missing."""
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
        template, values = Template.of(data, end) or (None, {})
        if template is None or 0 not in values or any(name in headers for name in _UNSUPPORTED):
            return None
        if len(data) - end != int(values[0]):
            return None
        names = tuple(VARIABLE)
        if any(headers.get(names[header]) != value for header, value in values.items() if header):
            return None  # another header of this name has an invalid value
        try:
            head = route.codec.check(headers, query)
        except RequestError:
            return None
        order = [header for _, header in template.fields]
        length, request_id, parent, state = (
            order.index(header) if header in order else -1 for header in range(len(VARIABLE))
        )
        return cls(template, (length, request_id, parent, state), head, route, response_headers, closes)

    def find_body(self, data: bytes) -> tuple[int, int, Correlation] | None:
        """Return where in `data` its body begins, its length, and what its head varies in; None for another head."""
        fields, after = self.template
        if len(fields) > 1:
            return self._find_body_of_varied(data)
        before = fields[0][0]
        if not data.startswith(before):
            return None
        start = len(before)
        stop = data.find(b"\r", start, start + 10)
        digits = data[start:stop]
        if not digits.isdigit() or not data.startswith(after, stop):
            return None
        return stop + len(after), int(digits), NO_CORRELATION

    def _find_body_of_varied(self, data: bytes) -> tuple[int, int, Correlation] | None:
        stop = 0
        values = []
        for before, header in self.template.fields:
            if not data.startswith(before, stop):
                return None
            start = stop + len(before)
            stop = data.find(b"\r", start, start + _MAX_VALUE)
            value = data[start : max(start, stop)]
            if not _VALID[header](value):
                return None
            values.append(value)
        after = self.template.after
        if not data.startswith(after, stop):
            return None
        values.append(b"")  # of a missing header
        length, request_id, parent, state = self.places
        found = Correlation(values[request_id], values[parent], values[state])
        return stop + len(after), int(values[length]), found

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body of `data` if it is exactly one request with this head, None otherwise."""
        start, length, _ = self.find_body(data) or (0, -1, None)
        return data[start:] if len(data) - start == length else None


class RawHeads:
    """The heads that the connections of a process have in common, the newest `_MAX_HEADS`."""

    def __init__(self) -> None:
        self._heads: dict[Template, RawHead] = {}

    def add(self, raw_head: RawHead) -> None:
        """Remember a head for other connections."""
        if raw_head.template.size() > _MAX_SHARED_BYTES:
            return
        if len(self._heads) >= _MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[raw_head.template] = raw_head

    def find(self, data: bytes) -> RawHead | None:
        """Return the head of `data`, if it is known."""
        end = data.find(b"\r\n\r\n", 0, 2 * _MAX_SHARED_BYTES) + 4
        found = Template.of(data, end) if end > 3 else None
        return self._heads.get(found[0]) if found else None


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

    def _serve(self, raw_head: RawHead, data: bytes, start: int, correlation: Correlation) -> None:
        head, length = raw_head.head, len(data) - start
        self._request = request = self._enter(raw_head, correlation)
        try:
            request.check(head.api_key, length)
            request.admit(head, length)
            request.begin(head, data[start:])  # not copied before: most of an overload is rejected
        except Exception as error:  # noqa: BLE001 - it becomes the reply
            request.set_exception(error)

    def _enter(
        self, raw_head: RawHead, correlation: Correlation, endpoint: Endpoint | None = None
    ) -> InFlightRequest:
        route = raw_head.route
        endpoint = endpoint or route.choose(raw_head.head.api_key, correlation.request_id)
        return InFlightRequest(self._admission, route.codec, endpoint, self._send, correlation)

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
        if not raw_head.route.is_open:  # the longer path has the error
            return False
        start, length, correlation = body
        missing = length - (len(data) - start)
        if missing == 0:
            self._serve(raw_head, data, start, correlation)
            return True
        if missing > 0 and self._reject_early(raw_head, length, correlation):
            self._unread = missing
            return True
        return False

    def _reject_early(self, raw_head: RawHead, length: int, correlation: Correlation) -> bool:
        """Reject a request whose body has not arrived yet, and which uvicorn would read first, if it is overloaded."""
        admission, head = self._admission, raw_head.head
        client = admission.access.client(head.api_key)
        endpoint = raw_head.route.choose(head.api_key, correlation.request_id)
        try:
            check_backlog(admission, endpoint, head, length, client)
        except Overloaded as error:
            self._request = request = self._enter(raw_head, correlation, endpoint)
            try:
                # An invalid key is the first error, as on the longer path.
                request.check(head.api_key, length)
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
        assert self._raw_head and self._request  # noqa: PT018, S101 - replaced only between requests
        headers = (*self.server_state.default_headers, *reply.headers, *self._raw_head.response_headers)
        length_and_id = b"content-length: %d\r\n%b: %b" % (len(reply.content), REQUEST_ID, self._request.id)
        parts = [STATUS_LINE[reply.status], length_and_id]
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
