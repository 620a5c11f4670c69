"""Systems under test, in LoadGen's sense: what answers queries, asked in the ways that the scenarios ask.

`SessionSystem` is a bare onnxruntime session in this process, `ServedSystem` a service over HTTP with the load
from a process of its own. Both are asked for the same samples in the same order, and time counts alike.
"""

from typing import Protocol

from benchmarks.load.latency import Latencies
from benchmarks.loadgen.open_loop import Bound, Timeline

BATCH = 64
"""The most samples that a system is given at once."""


class System(Protocol):
    """One model in one system; every method but `check` is one run, warm-up excluded."""

    name: str
    model: str

    def check(self) -> None:
        """Accuracy mode: ask for every sample of the library; raise `BenchmarkError` for a wrong answer."""

    def stream(self, samples: int, seconds: float) -> Latencies:
        """Ask for `samples` samples again and again, one query after another; return how long each took."""

    def serve(self, rate: float, queries: int, seed: int, bound: Bound) -> Timeline:
        """Ask queries of one sample at Poisson arrivals until all are answered or the bound is not kept."""

    def offline(self, samples: int, seed: int) -> tuple[int, Timeline]:
        """Ask for all `samples` at once; return how many of them make one query of the timeline, and it."""
