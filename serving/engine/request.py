"""A prediction request in flight: one life cycle for the fast path, ASGI and gRPC.

    InFlightRequest(…)  enters `Admission` and is counted as in flight
    admit               adds a complete body to the work in flight, or rejects it before it is looked at
    begin               decodes the body, on the event loop or a decoding thread, and submits its images
    set_result          called by the batcher: encodes the prediction and sends the reply
    set_exception       turns an error of any stage into the reply
    expire, abandon     end the request early: deadline passed, client gone

Every request ends exactly once and is counted with its status. It is driven by calls rather than by a coroutine,
because a task per request costs more than a small model; transports that have a task use `AwaitedRequest`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from serving.codecs.base import Codec, Head, Prediction, Query, Reply, Timing
from serving.codecs.errors import Header, InternalError, RequestError, SlowBody, TimedOut
from serving.engine.admission.admission import MIN_BYTES_PER_SECOND, Admission
from serving.engine.admission.backlog import BYTE_SECONDS, REQUEST_SECONDS
from serving.engine.decoding_threads import Decoders
from serving.engine.executors import Executor
from serving.engine.lit_api import DigitAPI
from serving.engine.metrics.recorder import QueueMetrics, RequestMetrics
from serving.engine.metrics.series import CLIENT_GONE, CLIENT_GONE_CODE
from serving.engine.telemetry.correlation import NO_CORRELATION, Correlation, new_request_id
from serving.engine.telemetry.record import Record, Result

_BYTES_PER_IMAGE = 1800
"""Of MNIST's digits as JSON: to guess the number of images before the body is decoded."""

_logger = logging.getLogger("distillery")


class ClientGoneError(Exception):
    """The client hung up before its request was complete."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A version of a model that serves requests in this process."""

    api: DigitAPI
    name: str
    version: str
    slot: str
    """Of its metrics."""
    executor: Executor
    decoders: Decoders
    metrics: RequestMetrics
    queue: QueueMetrics

    def work_of(self, length: int) -> float:
        """Return the expected seconds of work for a body of `length` bytes."""
        images = 1 + length // _BYTES_PER_IMAGE
        return REQUEST_SECONDS + length * BYTE_SECONDS + self.executor.seconds(images)


def check_backlog(
    admission: Admission, endpoint: Endpoint, head: Head, length: int, client: str | None
) -> None:
    """Check, before a body of `length` bytes is read, that its work can be done in time. Raises `Overloaded`."""
    work, timeout = endpoint.work_of(length), admission.timeout(head.timeout)
    admission.backlog.check(endpoint.name, work, timeout, client)


