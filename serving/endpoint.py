"""One model's way from a request's body to its answer: decode, queue, run, encode."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from starlette.types import Receive

from serving.api import DigitAPI, Timing
from serving.batching import Prediction
from serving.decode import Body, decodes_quickly
from serving.errors import Header
from serving.executors import Executor
from serving.metrics import RequestMetrics


class Reply(NamedTuple):
    """What goes back to the client."""

    status: int
    content: bytes
    headers: Sequence[Header] = ()


class ClientGoneError(Exception):
    """The client hung up before its answer was ready."""


class Endpoint:
    """One model's way from a body to an answer."""

    def __init__(self, api: DigitAPI, executor: Executor, decoders: ThreadPoolExecutor) -> None:
        self.metrics = RequestMetrics(api.entry.name)
        self._api = api
        self._executor = executor
        self._decoders = decoders

    async def answer(self, body: Body, received: float, receive: Receive) -> Reply:
        """Classify the images of a body received at `received`. Raises `RequestError`, `ClientGoneError`."""
        if decodes_quickly(body):
            images = self._api.decode_request(body)
        else:
            loop = asyncio.get_running_loop()
            images = await loop.run_in_executor(self._decoders, self._api.decode_request, body)
        decoded = time.monotonic()
        future = self._executor.submit(images)
        if not self._executor.is_quick(len(images)):
            await _done_or_gone(future, receive)
        prediction = await future
        queue_seconds = prediction.started - decoded
        self.metrics.predicted(prediction.digits.tolist(), queue_seconds=queue_seconds)
        timing = Timing(
            decode_ms=_milliseconds(decoded - received),
            queue_ms=_milliseconds(queue_seconds),
            inference_ms=_milliseconds(prediction.finished - prediction.started),
            total_ms=_milliseconds(time.monotonic() - received),
        )
        content = self._api.encode_response(prediction, timing=timing)
        return Reply(200, content, ((b"server-timing", timing.header()),))


async def _done_or_gone(future: asyncio.Future[Prediction], receive: Receive) -> None:
    """Wait for an answer that takes a while; a client that hangs up takes its images out of the queue."""
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not future.done():
            future.cancel()
    if future.cancelled():
        raise ClientGoneError


def _milliseconds(seconds: float) -> float:
    """To the microsecond; `round` would take longer than all the rest of the timing."""
    return int(seconds * 1e6) / 1e3
