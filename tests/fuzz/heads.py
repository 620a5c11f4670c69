"""Fuzz target of HTTP: arbitrary bytes, cut at arbitrary places, to the fast path.

An input is a line whose bytes are the lengths of the pieces, and the stream of bytes that a client sends. The
connection is real but for its transport. Its responses must be

- those of the connection without the fast path, which receives the stream in one piece;
- one by one, those to the requests that h11, an independent parser, finds in the stream, each sent alone.

The second condition is what request smuggling breaks: the service sees other requests than a proxy before it.
"""

import asyncio
import logging
import random
import re
from collections.abc import Callable
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from serving.codecs.base import Query, Reply
from serving.engine.admission.admission import Admission, AdmissionLimits
from serving.engine.decoding_threads import Decoded
from serving.engine.metrics.recorder import QueueMetrics, RequestMetrics
from serving.engine.metrics.series import Metrics, metrics_table
from serving.engine.models import Deployment, ServedModels
from serving.engine.request import Endpoint
from serving.http.connection import HttpConnection
from serving.http.fast_path import FastPathProtocol, RawHead, RawHeads, Template
from serving.http.prediction_routes import PredictionRoutes
from serving.model.release import Release
from serving.model.repository import ModelEntry
from serving.model.versions import Snapshot
from tests.fuzz.bodies import LIMITS, MANIFEST, predict
from tests.fuzz.target import Mutation, Target

_RESPONSE = re.compile(rb"HTTP/1\.1 (?=[1-5][0-9][0-9] [A-Z])")
_TIMING = re.compile(
    rb'\r\nserver-timing: [^\r]*|\r\nx-request-id: [0-9a-f]{32}(?=\r)|\r\ncontent-length: [0-9]+|,"timing":\{[^}]*\}'
)
_MALFORMED = b'"code":"malformed_request"'
_INTERIM = b"100 Continue"


class Transport(asyncio.Transport):
    """The server's end of a connection, as far as the protocol uses it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.sent = bytearray()
        self.paused = self.ended = self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert not self.ended
        self.sent += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0


class Immediately:
    """Decodes at once what `serving.engine.decoding_threads` gives to a thread."""

    def submit(self, decode: Callable[[], Query], request: Decoded) -> None:
        decoding = asyncio.get_running_loop().create_future()
        try:
            decoding.set_result(decode())
        except Exception as error:  # noqa: BLE001 - the request's
            decoding.set_exception(error)
        request.submit_decoded(decoding)


class Hooks:
    """The part of `DigitAPI` and of an executor that requests use, with a model that depends on the pixels."""

    def decode_request(self, content: bytes, *, codec: Any, head: Any) -> Any:
        return codec.decode(head, content, LIMITS)

    def encode_response(self, prediction: Any, *, codec: Any, query: Any, timing: Any) -> Reply:
        return codec.encode(MANIFEST, query, prediction, timing)

    def submit(self, images: Any, waiter: Any) -> None:
        asyncio.get_running_loop().call_soon(waiter.set_result, predict(images))

    def seconds(self, count: int) -> float:
        return count * 1e-6

    def longest_run(self) -> float:
        return 0.0

    def runs_inline(self, count: int) -> bool:
        return count == 1

    @property
    def entry(self) -> Any:
        return self

    manifest = MANIFEST


async def other(scope: Scope, receive: Receive, send: Send) -> None:
    """The application behind the prediction routes: repeats method, path and body."""
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            return
        body, more = body + event["body"], event["more_body"]
    content = b"%s %s %s" % (
        scope["method"].encode(),
        scope["path"].encode("utf-8", "replace"),
        body.hex().encode(),
    )
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Errors(logging.Handler):
    """Collects what the service logs as an internal error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


class Counting(HttpConnection):
    """A connection that counts complete requests."""

    completed = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.parser.should_upgrade():  # parsed once more, without the offer
            self.completed += 1


