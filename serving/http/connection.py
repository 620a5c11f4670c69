"""An HTTP connection: uvicorn's protocol, with limits for slow clients and without upgrades.

- A connection is closed when its client has been idle for `--keep-alive` seconds, or has taken longer than
  `--client-timeout` to send a head, or reads its response too slowly. (`serving.engine.request` limits slow bodies.)
- An offer to upgrade the protocol (`Upgrade: h2c` of Java's clients, WebSocket) is ignored: RFC 9110, section 7.8.
- A client that closes its sending side after a request (a half-closed connection) still gets its response.
- A head that cannot be parsed is answered like any other error, and only after the responses before it.

Nothing here costs time per request on the fast path: a timer of the connection is set when it begins to wait for its
client, and postponed only when it fires. Relies on internals of uvicorn's `HttpToolsProtocol`, listed in
`serving.http.fast_path`, and on its hook `_should_upgrade`.
"""

import asyncio
import socket
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.codecs.errors import error_body
from serving.engine.admission.admission import MIN_BYTES_PER_SECOND, Admission
from serving.engine.admission.pacing import STATE as PACING
from serving.engine.admission.pacing import Pacing
from serving.engine.telemetry.correlation import REQUEST_ID, new_request_id

MAX_HEAD_BYTES = 64 * 1024
"""Of a head that arrives in several pieces; a piece has 256 KiB at most."""
_PROBE_SECONDS = 0.1
_LINGER_SECONDS = 2.0


class _ResponseTransport(NamedTuple):
    """The part of a transport that a response of uvicorn uses, with our own `write` and `close`."""

    write: Callable[[bytes], None]
    is_closing: Callable[[], bool]
    close: Callable[[], None]


