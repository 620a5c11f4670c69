"""A bare onnxruntime session as a system under test: what the model can do with no service around it."""

import time
from collections.abc import Callable
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import Images, load_digits
from benchmarks.load.latency import Latencies
from benchmarks.load.workloads import TOLERANCE
from benchmarks.loadgen.arrivals import all_at_once, draw_samples, poisson_arrivals
from benchmarks.loadgen.open_loop import Bound, Timeline
from benchmarks.loadgen.session_queue import SessionQueue, without_garbage_collection
from benchmarks.loadgen.systems import BATCH

WARM_UP_RUNS = 20


class SessionSystem:
    """onnxruntime alone: one stream on one thread, or a queue from which `threads` threads take batches.

    `ask` runs the session: from `uint8 [N,28,28]` to probabilities, `[N,10]`.
    """

    name = "session"

    def __init__(self, model: str, ask: Callable[[Images], object], *, threads: int, limit_s: float) -> None:
        self.model = model
        self._ask, self._threads, self._limit_s = ask, threads, limit_s
        self._library = load_digits()

    def check(self) -> None:
        """A batch is summed in another order than one sample: the answers must be the same ones."""
        alone = np.concatenate([np.asarray(self._ask(digit[None])) for digit in self._library])
        difference = np.abs(alone - np.asarray(self._ask(self._library))).max()
        if not difference <= TOLERANCE:
            raise BenchmarkError(f"{self.model}: alone and in a batch, answers differ by {difference:.2g}")

    def stream(self, samples: int, seconds: float) -> Latencies:
        queries = cycle(np.resize(self._library, (len(self._library), samples, 28, 28)))
        for _ in range(WARM_UP_RUNS):
            self._ask(next(queries))
        durations: list[int] = []
        with without_garbage_collection():
            before = time.perf_counter_ns()
            deadline = before + round(seconds * 1e9)
            while before < deadline:
                query = next(queries)
                before = time.perf_counter_ns()
                self._ask(query)
                durations.append(time.perf_counter_ns() - before)
        return Latencies.from_samples(np.array(durations) / 1e3)

    def serve(self, rate: float, queries: int, seed: int, bound: Bound) -> Timeline:
        return self._queue(poisson_arrivals(rate, queries, seed), seed, bound)

    def offline(self, samples: int, seed: int) -> tuple[int, Timeline]:
        return 1, self._queue(all_at_once(samples), seed, None)

    def _queue(self, arrivals: NDArray[np.float64], seed: int, bound: Bound | None) -> Timeline:
        for _ in range(WARM_UP_RUNS):
            self._ask(self._library[:1])
        chosen = draw_samples(len(self._library), len(arrivals), seed)
        queue = SessionQueue(
            self._ask, self._library, arrivals, chosen, batch=BATCH, limit_s=self._limit_s, bound=bound
        )
        return queue.run(self._threads)