class Site:
    """A service without sockets."""

    def __init__(self) -> None:
        self.errors = Errors()
        for name in ("distillery", "uvicorn.error", "asyncio"):
            logging.getLogger(name).addHandler(self.errors)
            logging.getLogger(name).propagate = False
        self.loop = asyncio.new_event_loop()
        self.admission = Admission(AdmissionLimits(max_body_bytes=LIMITS.max_body_bytes))
        metrics = Metrics(
            metrics_table(1, ("rest", "v2", "grpc"), ("/predict", "/read", "/v2/models/{model}/infer"), 64),
            1,
        )
        self.metrics = RequestMetrics(metrics.row(0), "0")
        hooks: Any = Hooks()
        version = MANIFEST.name, MANIFEST.version
        queue = QueueMetrics(metrics.row(0), "0", lambda: 0)
        endpoint = Endpoint(hooks, *version, "0", hooks, Immediately(), self.metrics, queue)  # type: ignore[arg-type]
        entry = ModelEntry(manifest=MANIFEST, path=Path("model.onnx"))
        snapshot = Snapshot({MANIFEST.name: {MANIFEST.version: entry}})
        deployment = Deployment(0, snapshot, {version: "0"}, Release(stable=MANIFEST.name))
        models = ServedModels(deployment)
        models.exchange(deployment, {version: endpoint})
        self.routes = PredictionRoutes(other, self.admission, models)
        self.routes.open()
        self.uvicorn = {
            "config": Config(self.routes, ws="none", log_config=None, lifespan="off"),
            "server_state": ServerState(),
            "app_state": {},
            "_loop": self.loop,
        }
        self.uvicorn["config"].load()  # type: ignore[attr-defined]
        self.known: dict[Template, RawHead] = {}
        self._alone: dict[bytes, list[bytes]] = {}

    def connection(self, *, fast_path: bool) -> HttpConnection:
        """Return a new connection; with the fast path it knows the heads of earlier requests."""
        if not fast_path:
            return HttpConnection(self.admission, **self.uvicorn)
        heads = RawHeads()
        heads._heads = dict(self.known)
        return FastPathProtocol(self.admission, self.routes.find, lambda _: (), heads, **self.uvicorn)

    def learn(self, *requests: bytes) -> None:
        """Let all later connections know the heads of these requests."""
        for request in requests:
            connection = self.connection(fast_path=True)
            self.exchange(connection, [request])
            self.known |= connection._heads._heads  # type: ignore[attr-defined]

    def exchange(self, connection: HttpConnection, pieces: list[bytes]) -> list[bytes]:
        """Send pieces and the end of the stream; return the responses, without what differs from run to run."""
        transport = Transport()
        self.loop.call_soon(connection.connection_made, transport)
        self.settle()
        for piece in pieces:
            if transport.closed:
                break
            assert not transport.paused, "reading is paused, and no request is in flight"
            self.loop.call_soon(connection.data_received, piece)
            self.settle()
        if not transport.closed:
            self.loop.call_soon(connection.eof_received)
            self.settle()
        self.loop.call_soon(connection.connection_lost, None)
        self.settle()
        assert not self.admission._in_flight
        assert self.metrics.in_flight == 0
        assert not self.errors.messages, self.errors.messages
        return [
            _TIMING.sub(b"", one)
            for one in _RESPONSE.split(bytes(transport.sent))[1:]
            if not one.startswith(_INTERIM)
        ]

    def alone(self, request: bytes) -> list[bytes]:
        """Return the response to a request on a connection of its own."""
        if request not in self._alone:
            if len(self._alone) > 1000:
                self._alone.clear()
            self._alone[request] = self.exchange(self.connection(fast_path=False), [request])
        return self._alone[request]

    def settle(self) -> None:
        """Run the event loop until nothing is left to do but to wait; exceptions of callbacks are logged."""
        turns = 1000

        def turn() -> None:
            nonlocal turns
            turns -= 1
            if turns and self.loop._ready:  # type: ignore[attr-defined]
                self.loop.call_soon(turn)
            else:
                self.loop.stop()

        self.loop.call_soon(turn)
        self.loop.run_forever()
        assert turns, "the connection does not come to rest"


@cache
def site() -> Site:
    """Return the service, which knows the heads of the seeds."""
    one = Site()
    one.learn(*REQUESTS)
    return one