class HttpConnection(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with limits for slow clients and without upgrades."""

    def __init__(self, admission: Admission, **uvicorn: Any) -> None:
        """`uvicorn` are the arguments of its own protocol."""
        super().__init__(**uvicorn)
        self._admission = admission
        self.pacing = Pacing(admission.rejections)
        self.app_state = {**self.app_state, PACING: self.pacing}
        self._client_timeout = admission.limits.client_timeout
        self._within_head = self._within_message = False
        self._head_bytes = 0
        self._message_began = self._idle_since = 0.0
        self._closing = False  # with the next response
        self._is_last = False  # no further request is read
        self._cycle_before: Any = None  # of the request before a pipelined one
        self._probed = False
        self._probe_timer: TimerHandle | None = None
        self._reading_timer: TimerHandle | None = None

    def in_flight(self) -> bool:
        """Return whether a request waits for its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._response_transport = _ResponseTransport(self._write, transport.is_closing, self._end)
        self._idle_since = self.loop.time()
        self._await_client()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self.timeout_keep_alive_task, self._probe_timer, self._reading_timer):
            if timer:
                timer.cancel()
        del self._response_transport, self._cycle_before  # reference cycles, as is:
        if not self.in_flight():
            self.cycle = None  # type: ignore[assignment]

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._reject(400, "malformed_request", "the head or a chunk of the request is not valid HTTP/1.1")
            return
        if self._within_head:
            self._head_bytes = 0 if self._head_bytes < 0 else self._head_bytes + len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._reject(431, "head_too_large", f"the head has more than {MAX_HEAD_BYTES:,} bytes")
                return
        if not self.in_flight():
            self._await_client()

    def _parse(self, data: bytes) -> None:
        """Parse `data`, and any request with an upgrade offer once more without the offer."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_offer() + data[offer.args[0] :]
            else:
                return

    def _should_upgrade(self) -> bool:
        return True  # uvicorn then leaves the request to `_parse`

    def _head_without_offer(self) -> bytes:
        """Return the head just parsed, without the offer, for a new parser: the old one may be at its last request."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":  # an upgrade without an offer
            raise httptools.HttpParserError
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        self._within_message = self._within_head = True
        self._message_began = self.loop.time()
        self._head_bytes = -1  # the piece in which it begins does not count
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._within_head:  # trailers are no headers, and may not replace any (RFC 9110, section 6.5.1)
            super().on_header(name, value.rstrip(b" \t"))  # which is no part of it (section 5.5)

    def on_headers_complete(self) -> None:
        self._within_head = False
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self._cycle_before = before if self.pipeline else None
            self.cycle.transport = self._response_transport  # type: ignore[assignment]
            self.cycle.keep_alive = self.cycle.keep_alive and not self._closing

    def on_message_complete(self) -> None:
        self._within_message = False
        super().on_message_complete()

    def _reject(self, status: int, code: str, message: str) -> None:
        """Send an error in place of a response to the request being received, and close the connection.

        The responses to earlier requests are sent first, and the connection is then closed without the error; also if
        the response to this request has begun.
        """
        if self._within_message and not self._within_head:  # within its body
            if self.pipeline:
                self.pipeline.popleft()  # this request: it has not begun
                self.cycle = self._cycle_before
                self._is_last = True
                return
            if self.cycle.response_started:
                self._close()
                return
        elif self.in_flight():
            self._is_last = True
            return
        content, request_id = error_body(code, message), new_request_id()
        if log := self._admission.access_log:
            log.add(request_id, status, self.loop.time() - self._message_began, error=code)
        parts = [STATUS_LINE[status]]
        defaults = self.server_state.default_headers
        parts += (b"%b: %b\r\n" % header for header in defaults if header[0] != b"connection")
        parts.append(b"%b: %b\r\n" % (REQUEST_ID, request_id))
        parts.append(b"content-type: application/json\r\ncontent-length: %d\r\n" % len(content))
        parts += (b"connection: close\r\n\r\n", content)
        self.transport.write(b"".join(parts))
        if self.in_flight():  # its response is the one just sent
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        self._is_last = self._within_message = True
        self._finish()

    # Ending

    def shutdown(self) -> None:
        self.pacing.end_wait()
        super().shutdown()

    def close_after_response(self) -> None:
        """Close the connection with the next response, which says so."""
        self._closing = True

    def _write(self, data: bytes) -> None:
        """Send a part of a response; when a client leaves, uvicorn stops only the last of its pipelined requests."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def _end(self) -> None:
        """Close the connection after the response that uvicorn has just sent, or has failed to send."""
        if self.pipeline or not self.cycle.response_complete:
            self._close()
        else:
            self._is_last = True  # `on_response_complete` follows

    def _finish(self) -> None:
        """Close the connection; if a request is still being sent, after a while: a reset would discard the response."""
        if self._within_message and self.transport.can_write_eof():
            self.transport.write_eof()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
        else:
            self._close()

    def _close(self) -> None:
        """Close the connection as soon as its client has read the response."""
        self.transport.close()
        self._watch_reading()

    # Waiting for the client

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self.in_flight() or self.transport.is_closing():
            return
        if self._is_last:
            self._finish()
        elif self._within_message:
            self._await_client()  # earlier than uvicorn

    def _await_client(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(self._deadline(), self.timeout_keep_alive_handler)

    def _deadline(self) -> float:
        """Return when an idle client must have sent a request, or one that has begun must have completed it."""
        if self._within_message:
            return max(self._message_began, self._idle_since) + self._client_timeout
        return self._idle_since + self.timeout_keep_alive

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection of a silent client; uvicorn would cancel and set its timer for every request."""
        if self.transport.is_closing():
            return
        if self.in_flight():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.loop.time() < self._deadline():
            self._await_client()
        elif self._within_head:
            limit = f"{self._client_timeout:g} s"
            self._reject(408, "slow_head", f"the head of the request did not arrive within {limit}")
        else:
            self._close()

    # A client that reads too slowly

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_timer and not self.transport.is_closing():
            self._reading_timer.cancel()

    def _watch_reading(self, before: int = 0) -> None:
        """Abort the connection unless its client reads the buffered response, which does not grow, fast enough."""
        buffered = self.transport.get_write_buffer_size()
        if before and before - buffered < min(before, MIN_BYTES_PER_SECOND * self._client_timeout):
            self.transport.abort()
        elif buffered:
            if self._reading_timer:
                self._reading_timer.cancel()
            self._reading_timer = self.loop.call_later(self._client_timeout, self._watch_reading, buffered)

    # A client that has closed its sending side, or is gone

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn always closes the connection
        """Keep the connection open while a complete request waits for its response."""
        incomplete = self._within_message and not self._within_head
        if not self.in_flight() or incomplete or not self.transport.can_write_eof():
            self._watch_reading()
            return False
        self._is_last = True
        self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe)
        return True

    def _probe(self) -> None:
        """Detect a client that is gone, so that its request leaves the queue.

        Both kinds of client have sent the same. To an interim response, which HTTP/1.1 clients ignore, the kernel of
        one that is gone replies with a reset.
        """
        if not self.in_flight() or self.transport.is_closing():
            return
        if self._probed:
            connection = self.transport.get_extra_info("socket")
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.transport.abort()
                return
        elif self.can_interrupt():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._probed = True
        self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe)

    def can_interrupt(self) -> bool:
        """Return whether an interim response can be sent: over HTTP/1.1, before the next response has begun."""
        return self.scope["http_version"] == "1.1" and not self.pipeline and not self.cycle.response_started
