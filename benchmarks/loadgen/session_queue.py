"""An open loop without a network: queries wait in a queue for the threads that answer them.

The queue is the schedule itself: what has arrived and was not yet taken. A thread that is free takes all of it,
up to a batch, so neither the generator nor the queue costs anything. One free thread at a time waits for the
next arrival; how late it woke up is the generator's lateness.
"""

import gc
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.digits import Images
from benchmarks.loadgen.open_loop import Bound, Timeline, timeline

SLEEP_IS_LATE_S = 150e-6
"""A sleep may end so much too late; the rest of a wait is spent looking at the clock."""


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the collector from pausing what is timed: with a few libraries loaded it takes 50 ms and more."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class SessionQueue:
    """One run: `arrivals` in seconds, ascending, and which sample of the library each query asks for."""

    def __init__(
        self,
        ask: Callable[[Images], object],
        library: Images,
        arrivals: NDArray[np.float64],
        samples: NDArray[np.int64],
        *,
        batch: int,
        limit_s: float,
        bound: Bound | None = None,
    ) -> None:
        self._ask, self._library, self._samples = ask, library, samples
        self._arrivals: list[float] = arrivals.tolist()
        self._batch, self._limit_s = batch, limit_s
        self._bound_s, self._allowed = (bound.ms / 1e3, bound.allowed) if bound else (np.inf, 0)
        self._bound = bound
        self._following = self._slow = 0
        self._taking, self._recording = Lock(), Lock()
        self._answers: list[tuple[int, int, float, float]] = []

    def run(self, threads: int) -> Timeline:
        """Answer every query, or as many as the limits allow."""
        with ThreadPoolExecutor(threads) as pool, without_garbage_collection():
            self._start = time.perf_counter()
            for worker in [pool.submit(self._work) for _ in range(threads)]:
                worker.result()
        latency = [
            now - np.array(self._arrivals[first:last], dtype=np.float64)
            for first, last, now, _ in self._answers
        ]
        late = [np.full(last - first, late_s) for first, last, _, late_s in self._answers]
        return timeline(
            np.concatenate(latency),
            np.concatenate(late),
            queries=len(self._arrivals),
            seconds=max(now for _, _, now, _ in self._answers),
            bound=self._bound,
        )

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            first, last, late_s = taken
            self._ask(self._library[self._samples[first:last]])
            now = self._now()
            slow = bisect_left(self._arrivals, now - self._bound_s, first, last) - first
            with self._recording:
                self._answers.append((first, last, now, late_s))
                self._slow += slow

    def _take(self) -> tuple[int, int, float] | None:
        """Wait for the next query, take it and all others that have arrived, up to a batch; say how late that was."""
        with self._taking:
            first = self._following
            if first == len(self._arrivals) or self._slow > self._allowed or self._now() > self._limit_s:
                return None
            due = self._arrivals[first]
            waited = self._now() < due
            if waited:
                time.sleep(max(0.0, due - self._now() - SLEEP_IS_LATE_S))
                while self._now() < due:
                    time.sleep(0)  # lets the other threads have the interpreter
            now = self._now()
            last = bisect_right(self._arrivals, now, first, min(first + self._batch, len(self._arrivals)))
            self._following = last
            return first, last, now - due if waited else 0.0

    def _now(self) -> float:
        return time.perf_counter() - self._start
