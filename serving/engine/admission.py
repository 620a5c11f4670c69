"""Who is let in, for how long, and how every request ends: the same for all protocols.

A request under way is a `Flight`. Its bounds are kept without a timer or a lock of its own.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from serving.codecs.base import Protocol, Reply
from serving.codecs.errors import (
    BodyTooLarge,
    InternalError,
    Overloaded,
    RequestError,
    SlowBody,
    TimedOut,
    Unauthorized,
)
from serving.engine.endpoint import ClientGoneError, Endpoint
from serving.engine.metrics import count_unknown_model

CLIENT_GONE = 499  # nobody hears it; the metrics do

_logger = logging.getLogger("distillery")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a process grants to one request, and to all of them together."""

    max_body_bytes: int = 4 * 1024 * 1024
    max_in_flight: int = 1024
    max_held_bytes: int = 256 * 1024 * 1024
    """Of the bodies of all requests under way that came in more than one piece."""
    request_timeout: float = 5.0
    api_key: str | None = None


class Flight:
    """A request under way; whoever finds it late says so and cancels it."""

    __slots__ = ("cancel", "endpoint", "held_bytes", "late", "protocol", "received", "started")

    def __init__(self, protocol: Protocol, endpoint: Endpoint | None, cancel: Callable[[], object]) -> None:
        self.protocol = protocol
        self.endpoint = endpoint
        self.started = time.monotonic()
        self.received: float | None = None  # when its whole body was here
        self.held_bytes = 0
        self.late = False
        self.cancel = cancel


class Admission:
    """The requests under way in this process, and their bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._key = bounds.api_key.encode() if bounds.api_key else None
        self._flights: dict[Flight, None] = {}  # oldest first
        self._held_bytes = 0

    def begin(self, protocol: Protocol, endpoint: Endpoint | None, cancel: Callable[[], object]) -> Flight:
        """Note a request that `cancel` would end; `endpoint` is None for a model that is not served."""
        flight = Flight(protocol, endpoint, cancel)
        self._flights[flight] = None
        if endpoint:
            endpoint.metrics.in_flight += 1
        return flight

    def assign(self, flight: Flight, endpoint: Endpoint) -> None:
        """Note which model a request is for, where only its body says so."""
        flight.endpoint = endpoint
        endpoint.metrics.in_flight += 1

    def end(self, flight: Flight, status: int) -> None:
        """Note how it ended."""
        del self._flights[flight]
        self._held_bytes -= flight.held_bytes
        if flight.endpoint:
            flight.endpoint.metrics.in_flight -= 1
            seconds = time.monotonic() - flight.received if flight.received else None
            flight.endpoint.metrics.answered(flight.protocol.name, status, seconds=seconds)
        else:
            count_unknown_model(flight.protocol.name, status)

    def check(self, key: bytes, length: int) -> None:
        """Refuse a wrong key, a body that will be too long, one request too many. Raises `RequestError`."""
        if self._key and not hmac.compare_digest(key, self._key):
            raise Unauthorized("the header X-API-Key is missing or wrong")
        self.check_length(length)
        if len(self._flights) > self._bounds.max_in_flight:
            raise Overloaded(f"{self._bounds.max_in_flight} requests are under way; try again in a second")

    def check_length(self, found: int) -> None:
        """Raises `BodyTooLarge`."""
        if found > self._bounds.max_body_bytes:
            raise BodyTooLarge(
                f"the body has {found:,} bytes or more; this service reads {self._bounds.max_body_bytes:,}"
            )

    def hold(self, flight: Flight, length: int) -> None:
        """Note how much of a body in pieces is held by now. Raises `BodyTooLarge`, `Overloaded`."""
        self.check_length(length)
        self._held_bytes += length - flight.held_bytes
        flight.held_bytes = length
        if self._held_bytes > self._bounds.max_held_bytes:
            raise Overloaded("the bodies under way fill the memory set aside; try again in a second")

    async def answer(self, flight: Flight, work: Coroutine[Any, Any, Reply]) -> Reply:
        """Await `work`; whatever goes wrong in it becomes its protocol's refusal. Raises `ClientGoneError`."""
        try:
            return await work
        except RequestError as error:
            return flight.protocol.refuse(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not flight.late or not task:
                raise
            task.uncancel()
            return flight.protocol.refuse(self.too_late(flight))
        except ClientGoneError:
            raise
        except Exception:  # the last resort: the client gets the documented body, the log the traceback
            _logger.exception("a prediction failed")
            return flight.protocol.refuse(InternalError())

    def too_late(self, flight: Flight) -> RequestError:
        """What a request is told that took too long."""
        limit = f"within {self._bounds.request_timeout:g} s"
        if flight.received is None:
            return SlowBody(f"the body was not here {limit}; send it faster")
        return TimedOut(f"the answer was not ready {limit}; try again")

    def cancel_late(self) -> None:
        """End what has been under way for too long; called now and then, it spares each request a timer."""
        started_before = time.monotonic() - self._bounds.request_timeout
        late = list(takewhile(lambda flight: flight.started <= started_before, self._flights))
        for flight in late:
            if not flight.late:
                flight.late = True
                flight.cancel()
