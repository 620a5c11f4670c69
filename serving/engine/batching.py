"""Dynamic batching: requests that arrive together share one run of the model; no timers, no polling.

The first request in an empty queue schedules a flush for the next iteration of the event loop. All sockets that
are ready in this iteration are read before the flush, so batches grow under load and an idle service responds
immediately.

A run expected to take less than `MAX_INLINE_SECONDS` runs on the event loop itself (`InlineBatcher`), because
handing it to a thread would cost more. A longer one runs elsewhere (`OffloadBatcher`); requests that arrive in
the meantime form the next batch.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from serving.codecs.base import Prediction
from serving.engine.admission.fairness import FairQueue
from serving.model.tensors import Images

MAX_INLINE_SECONDS = 0.001
"""The longest run on the event loop."""


class Waiter(Protocol):
    """The receiver of a prediction: an `asyncio.Future`, or an `InFlightRequest` with the same methods."""

    def done(self) -> bool:
        """Return whether no prediction is expected any more."""

    def set_result(self, prediction: Prediction, /) -> None:
        """Receive the prediction; must not raise."""

    def set_exception(self, error: BaseException, /) -> None:
        """Receive the error of a failed run; must not raise."""


_Waiting = tuple[Images, Waiter]


class Batcher(ABC):
    """The queue of one model; a run has at most `max_images` images, unless a single request has more.

    With `fair`, clients take turns.
    """

    def __init__(self, max_images: int, *, fair: bool = False) -> None:
        self._max_images = max_images
        self._queue: deque[_Waiting] | FairQueue = FairQueue() if fair else deque()
        self._scheduled = False
        self._loop = asyncio.get_running_loop()

    def submit(self, images: Images, waiter: Waiter) -> None:
        """Queue `uint8 [N, 28, 28]`; skipped if its waiter is done before the run starts."""
        self._queue.append((images, waiter))
        if not self._scheduled:
            self._schedule()

    def queued(self) -> int:
        """Return the number of requests that wait for a run."""
        return len(self._queue)

    @abstractmethod
    def _flush(self) -> None:
        """Start the next run."""

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._flush)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = self._max_images
        while self._queue:
            images, waiter = self._queue[0]
            if not waiter.done():
                room -= len(images)
                if batch and room < 0:
                    break
                batch.append(self._queue[0])
            self._queue.popleft()
        return batch


def _deliver(batch: Sequence[_Waiting], predictions: Sequence[Prediction]) -> None:
    for (_, waiter), prediction in zip(batch, predictions, strict=True):
        if not waiter.done():
            waiter.set_result(prediction)


def _fail(batch: Sequence[_Waiting], error: BaseException) -> None:
    for _, waiter in batch:
        if not waiter.done():
            waiter.set_exception(error)


class InlineBatcher(Batcher):
    """Runs each batch on the event loop."""

    def __init__(
        self, run: Callable[[list[Images]], list[Prediction]], max_images: int, *, fair: bool = False
    ) -> None:
        super().__init__(max_images, fair=fair)
        self._run = run

    def _flush(self) -> None:
        self._scheduled = False
        if batch := self._next_batch():
            try:
                predictions = self._run([images for images, _ in batch])
            except Exception as error:  # noqa: BLE001 - delivered to the waiters, not to the event loop
                _fail(batch, error)
            else:
                _deliver(batch, predictions)
        if self._queue and not self._scheduled:
            self._schedule()


class OffloadBatcher(Batcher):
    """Runs batches outside the event loop, at most `concurrency` at a time."""

    def __init__(
        self,
        run: Callable[[list[Images]], asyncio.Future[list[Prediction]]],
        max_images: int,
        concurrency: int = 1,
        *,
        fair: bool = False,
    ) -> None:
        super().__init__(max_images, fair=fair)
        self._run = run
        self._concurrency = concurrency
        self._running: dict[asyncio.Future[list[Prediction]], float] = {}  # since when

    def longest_run(self) -> float:
        """Return the seconds since the oldest run began; 0 without one."""
        return self._loop.time() - min(self._running.values()) if self._running else 0.0

    def _flush(self) -> None:
        self._scheduled = False
        while len(self._running) < self._concurrency and (batch := self._next_batch()):
            running = self._run([images for images, _ in batch])
            self._running[running] = self._loop.time()
            running.add_done_callback(partial(self._finished, batch))

    def _finished(self, batch: Sequence[_Waiting], run: asyncio.Future[list[Prediction]]) -> None:
        del self._running[run]
        if run.cancelled():
            _fail(batch, ConnectionAbortedError("the service is shutting down"))
        elif error := run.exception():
            _fail(batch, error)
        else:
            _deliver(batch, run.result())
        self._flush()
