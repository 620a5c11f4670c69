"""The load: requests that arrive at random at a rate."""

from functools import cache
from typing import NamedTuple, Protocol

from benchmarks.load.open_loop import Schedule, poisson
from benchmarks.load.workloads import BodyKind, Workload, service_workload


class Requests(NamedTuple):
    """Complete HTTP/1.1 requests, and when each is sent."""

    schedule: Schedule
    requests: tuple[bytes, ...]


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


@cache
def _workload(url: str, model: str, body: BodyKind) -> Workload:
    return service_workload(url, model, body)
