"""Where a model runs: in the API process itself, or in LitServe's worker processes.

Both take images and give a future; both drive the same `DigitAPI` hooks.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from serving.engine.batching import LOOP_SECONDS, AwayBatcher, LoopBatcher, Prediction, Waiter
from serving.engine.lit_api import DigitAPI, run_batch
from serving.model.session import Images

AskWorker = Callable[[DigitAPI, list[Images]], Coroutine[Any, Any, list[Prediction]]]


class Executor(Protocol):
    """What the route needs to know of an executor."""

    def submit(self, images: Images, waiter: Waiter) -> None:
        """Queue `uint8 [N, 28, 28]`."""

    def is_quick(self, images: int) -> bool:
        """Whether so many images are answered before anybody could hang up."""


class InProcess:
    """Runs the model in the API process: short runs on the event loop, longer ones on a thread."""

    def __init__(self, api: DigitAPI, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        most = api.settings.max_batch
        self._on_loop_images = min(most, api.session.images_within(LOOP_SECONDS))
        self._on_loop = LoopBatcher(partial(run_batch, api), self._on_loop_images)
        self._on_thread = AwayBatcher(
            lambda inputs: loop.run_in_executor(thread, run_batch, api, inputs), most
        )

    def submit(self, images: Images, waiter: Waiter) -> None:
        (self._on_loop if self.is_quick(len(images)) else self._on_thread).submit(images, waiter)

    def is_quick(self, images: int) -> bool:
        return images <= self._on_loop_images


class Workers:
    """Runs the model in LitServe's workers; `lanes` batches are under way at once."""

    def __init__(self, api: DigitAPI, ask: AskWorker, lanes: int) -> None:
        loop = asyncio.get_running_loop()
        self._batcher = AwayBatcher(
            lambda inputs: loop.create_task(ask(api, inputs)), api.settings.max_batch, lanes
        )
        self.submit = self._batcher.submit

    def is_quick(self, images: int) -> bool:  # noqa: ARG002 - the way to a worker is never quick
        return False
