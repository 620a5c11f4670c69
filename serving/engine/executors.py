"""Where a model runs: in the API process, or in LitServe's worker processes.

Both executors take images from the requests in flight and call the same `DigitAPI` hooks.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from serving.codecs.base import Prediction
from serving.engine.batching import MAX_INLINE_SECONDS, InlineBatcher, OffloadBatcher, Waiter
from serving.engine.lit_api import DigitAPI, run_batch
from serving.model.tensors import Images

_WORKER_IMAGE_SECONDS = 1e-4
"""Of a model in another process: a guess, which `serving.engine.admission.backlog` corrects."""

WorkerCall = Callable[[DigitAPI, list[Images]], Coroutine[Any, Any, list[Prediction]]]
"""Runs one batch in a worker process: `DigitServer.run_in_worker`."""


class Executor(Protocol):
    """Runs one model."""

    def submit(self, images: Images, waiter: Waiter) -> None:
        """Queue `uint8 [N, 28, 28]`; `waiter` receives the prediction."""

    def seconds(self, count: int) -> float:
        """Return the expected duration of a run of `count` images."""

    def longest_run(self) -> float:
        """Return the seconds since the oldest run outside the event loop began; 0 without one."""

    def queued(self) -> int:
        """Return the number of requests that wait for a run."""

    def runs_inline(self, count: int) -> bool:
        """Return whether a request of `count` images runs on the event loop, too briefly for a hang-up."""


class InProcess:
    """Runs the model in the API process: short runs on the event loop, longer ones on a thread."""

    def __init__(self, api: DigitAPI, thread: ThreadPoolExecutor, *, fair: bool) -> None:
        loop = asyncio.get_running_loop()
        max_batch = api.settings.max_batch
        self._run_seconds, self._image_seconds = api.session.run_times
        self._max_inline = min(max_batch, api.session.images_within(MAX_INLINE_SECONDS))
        self._inline = InlineBatcher(partial(run_batch, api), self._max_inline, fair=fair)
        self._offload = OffloadBatcher(
            lambda inputs: loop.run_in_executor(thread, run_batch, api, inputs), max_batch, fair=fair
        )

    def seconds(self, count: int) -> float:
        return self._run_seconds + count * self._image_seconds

    def longest_run(self) -> float:
        return self._offload.longest_run()

    def queued(self) -> int:
        return self._inline.queued() + self._offload.queued()

    def submit(self, images: Images, waiter: Waiter) -> None:
        (self._inline if len(images) <= self._max_inline else self._offload).submit(images, waiter)

    def runs_inline(self, count: int) -> bool:
        return count <= self._max_inline


class Workers:
    """Runs the model in LitServe's workers, at most `concurrency` batches at a time."""

    def __init__(self, api: DigitAPI, run_in_worker: WorkerCall, concurrency: int, *, fair: bool) -> None:
        loop = asyncio.get_running_loop()
        self._batcher = OffloadBatcher(
            lambda inputs: loop.create_task(run_in_worker(api, inputs)),
            api.settings.max_batch,
            concurrency,
            fair=fair,
        )
        self.submit = self._batcher.submit

    def seconds(self, count: int) -> float:
        return count * _WORKER_IMAGE_SECONDS

    def longest_run(self) -> float:
        return 0.0  # the supervisor watches the workers, and a run is awaited until its deadline only

    def queued(self) -> int:
        return self._batcher.queued()

    def runs_inline(self, count: int) -> bool:  # noqa: ARG002
        return False
