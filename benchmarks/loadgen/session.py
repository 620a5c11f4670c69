"""A bare onnxruntime session as a system under test: the model without a service around it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from benchmarks.load.workloads import TOLERANCE
from benchmarks.loadgen.run import Issue, Query, Run, Scenario
from serving.model.tensors import Images

BATCH = 64
"""Maximum number of samples per run of the model in Server and Offline."""


class SessionSystem:
    """A session in this process; in Server and Offline, `threads` threads take batches from a queue.

    `infer` maps `uint8 [N,28,28]` to probabilities `[N,10]`.
    """

    name = "session"
    separate = False

    def __init__(self, model: str, infer: Callable[[Images], NDArray[np.float32]], *, threads: int) -> None:
        self.model = model
        self._infer, self._threads = infer, threads
        self._library = load_digits()

    def check(self) -> None:
        """Compare one sample per run with all samples in one: the order of summation differs, not the answer."""
        single = np.concatenate([self._infer(digit[None]) for digit in self._library])
        difference = np.abs(single - self._infer(self._library)).max()
        if not difference <= TOLERANCE:
            raise BenchmarkError(
                f"{self.model}: probabilities of one sample and of the same sample in a batch differ by "
                f"{difference:.2g}, expected at most {TOLERANCE:g}"
            )

    @contextmanager
    def open(self, scenario: Scenario, run: Run) -> Iterator[Issue]:
        def answer(queries: Sequence[Query]) -> None:
            self._infer(self._library[[sample for _, sample in queries]])
            run.complete(queries)

        if scenario in ("SingleStream", "MultiStream"):
            yield answer
            return
        waiting: SimpleQueue[Query | None] = SimpleQueue()

        def work() -> None:
            while (first := waiting.get()) is not None:
                batch = _take(waiting, first)
                try:
                    answer(batch)
                except Exception as error:  # noqa: BLE001 - raised again in the main thread
                    run.fail(batch, error)

        def issue(queries: Sequence[Query]) -> None:
            for query in queries:
                waiting.put(query)

        with ThreadPoolExecutor(self._threads) as pool:
            for _ in range(self._threads):
                pool.submit(work)
            try:
                yield issue
            finally:
                for _ in range(self._threads):
                    waiting.put(None)


def _take(waiting: "SimpleQueue[Query | None]", first: Query) -> list[Query]:
    """Return all queries that have arrived, at most a batch."""
    batch = [first]
    with suppress(Empty):
        while len(batch) < BATCH and (query := waiting.get_nowait()) is not None:
            batch.append(query)
    return batch
