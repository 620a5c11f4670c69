"""Batch whatever has arrived: requests of one model become one run, without timers, threads or polling.

A request that is the first to wait schedules a flush for the next turn of the event loop. Every socket that was
ready in this turn is parsed before the flush runs, so under load a batch grows by itself, and an idle service
answers at once.

A run that is expected to take less than `LOOP_SECONDS` happens on the event loop itself: handing it to
another thread would cost more. A longer one happens away from it (`AwayBatcher`), and what arrives meanwhile
forms the next batch.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.model.session import Images, Scores

LOOP_SECONDS = 0.001
"""The longest run that the event loop is held up for."""


class Prediction(NamedTuple):
    """The answer to one request of N images, and when its run started and finished (`time.monotonic`)."""

    digits: NDArray[np.int64]  # [N]
    logits: Scores  # [N, 10]
    probabilities: Scores  # [N, 10]
    started: float
    finished: float


class Waiter(Protocol):
    """Who waits for a prediction: an `asyncio.Future`, or what answers like one."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, prediction: Prediction, /) -> None:
        """Take the prediction; must not raise."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take what went wrong; must not raise."""


class Waiting(NamedTuple):
    """A request waiting for its run."""

    images: Images
    waiter: Waiter


class Batcher(ABC):
    """The requests that wait for one model."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._waiting: deque[Waiting] = deque()
        self._scheduled = False
        self._loop = asyncio.get_running_loop()

    def submit(self, images: Images, waiter: Waiter) -> None:
        """Queue `uint8 [N, 28, 28]`; one whose waiter is done before its run leaves the queue uncomputed."""
        self._waiting.append(Waiting(images, waiter))
        if not self._scheduled:
            self._schedule()

    @abstractmethod
    def _flush(self) -> None:
        """Start the next run."""

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._flush)

    def _take(self) -> list[Waiting]:
        """The oldest requests that fit into one run; a request alone may be larger than that."""
        taken: list[Waiting] = []
        room = self._max_images
        while self._waiting:
            images, waiter = self._waiting[0]
            if not waiter.done():
                room -= len(images)
                if taken and room < 0:
                    break
                taken.append(self._waiting[0])
            self._waiting.popleft()
        return taken


def _deliver(taken: Sequence[Waiting], predictions: Sequence[Prediction]) -> None:
    for (_, waiter), prediction in zip(taken, predictions, strict=True):
        if not waiter.done():
            waiter.set_result(prediction)


def _fail(taken: Sequence[Waiting], error: BaseException) -> None:
    for _, waiter in taken:
        if not waiter.done():
            waiter.set_exception(error)


class LoopBatcher(Batcher):
    """Runs each batch on the event loop."""

    def __init__(self, run: Callable[[list[Images]], list[Prediction]], max_images: int) -> None:
        super().__init__(max_images)
        self._run = run

    def _flush(self) -> None:
        self._scheduled = False
        if taken := self._take():
            try:
                predictions = self._run([images for images, _ in taken])
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait, not to the event loop
                _fail(taken, error)
            else:
                _deliver(taken, predictions)
        if self._waiting and not self._scheduled:
            self._schedule()


class AwayBatcher(Batcher):
    """Runs batches elsewhere, at most `lanes` at once; what arrives meanwhile forms the next one."""

    def __init__(
        self, run: Callable[[list[Images]], asyncio.Future[list[Prediction]]], max_images: int, lanes: int = 1
    ) -> None:
        super().__init__(max_images)
        self._run = run
        self._lanes = lanes
        self._running: set[asyncio.Future[list[Prediction]]] = set()

    def _flush(self) -> None:
        self._scheduled = False
        while len(self._running) < self._lanes and (taken := self._take()):
            running = self._run([images for images, _ in taken])
            self._running.add(running)
            running.add_done_callback(partial(self._ran, taken))

    def _ran(self, taken: Sequence[Waiting], running: asyncio.Future[list[Prediction]]) -> None:
        self._running.discard(running)
        if running.cancelled():
            _fail(taken, ConnectionAbortedError("the service is ending"))
        elif error := running.exception():
            _fail(taken, error)
        else:
            _deliver(taken, running.result())
        self._flush()