class InFlightRequest:
    """A request from its arrival to its reply; a batcher uses it like an `asyncio.Future`."""

    __slots__ = (
        "_admission",
        "_code",
        "_codec",
        "_deadline",
        "_decoded",
        "_endpoint",
        "_entered",
        "_expected",
        "_headers",
        "_metrics",
        "_query",
        "_received",
        "_result",
        "_send",
        "_work",
        "client",
        "correlation",
        "held_bytes",
        "id",
        "trace_id",
    )
    _endpoint: Endpoint
    _query: Query

    def __init__(
        self,
        admission: Admission,
        codec: Codec,
        endpoint: Endpoint | None,
        send: Callable[[Reply], object],
        correlation: Correlation = NO_CORRELATION,
    ) -> None:
        """Enter the request; `send` receives its reply. Without an `endpoint`, no served model is known yet."""
        self.client: str | None = None
        self.correlation = correlation
        self.id = correlation.request_id or new_request_id()
        """Of the response's header X-Request-ID."""
        self.held_bytes = 0
        self._admission = admission
        self._codec = codec
        self._metrics: RequestMetrics | None = None
        self._send: Callable[[Reply], object] | None = send
        self._entered = self._received = self._decoded = self._work = 0.0
        if admission.observers:
            self.trace_id = ""
            self._code: str | None = None
            self._result: Result | None = None
        self._headers: Sequence[Header] = ()
        admission.enter(self)
        if endpoint:
            self.assign(endpoint)

    def assign(self, endpoint: Endpoint) -> None:
        """Set the model of the request."""
        self._endpoint = endpoint
        self._metrics = endpoint.metrics
        self._metrics.in_flight += 1

    def check(self, key: bytes, length: int) -> None:
        """Check the API key and the declared length of the body. Raises `RequestError`."""
        self._headers = self._admission.check(self, key, length)

    def admit(self, head: Head, length: int) -> None:
        """Add a complete body of `length` bytes to the work in flight. Raises `Overloaded`."""
        self._received = time.monotonic()
        endpoint, admission = self._endpoint, self._admission
        timeout, work = admission.timeout(head.timeout), endpoint.work_of(length)
        self._deadline = self._received + timeout
        self._expected = admission.backlog.admit(endpoint.name, work, timeout, self.client)
        self._work = work

    def begin(self, head: Head, content: bytes) -> bool:
        """Decode a body that is admitted, and submit its images. Raises `RequestError`.

        Returns whether decoding and run both take place on the event loop, so that the reply is imminent.
        """
        if self._codec.decodes_inline(head, content):
            return self._submit(self._decode(head, content))
        self._endpoint.decoders.submit(partial(self._decode, head, content), self)
        return False

    def _decode(self, head: Head, content: bytes) -> Query:
        return self._endpoint.api.decode_request(content, codec=self._codec, head=head)

    def _submit(self, query: Query) -> bool:
        self._query = query
        self._decoded = time.monotonic()
        executor = self._endpoint.executor
        executor.submit(query.images, self)
        return executor.runs_inline(len(query.images))

    def submit_decoded(self, decoding: asyncio.Future[Query]) -> None:
        """Submit the images of a body that a thread has decoded."""
        if self.done():
            return
        try:
            self._submit(decoding.result())
        except Exception as error:  # noqa: BLE001 - it becomes the reply
            self.set_exception(error)

    def done(self) -> bool:
        """Return whether the request has ended."""
        return self._send is None

    def set_result(self, prediction: Prediction) -> None:
        """Encode the prediction and send the reply."""
        try:
            reply = self._encode(prediction)
        except Exception as error:  # noqa: BLE001 - it must not affect the other requests of the batch
            self.set_exception(error)
        else:
            self._finish(reply)

    def _encode(self, prediction: Prediction) -> Reply:
        """Encode the reply and record the time spent in each stage."""
        encoding = time.monotonic()
        decode_seconds = self._decoded - self._received
        queue_seconds = prediction.started - self._decoded
        inference_seconds = prediction.finished - prediction.started
        timing = Timing(
            decode_ms=_milliseconds(decode_seconds),
            queue_ms=_milliseconds(queue_seconds),
            inference_ms=_milliseconds(inference_seconds),
            total_ms=_milliseconds(encoding - self._received),
        )
        endpoint = self._endpoint
        query, prediction = self._codec.select(self._query, prediction)
        if self._admission.observers:
            images = len(prediction.digits)
            self._result = Result(images, prediction.started, prediction.finished, timing, encoding)
        if prediction.accepted is not None and (rejected := prediction.accepted.count(False)):
            endpoint.metrics.rejected(rejected)
        if prediction.escalated is not None and (escalated := prediction.escalated.count(True)):
            endpoint.metrics.escalated(escalated)
        if remember := self._admission.on_prediction:
            remember(self.id, self.client, endpoint, self._codec, query, prediction)
        reply = endpoint.api.encode_response(prediction, codec=self._codec, query=query, timing=timing)
        endpoint.metrics.predicted(
            prediction.digits,
            decode_seconds,
            queue_seconds,
            inference_seconds,
            encoding - prediction.finished,
            time.monotonic() - encoding,
        )
        return reply

    def set_exception(self, error: BaseException) -> None:
        """Send an error as the reply; anything but a `RequestError` is logged and becomes a status 500."""
        if not isinstance(error, RequestError):
            _logger.error("a prediction failed", exc_info=error)
            _release_frames(error)
            error = InternalError()
        _release_frames(error)
        if self._send:
            self._admission.rejected[error.code] += 1
        if self._admission.observers:
            self._code = error.code
        self._finish(self._codec.reject(error))

    def is_late(self, now: float) -> bool:
        """Return whether the prediction is not ready in time; the time begins when the body is complete."""
        return now >= self._deadline

    def expire(self) -> None:
        """End the request because its deadline has passed."""
        limit = self._deadline - self._received
        self.set_exception(TimedOut(f"the prediction was not ready within {limit:g} s; retry"))

    def abandon(self) -> None:
        """End the request because its client hung up; no effect on one that has ended."""
        if self._send:
            self._send = None
            self._admission.rejected[CLIENT_GONE_CODE] += 1
            if self._admission.observers:
                self._code = CLIENT_GONE_CODE
            self._end(CLIENT_GONE)

    def _finish(self, reply: Reply) -> None:
        send, self._send = self._send, None
        if send:
            if self._headers:
                reply = reply._replace(headers=(*reply.headers, *self._headers))
            send(reply)
            self._end(reply.status)

    def _end(self, status: int) -> None:
        ended = time.monotonic()
        self._admission.leave(self)
        if self.client:
            self._admission.shares.leave(self.client, self._work, self.held_bytes)
        for observer in self._admission.observers:
            observer.observe(self, status, ended)
        if self._metrics is None:
            self._admission.unknown_model[self._codec, status] += 1
            return
        self._metrics.in_flight -= 1
        seconds = ended - self._received if self._received else None
        if self._work:
            backlog = self._admission.backlog
            backlog.end(self._endpoint.name, self._work)
            if status == HTTPStatus.OK and seconds:
                backlog.observe(seconds, self._expected)
        self._metrics.answered(self._codec, status, seconds=seconds)

    def record(self, status: int, ended: float) -> Record:
        """Return the record of the request, which has just ended; for `Admission.observers`."""
        return Record(
            self.id,
            self.trace_id,
            self._codec,
            self._endpoint if self._metrics else None,
            self.client,
            status,
            self._code,
            self._result,
            self._entered or self._received or ended,
            self._received,
            self._decoded,
            ended,
        )


