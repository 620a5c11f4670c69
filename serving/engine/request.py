"""One model's way from a request to its answer: decode, queue, run, encode. The same for every protocol."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serving.codecs.base import Protocol, Query, Reply, Request, Timing
from serving.engine.batching import Prediction, Waiter
from serving.engine.executors import Executor
from serving.engine.lit_api import DigitAPI
from serving.engine.recorder import RequestMetrics
from serving.model.session import Images

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
        loop = asyncio.get_running_loop()
        if protocol.is_quick(request):
            query = self.decode(protocol, request)
        else:
            query = await loop.run_in_executor(self._decoders, self.decode, protocol, request)
        decoded = time.monotonic()
        future: asyncio.Future[Prediction] = loop.create_future()
        self.submit(query.images, future)
        if not self._executor.is_quick(len(query.images)):
            await _done_or_gone(future, gone)
        return self.encode(protocol, query, await future, received, decoded)

    def decode(self, protocol: Protocol, request: Request) -> Query:
        """Raises `RequestError`."""
        return self._api.decode_request(request, protocol=protocol)

    def submit(self, images: Images, waiter: Waiter) -> None:
        """Queue the images; `waiter` gets their prediction."""
        self._executor.submit(images, waiter)

    def encode(
        self, protocol: Protocol, query: Query, prediction: Prediction, received: float, decoded: float
    ) -> Reply:
        """Write the answer to a request received and decoded at these times, and note what it took."""
        encoding = time.monotonic()
        decode_seconds = decoded - received
        queue_seconds = prediction.started - decoded
        inference_seconds = prediction.finished - prediction.started
        timing = Timing(
            decode_ms=_milliseconds(decode_seconds),
            queue_ms=_milliseconds(queue_seconds),
            inference_ms=_milliseconds(inference_seconds),
            total_ms=_milliseconds(encoding - received),
        )
        reply = self._api.encode_response(prediction, protocol=protocol, query=query, timing=timing)
        self.metrics.predicted(
            prediction.digits.tolist(),
            decode_seconds,
            queue_seconds,
            inference_seconds,
            encoding - prediction.finished,
            time.monotonic() - encoding,
        )
        return reply


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