def post(*headers: bytes, body: bytes, path: bytes = b"/predict") -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join((b"POST %b HTTP/1.1" % path, b"Host: x", *headers, length, b"", b"")) + body


RAW = b"Content-Type: application/octet-stream"
PIXELS = bytes(range(256)) * 3 + bytes(16)
REQUESTS = (
    post(RAW, body=PIXELS),
    post(RAW, body=b"1234567"),
    post(b"content-type: application/json", b"Accept: */*", body=b'{"image":[0]}', path=b"/predict/student"),
    post(b"Inference-Header-Content-Length: 0", body=PIXELS, path=b"/v2/models/student/infer"),
    post(
        RAW,
        b"X-Request-ID: 1",
        b"traceparent: 00-%032x-%016x-01" % (1, 1),
        b"tracestate: a=b, c",
        body=b"1234567",
    ),
)


def seeds() -> list[bytes]:
    """Return streams of requests: repeated, pipelined, chunked, ambiguous, and each in one and several pieces."""
    chunks = b"7\r\n1234567\r\n0\r\n\r\n"
    chunked = (
        post(RAW, b"Transfer-Encoding: chunked", body=b"").replace(b"Content-Length: 0\r\n", b"") + chunks
    )
    get = b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n"
    streams = [
        *(request * 2 + get for request in REQUESTS),
        REQUESTS[4]
        + REQUESTS[4].replace(b"ID: 1", b"ID: abc")
        + REQUESTS[4].replace(b"ID: 1", b"ID: a b")
        + get,
        REQUESTS[4] + REQUESTS[4].replace(b"ID: 1", b"ID: 1\r\nX-Request-ID: 2") + get,
        b"".join(REQUESTS),
        REQUESTS[1] + chunked + REQUESTS[1] + get,
        chunked * 2 + get,
        chunked[:-2] + b"Content-Encoding: br\r\n\r\n" + get,  # a trailer is no header
        post(RAW, body=REQUESTS[1]) + REQUESTS[1],
        REQUESTS[1][:-3],
        REQUESTS[1].replace(b"Length: 7", b"Length: 007") * 2,
        REQUESTS[1].replace(b"Length: 7", b"Length: 7, 7") + get,
        REQUESTS[1].replace(b"Length: 7", b"Length: +7") + get,
        REQUESTS[1].replace(b"Host: x", b"Host: x\r\nContent-Length: 6") + get,
        REQUESTS[1].replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked") + get,
        REQUESTS[1].replace(b"Host: x", b"Host: x\r\nConnection: close") + get,
        REQUESTS[1].replace(b"Host: x", b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c") * 2 + get,
        REQUESTS[1].replace(b"Host: x", b"Host: x\r\nExpect: 100-continue") * 2 + get,
        chunked.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue").replace(b"7\r\n", b"7\r\n1", 1),
        REQUESTS[1].replace(b"\r\n", b"\n") + get,
        REQUESTS[1].replace(b"Host: x\r\n", b"Host: x\r\n y\r\n") + get,
        REQUESTS[1].replace(b"HTTP/1.1", b"HTTP/1.0") + get,
        REQUESTS[3].replace(b"Length: 0", b"Length: 0 \t") * 2
        + get,  # whitespace at the end is no part of a value
        REQUESTS[1]
        + chunked.replace(b"7\r\n", b"7\r\n1", 1)
        + get,  # the body of a pipelined request is malformed
        get.replace(b"GET", b"HEAD") + get + b"\r\n" + get,
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n" + get,
    ]
    return [
        cuts + b"\n" + stream
        for stream in streams
        for cuts in (b"", b"\x10", b"\x01\x05\x20\x30", b"\x50\x50\x50")
    ]


def pieces_of(cuts: bytes, stream: bytes) -> list[bytes]:
    """Cut a stream: each byte n of `cuts` is a piece of n²/16 bytes, so that short and long ones are likely."""
    ends = accumulate(max(1, cut * cut // 16) for cut in cuts)
    places = [0, *(end for end in ends if end < len(stream)), len(stream)]
    return [stream[start:end] for start, end in pairwise(places) if end > start]


def exchange(data: bytes) -> None:
    """Compare the three ways to read a stream."""
    cuts, _, stream = data.partition(b"\n")
    if b"x-request-timeout" in stream.lower():  # the response depends on time
        return
    connection = Counting(site().admission, **site().uvicorn)
    whole = site().exchange(connection, [stream])
    cut = site().exchange(site().connection(fast_path=True), pieces_of(cuts[:16], stream))
    # An error that ends the connection is sent in place of a response only if none is on its way, and a request may be
    # rejected for its head before its body turns out to be malformed or incomplete.
    answered = max(connection.completed, min(len(_valid(whole)), len(_valid(cut))))
    assert _valid(whole)[:answered] == _valid(cut)[:answered], (whole, cut)
    for index, (request, response) in enumerate(zip(_requests(stream), _valid(whole), strict=False)):
        [alone] = site().alone(request)
        assert _without_end(alone) == _without_end(response), (index, request, alone, response)


def _valid(responses: list[bytes]) -> list[bytes]:
    for index, response in enumerate(responses):
        if _MALFORMED in response:
            assert index == len(responses) - 1, "a response follows an error that ends the connection"
            return responses[:-1]
    return responses


def _without_end(response: bytes) -> bytes:
    return response.replace(b"\r\nconnection: close", b"")


def _requests(stream: bytes) -> list[bytes]:
    """Return the requests that h11 finds, as far as it accepts the stream, each in a plain form."""
    found = []
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(stream)
    try:
        while isinstance(event := parser.next_event(), h11.Request):
            head, body = event, b""
            while isinstance(event := parser.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                break
            found.append(_plain(head, body))
            parser.send(h11.Response(status_code=400, headers=[(b"Content-Length", b"0")]))
            parser.send(h11.EndOfMessage())
            if parser.our_state is not h11.DONE:
                break
            parser.start_next_cycle()
    except h11.RemoteProtocolError:
        pass
    return found


def _plain(head: h11.Request, body: bytes) -> bytes:
    left_out = {b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection"}
    lines = [b"%b %b HTTP/%b" % (head.method, head.target, head.http_version)]
    lines += [b"%b: %b" % header for header in head.headers if header[0] not in left_out]
    if body or head.method not in {b"GET", b"HEAD"}:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", b"")) + body


WORDS = (
    *(
        b"Content-Length: 7",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
        b"Connection: keep-alive, Upgrade",
        b"X-Request-ID: 2",
        b"traceparent: 00-",
    ),
    *(
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b"HTTP/1.0",
        b"\r\n\r\n",
        b"\r\n ",
        b"\n",
        b"\r",
        b"\x00",
        b"\t",
    ),
    *(
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"OPTIONS * ",
        b"CONNECT ",
        b"0\r\n\r\n",
        b"7\r\n",
        b";a=b\r\n",
        b"Trailer: a",
    ),
    *(b"/predict", b"/read", b"%2f", b"//", b"http://x/predict", b"X-API-Key: a", b"Content-Encoding: gzip"),
)


def mutate(data: bytes, max_size: int, choices: random.Random, mutation: Mutation) -> bytes:
    """Mutate bytes, cut elsewhere, or add a line, a word or another request, so that much of a stream stays valid."""
    cuts, _, stream = data.partition(b"\n")
    lines = stream.split(b"\r\n")
    place = choices.randrange(len(lines))
    match choices.randrange(6):
        case 0:
            return mutation(data, max_size)
        case 1:
            cuts = choices.randbytes(choices.randrange(6)).replace(b"\n", b"")
        case 2:
            lines.insert(place, choices.choice(WORDS))
        case 3:
            lines[place] += choices.choice(WORDS)
        case 4:
            lines[place] = mutation(lines[place], len(lines[place]) + 8)
        case 5:
            stream += choices.choice(REQUESTS)
            lines = stream.split(b"\r\n")
    return (cuts + b"\n" + b"\r\n".join(lines))[:max_size]


TARGETS = (Target("http", seeds, exchange, WORDS, mutate),)
