"""Slow down clients that retry at once: a service that rejects ten thousand requests a second does nothing else.

The first rejection on a connection is sent at once, and so is any later one if the client has waited as long as
`Retry-After` says. If it has not, the response is held back until then. A process sends a limited number of either per
second; the others are held back longer. So clients that wait as they should are hardly ever held back; the others wait
as long, whether they want to or not, also those that open a connection for every request.
"""

import asyncio
import time

STATE = "distillery.pacing"
"""Key of a connection's `Pacing` in the ASGI scope's `state`."""
RETRY_SECONDS = 1.0
"""Before a client may retry."""
_PER_SECOND = 100
"""Rejections that a process sends at once, and as many that it has held back: more would take the time of others."""
_LONGEST = 10.0
"""Seconds that a rejection is held back; with more than a thousand clients, those of a process are sent faster."""


class Rejections:
    """When this process sends its rejections."""

    def __init__(self) -> None:
        self.held = 0
        """Number of rejections held back now."""
        self._next_at_once = self._last_held = 0.0

    def due(self, now: float, earliest: float) -> float:
        """Return when to send a rejection that is due at `earliest`, or before `now`; reserve this time for it."""
        if earliest <= now:
            if self._next_at_once < now + 1:  # those of a second may be sent together
                self._next_at_once = max(self._next_at_once, now) + 1 / _PER_SECOND
                return now
            earliest = now + RETRY_SECONDS
        self._last_held = min(max(earliest, self._last_held + 1 / _PER_SECOND), now + _LONGEST)
        return self._last_held


class Pacing:
    """The rejections on one connection."""

    def __init__(self, rejections: Rejections) -> None:
        self._rejections = rejections
        self._earliest = 0.0
        self._waiting: asyncio.Future[None] | None = None

    def hold(self) -> float:
        """Return the seconds to hold back a rejection; if not 0, call `release` afterwards."""
        now = time.monotonic()
        at = self._rejections.due(now, self._earliest)
        self._earliest = at + RETRY_SECONDS
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
