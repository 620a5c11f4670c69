"""Admission control: authentication, limits and deadlines, the same for every transport and codec."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.codecs.base import Codec, Prediction, Query
from serving.codecs.errors import BodyTooLarge, Header, Overloaded
from serving.engine.admission.api_keys import Access
from serving.engine.admission.backlog import Backlog
from serving.engine.admission.fairness import Shares
from serving.engine.admission.pacing import Rejections
from serving.engine.metrics.recorder import RejectionCounts, StatusCounts
from serving.engine.telemetry.access_log import AccessLog
from serving.engine.telemetry.record import Observer, Served

OnPrediction = Callable[[bytes, str | None, Served, Codec, Query, Prediction], object]
"""Receives the id, the client, the version, and what is in the response, before it is sent; must not raise."""

MIN_BYTES_PER_SECOND = 16 * 1024
"""Of a body that a client sends, and of a response that it reads, averaged over `client_timeout`."""


@dataclass(frozen=True, kw_only=True)
class AdmissionLimits:
    """Limits on one request, and on all requests of a process."""

    max_body_bytes: int = 16 * 1024 * 1024
    max_in_flight: int = 1024
    max_held_bytes: int = 256 * 1024 * 1024
    """Of all bodies that arrive in several pieces."""
    request_timeout: float = 5.0
    """Seconds from the arrival of a complete request to its reply."""
    client_timeout: float = 10.0
    """Seconds in which a client must make progress, with a body `MIN_BYTES_PER_SECOND`."""


class Expiring(Protocol):
    """The part of `serving.engine.request.InFlightRequest` that admission control needs."""

    client: str | None
    held_bytes: int

    def is_late(self, now: float) -> bool:
        """Return whether its client or its model has taken too long; `now` is `time.monotonic()`."""

    def expire(self) -> None:
        """End the request because its deadline has passed."""


class Admission:
    """The requests in flight in this process, and their limits."""

    def __init__(self, limits: AdmissionLimits, access: Access | None = None) -> None:
        """Without `access`, no key is required."""
        self.limits = limits
        self.access = access or Access()
        self.shares = Shares()
        self.backlog = Backlog(self.shares)
        self.rejections = Rejections()
        self._in_flight: dict[Expiring, None] = {}  # oldest first
        self._held_bytes = 0
        self.unknown_model = StatusCounts(int)
        """Of completed requests that named no served model, until they are published."""
        self.observers: Sequence[Observer] = ()
        """Of every prediction request that has ended; set before the first one."""
        self.on_prediction: OnPrediction | None = None
        """Remembers predictions, for feedback and the request log."""
        self.access_log: AccessLog | None = None
        """Also one of the observers; here for requests that are no predictions."""
        self.rejected = RejectionCounts(int)
        """Of requests that ended without a prediction, until they are published."""

    def enter(self, request: Expiring) -> None:
        """Add a request in flight."""
        self._in_flight[request] = None

    def leave(self, request: Expiring) -> None:
        """Remove a request that has ended."""
        del self._in_flight[request]
        self._held_bytes -= request.held_bytes

    def check(self, request: Expiring, key: bytes, length: int) -> Sequence[Header]:
        """Check API key, declared body length and the number of requests in flight; set the client of the request.

        Returns header fields of the response. Raises `RequestError`.
        """
        access, limit = self.access, self.limits.max_in_flight
        headers = access.check(key) if access.required else ()
        self.check_length(length)
        client = access.client(key) if access.several else None
        if len(self._in_flight) > limit and not self.shares.allows(client, "requests", 1, limit):
            raise Overloaded(f"{limit} requests are in flight; retry in a second")
        if client:
            self.shares.enter(client)
            request.client = client
        return headers

    def timeout(self, wanted: float) -> float:
        """Return the seconds until the deadline of a request whose client waits for `wanted` seconds."""
        return min(wanted, self.limits.request_timeout)

    def check_length(self, found: int) -> None:
        """Raises `BodyTooLarge`."""
        if found > self.limits.max_body_bytes:
            raise BodyTooLarge(
                f"the body has at least {found:,} bytes; the limit is {self.limits.max_body_bytes:,}"
            )

    def hold(self, request: Expiring, length: int) -> None:
        """Record the bytes received of a body in several pieces. Raises `BodyTooLarge`, `Overloaded`."""
        self.check_length(length)
        more, limit = length - request.held_bytes, self.limits.max_held_bytes
        self._held_bytes += more
        request.held_bytes = length
        full = self._held_bytes > limit and not self.shares.allows(request.client, "bytes", more, limit)
        if request.client:
            self.shares[request.client].bytes += more
        if full:
            raise Overloaded("the memory for request bodies is full; retry in a second")

    def expire_late(self) -> None:
        """End every request past its deadline; called periodically, it saves a timer per request."""
        now = time.monotonic()
        for request in [request for request in self._in_flight if request.is_late(now)]:
            request.expire()
