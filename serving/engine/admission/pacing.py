"""Slow down clients that retry at once: a service that rejects ten thousand requests a second does nothing else.

The first rejection on a connection is sent at once, as long as a process sends no more than `_PER_SECOND` of them. If
the client sends its next request before the time that `Retry-After` names, and that is rejected too, the response is
held back until then, and so is any rejection above that rate: it may be of a client that connects for every request.
Clients that wait as they should are hardly ever held back; the others wait as long, whether they want to or not.
"""

import asyncio
import random
import time

STATE = "distillery.pacing"
"""Key of a connection's `Pacing` in the ASGI scope's `state`."""
_PER_SECOND = 200
"""Rejections that a process sends at once, and others that it sends later: more would take the time of others."""
_SHORTEST, _LONGEST = 1.0, 10.0
_SPREAD = 0.25  # so that clients rejected together do not return together


class Rejections:
    """The rejections that this process holds back."""

    def __init__(self) -> None:
        self.held = 0
        self._paid_until = (
            0.0  # a rejection at once costs 1 / _PER_SECOND; up to a second is spent in advance
        )

    def allows(self, now: float) -> bool:
        """Return whether a rejection may be sent at once, and count it."""
        paid_until = max(self._paid_until, now)
        if paid_until - now >= 1:
            return False
        self._paid_until = paid_until + 1 / _PER_SECOND
        return True

    @property
    def retry_seconds(self) -> float:
        """The time after which a rejected client may retry."""
        return min(max(_SHORTEST, self.held / _PER_SECOND), _LONGEST)


class Pacing:
    """The rejections on one connection."""

    def __init__(self, rejections: Rejections) -> None:
        self._rejections = rejections
        self._next = 0.0
        self._waiting: asyncio.Future[None] | None = None

    def hold(self) -> float:
        """Return the seconds to hold back a rejection; if not 0, call `release` afterwards."""
        now = time.monotonic()
        spread = random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - no secret
        pause = self._rejections.retry_seconds * spread
        at = max(now, self._next)
        if at == now and not self._rejections.allows(now):
            at += pause
        self._next = at + pause
        if at > now:
            self._rejections.held += 1
        return at - now

    def release(self) -> None:
        """End a hold."""
        self._rejections.held -= 1

    async def wait(self) -> None:
        """Hold back a rejection in a task."""
        if seconds := self.hold():
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(seconds, self.end_wait)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self.release()

    def end_wait(self) -> None:
        """Send a rejection that a task holds back."""
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)