class AwaitedRequest(InFlightRequest):
    """A request of a transport that runs a task per request."""

    __slots__ = ("_expired", "_progress", "_progress_due", "_reply", "_task")

    def __init__(
        self,
        admission: Admission,
        codec: Codec,
        endpoint: Endpoint | None = None,
        correlation: Correlation = NO_CORRELATION,
    ) -> None:
        task = asyncio.current_task()
        assert task  # noqa: S101 - ASGI and gRPC run a task per request
        self._task = task
        self._reply: asyncio.Future[Reply] = task.get_loop().create_future()
        self._expired = False
        self._progress = 0
        super().__init__(admission, codec, endpoint, self._reply.set_result, correlation)
        self._entered = time.monotonic()
        self._progress_due = self._entered + admission.limits.client_timeout

    async def reply(
        self,
        receive: Awaitable[tuple[Head, bytes]],
        hang_up: Callable[[], Awaitable[Any]] | None = None,
    ) -> Reply | None:
        """Receive the request and await its reply; None if the client hangs up first.

        `hang_up` returns when the client has hung up; a transport that cancels the task instead needs none.
        """
        try:
            head, content = await receive
            self.admit(head, len(content))
            if not self.begin(head, content) and hang_up:
                await self._reply_or(hang_up)
            return await self._reply
        except ClientGoneError:
            return None
        except asyncio.CancelledError:
            if not self._expired:
                raise
            self._task.uncancel()
            self.set_exception(self._slow_body())
        except Exception as error:  # noqa: BLE001 - it becomes the reply
            self.set_exception(error)
        finally:
            self.abandon()
        return self._reply.result()

    def is_late(self, now: float) -> bool:
        """Return whether prediction or body is late: a body must make progress in every `client_timeout`."""
        if self._received:
            return super().is_late(now)
        if now < self._progress_due:
            return False
        limit = self._admission.limits.client_timeout
        if self.held_bytes - self._progress < limit * MIN_BYTES_PER_SECOND:
            return True
        self._progress = self.held_bytes
        self._progress_due = now + limit
        return False

    def expire(self) -> None:
        """End the request; while its body is received, by interrupting the task, which is cheaper than a timer."""
        if self._received:
            super().expire()
        elif not self._expired:
            self._expired = True
            self._task.cancel()

    def _slow_body(self) -> SlowBody:
        found = self.held_bytes - self._progress
        return SlowBody(
            f"{found:,} bytes of the body arrived within {self._admission.limits.client_timeout:g} s; "
            f"send it at {MIN_BYTES_PER_SECOND:,} bytes per second or faster"
        )

    async def _reply_or(self, hang_up: Callable[[], Awaitable[Any]]) -> None:
        """Wait for the reply or the client's hang-up, which takes the images out of the queue."""
        gone = asyncio.ensure_future(hang_up())
        try:
            await asyncio.wait((self._reply, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not self._reply.done():
            raise ClientGoneError


def _release_frames(error: BaseException) -> None:
    """Drop what an error refers to: frames that hold the body, and refer to the error in turn.

    Otherwise the bodies of rejected requests, of 16 MiB each, would stay in memory until the next garbage collection.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None


def _milliseconds(seconds: float) -> float:
    """Truncate to microseconds; `round` would take longer than the rest of the timing."""
    return int(seconds * 1e6) / 1e3
