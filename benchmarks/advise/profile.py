"""The load: requests that arrive at random at a rate, or as a request log has them."""

from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.load.open_loop import Schedule, poisson
from benchmarks.load.recorded import Recorded, recorded_requests
from benchmarks.load.workloads import BodyKind, Workload, service_workload
from distillery.request_log.read import RequestLog


class Requests(NamedTuple):
    """Complete HTTP/1.1 requests, and when each is sent."""

    schedule: Schedule
    requests: Sequence[bytes]


class Profile(Protocol):
    """Requests and when they arrive."""

    connections: int
    limit_s: float
    """A request is late after this many seconds."""
    images: float
    """Mean number per request."""
    rate: float
    """Requests per second, on average."""

    def load(self, url: str, model: str, seconds: float, seed: int) -> Requests:
        """Return the requests of one run, to a model of the service at `url`."""

    def __str__(self) -> str:
        """Return the profile in words."""


class PoissonProfile:
    """Requests of one kind that arrive independently of each other at a constant rate."""

    def __init__(self, rate: float, body: BodyKind, *, connections: int, limit_s: float) -> None:
        self.rate, self.connections, self.limit_s = rate, connections, limit_s
        self._body = body
        self.images = float(_workload("http://127.0.0.1", "model", body).images_per_request)

    def load(self, url: str, model: str, seconds: float, seed: int) -> Requests:
        requests = _workload(url, model, self._body).requests
        return Requests(poisson(self.rate, seconds, len(requests), seed), requests)

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s ({self._body}), Poisson arrivals"


class LogProfile:
    """The busiest part of a request log, with its gaps between arrivals and its images.

    A request that stands for several, because the log is a sample, is sent as often. With a `rate`, the recorded
    arrivals are sped up or slowed down to it. A run starts anywhere in that part, and after its end at its begin.
    Raises `BenchmarkError` for a log without two requests at different times.
    """

    def __init__(
        self, log: RequestLog, rate: float | None, *, seconds: float, connections: int, limit_s: float
    ) -> None:
        self.connections, self.limit_s = connections, limit_s
        self._log, self._seconds = log, seconds
        recorded = self._recorded("http://127.0.0.1", "model", 0)
        requests, last = len(recorded.schedule.due), recorded.schedule.due[-1]
        if last <= 0:
            raise BenchmarkError(
                f"--log {log.folder}: {requests} requests at one time are no load profile; "
                "use a log of more traffic, or --rate alone"
            )
        self.images = recorded.sent_images / requests
        recorded_rate = (requests - 1) / last
        self.rate = rate or recorded_rate
        self._speed = self.rate / recorded_rate

    def load(self, url: str, model: str, seconds: float, seed: int) -> Requests:
        recorded = self._recorded(url, model, seed)
        due = np.array(recorded.schedule.due) / self._speed
        period = due[-1] + 1 / self.rate
        start = np.random.default_rng(seed).uniform(0, period)
        repeats = np.arange(1 + ceil((start + seconds) / period)) * period
        times = (repeats[:, None] + due).ravel() - start
        numbers = np.tile(recorded.schedule.numbers, len(repeats))
        kept = (times >= 0) & (times <= seconds)
        kept[np.searchsorted(times, 0)] = True  # at least one request
        return Requests(Schedule(times[kept].tolist(), numbers[kept].tolist()), recorded.requests)

    def _recorded(self, url: str, model: str, seed: int) -> Recorded:
        return recorded_requests(self._log, url, model=model, seconds=self._seconds, seed=seed)

    def __str__(self) -> str:
        speed = f", {self._speed:.3g} times as fast as recorded" if self._speed != 1 else ""
        load = f"{self.rate:.4g} requests/s of {self.images:.3g} images on average"
        return f"the busiest part of a request log, {load}{speed}"


@cache
def _workload(url: str, model: str, body: BodyKind) -> Workload:
    return service_workload(url, model, body)
