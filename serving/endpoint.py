"""One model's way from a request to its answer: decode, queue, run, encode. The same for every protocol."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serving.api import DigitAPI
from serving.batching import Prediction
from serving.executors import Executor
from serving.metrics import RequestMetrics
from serving.protocol import Protocol, Reply, Request, Timing

Gone = Callable[[], Awaitable[Any]]
"""Awaits until the client has hung up: an ASGI `receive` once the body is here."""


class ClientGoneError(Exception):
    """The client hung up before its answer was ready."""


class Endpoint:
    """One model's way from a request to an answer."""

    def __init__(self, api: DigitAPI, executor: Executor, decoders: ThreadPoolExecutor) -> None:
        self.entry = api.entry
        self.metrics = RequestMetrics(api.entry.name)
        self._api = api
        self._executor = executor
        self._decoders = decoders

    async def answer(self, protocol: Protocol, request: Request, received: float, gone: Gone) -> Reply:
        """Classify the images of a request whose body was here at `received`.

        Raises `RequestError`, `ClientGoneError`.
        """
        if protocol.is_quick(request):
            query = self._api.decode_request(request, protocol=protocol)
        else:
            loop = asyncio.get_running_loop()
            query = await loop.run_in_executor(
                self._decoders, lambda: self._api.decode_request(request, protocol=protocol)
            )
        decoded = time.monotonic()
        future = self._executor.submit(query.images)
        if not self._executor.is_quick(len(query.images)):
            await _done_or_gone(future, gone)
        prediction = await future
        queue_seconds = prediction.started - decoded
        self.metrics.predicted(prediction.digits.tolist(), queue_seconds=queue_seconds)
        timing = Timing(
            decode_ms=_milliseconds(decoded - received),
            queue_ms=_milliseconds(queue_seconds),
            inference_ms=_milliseconds(prediction.finished - prediction.started),
            total_ms=_milliseconds(time.monotonic() - received),
        )
        return self._api.encode_response(prediction, protocol=protocol, query=query, timing=timing)


async def _done_or_gone(future: asyncio.Future[Prediction], gone: Gone) -> None:
    """Wait for an answer that takes a while; a client that hangs up takes its images out of the queue."""
    hung_up = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((future, hung_up), return_when=asyncio.FIRST_COMPLETED)
    finally:
        hung_up.cancel()
        if not future.done():
            future.cancel()
    if future.cancelled():
        raise ClientGoneError


def _milliseconds(seconds: float) -> float:
    """To the microsecond; `round` would take longer than all the rest of the timing."""
    return int(seconds * 1e6) / 1e3
