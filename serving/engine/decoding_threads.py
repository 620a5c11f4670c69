"""Threads that decode bodies which would take too long on the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from serving.codecs.base import Query
from serving.engine.admission.fairness import FairQueue


class Decoded(Protocol):
    """The receiver of a decoded body: an `InFlightRequest`."""

    client: str | None

    def done(self) -> bool:
        """Return whether the body is not needed any more."""

    def submit_decoded(self, decoding: asyncio.Future[Query]) -> None:
        """Receive the result, or the error."""


class Decoders:
    """Decodes as many bodies at a time as `pool` has threads; with `fair`, clients take turns."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int, *, fair: bool = False) -> None:
        self._pool = pool
        self._free = threads
        self._queue: deque[tuple[Callable[[], Query], Decoded]] | FairQueue = FairQueue() if fair else deque()
        self._loop = asyncio.get_running_loop()

    def submit(self, decode: Callable[[], Query], request: Decoded) -> None:
        """Queue a body; skipped if its request is done before a thread is free."""
        self._queue.append((decode, request))
        self._start()

    def _start(self) -> None:
        while self._free and self._queue:
            decode, request = self._queue.popleft()
            if not request.done():
                self._free -= 1
                decoding = self._loop.run_in_executor(self._pool, decode)
                decoding.add_done_callback(partial(self._finished, request))

    def _finished(self, request: Decoded, decoding: asyncio.Future[Query]) -> None:
        self._free += 1
        self._start()
        request.submit_decoded(decoding)
