"""Shadow traffic: a share of the stable version's requests is repeated by the candidate, off the request path.

A request is chosen after its run, which costs a subtraction per run. A thread of its own repeats it, from a bounded
queue: when the candidate cannot keep up, requests are left out. No response waits for it, and none can fail because of
it. The thread has the priority of all others: one with a lower priority would keep the GIL for long whenever another
process took its core, and the event loop would wait for it.

Where the two versions disagree, the teacher, if it is served, is the reference: about images on which they agree, it
could not tell them apart.

Nothing of a mirrored request is kept but the counts.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from math import ceil, log, log1p
from random import random
from typing import NamedTuple

from serving.codecs.base import Prediction
from serving.engine.lit_api import DigitAPI
from serving.engine.metrics.series import SHADOW_COMPARISONS, SHADOW_DROPPED, SHADOW_REFERENCES, Values
from serving.model.tensors import Images

MAX_WAITING = 64
"""Requests."""
MAX_IMAGES = 32
"""Of a request that are repeated."""

_logger = logging.getLogger("distillery")


class _Request(NamedTuple):
    images: Images
    digits: Sequence[int]


class Shadow:
    """The comparison of a candidate with the stable version, in one process, until it is closed."""

    def __init__(
        self,
        stable: DigitAPI,
        candidate: DigitAPI,
        teacher: DigitAPI | None,
        row: Values,
        slot: str,
        share: float,
    ) -> None:
        """Mirror a `share` of the stable version's requests, and count in the candidate's `slot`."""
        self._stable, self._candidate = stable, candidate.session
        self._teacher = teacher.session if teacher and teacher not in {stable, candidate} else None
        self._share = share
        self._skip = self._gap() - 1
        self._agreed = row.of(SHADOW_COMPARISONS, slot=slot)
        self._references = row.of(SHADOW_REFERENCES, slot=slot)
        self._dropped = row.of(SHADOW_DROPPED)
        self._waiting: deque[_Request | None] = deque()
        self._arrived = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()
        stable.mirror = self.mirror

    def mirror(self, inputs: list[Images], whole: Prediction) -> None:
        """Take the chosen ones of the requests in a run; called on the thread of the run."""
        self._skip -= len(inputs)
        while self._skip < 0:
            index = len(inputs) + self._skip  # from the first request of the run
            self._skip += self._gap()
            if len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
                continue
            start = sum(map(len, inputs[:index]))
            images = inputs[index][:MAX_IMAGES]
            self._put(_Request(images, whole.digits[start : start + len(images)]))

    def close(self) -> None:
        """Mirror no more requests; the thread ends once it has done what waits."""
        self._stable.mirror = None
        self._put(None)

    def _put(self, request: _Request | None) -> None:
        self._waiting.append(request)
        self._arrived.release()

    def _gap(self) -> int:
        """Return how far the next chosen request is away, the next one of all being 1: geometrically distributed."""
        if self._share >= 1:
            return 1
        return max(1, ceil(log(1 - random()) / log1p(-self._share)))  # noqa: S311

    def _run(self) -> None:
        while True:
            self._arrived.acquire()
            request = self._waiting.popleft()
            if request is None:
                return
            try:
                self._compare(request)
            except Exception:
                _logger.exception("a mirrored request failed")

    def _compare(self, request: _Request) -> None:
        digits = self._candidate.run(request.images).digits
        differ = [index for index, digit in enumerate(digits) if digit != request.digits[index]]
        self._agreed += (len(digits) - len(differ), len(differ))
        if self._teacher is None:
            return
        sides = [len(digits) - len(differ), 0, 0]
        if differ:
            for index, digit in zip(differ, self._teacher.run(request.images[differ]).digits, strict=True):
                sides[1 if digit == request.digits[index] else 2 if digit == digits[index] else 0] += 1
        self._references += sides
