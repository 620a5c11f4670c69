"""The load: requests that arrive at random at a rate, or as a recorded request log has them."""

from functools import cache
from typing import Protocol

from benchmarks.load.open_loop import Schedule, poisson
from benchmarks.load.workloads import BodyKind, Workload, service_workload


class Profile(Protocol):
    """Requests and when they arrive."""

    connections: int
    limit_s: float
    """A request is late after this many seconds."""
    images: float
    """Mean number per request."""
    rate: float
    """Requests per second, on average."""

    def workload(self, url: str, model: str) -> Workload:
        """Return the requests to a model of the service at `url`."""

    def schedule(self, seconds: float, seed: int) -> Schedule:
        """Return the arrivals of one run."""

    def describe(self) -> str:
        """Return the profile in words."""


class PoissonProfile:
    """Requests of one kind that arrive independently of each other at a constant rate."""

    def __init__(self, rate: float, body: BodyKind, *, connections: int, limit_s: float) -> None:
        self.rate, self.connections, self.limit_s = rate, connections, limit_s
        self._body = body
        sample = service_workload("http://127.0.0.1", "model", body)
        self.images = float(sample.images_per_request)
        self._kinds = len(sample.requests)

    def workload(self, url: str, model: str) -> Workload:
        return _workload(url, model, self._body)

    def schedule(self, seconds: float, seed: int) -> Schedule:
        return poisson(self.rate, seconds, self._kinds, seed)

    def describe(self) -> str:
        return f"{self.rate:g} requests/s ({self._body}), Poisson arrivals"


@cache
def _workload(url: str, model: str, body: BodyKind) -> Workload:
    return service_workload(url, model, body)
