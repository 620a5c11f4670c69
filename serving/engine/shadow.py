"""Shadow traffic: a share of the stable version's requests is repeated by the candidate, off the request path.

A request is chosen after its run, which costs a subtraction per run. A thread of its own repeats what was chosen in the
last tenth of a second in one run, which takes less CPU time, and less often the GIL, than a run for every request.
The queue is bounded: when the candidate cannot keep up, requests are left out. No response waits for it, and none can
fail because of it. The thread has the priority of all others: one with a lower priority would keep the GIL for long
whenever another process took its core, and the event loop would wait for it.

Where the two versions disagree, the teacher, if it is served, is the reference: about images on which they agree, it
could not tell them apart.

Nothing of a mirrored request is kept but the counts.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from math import ceil, log, log1p
from random import random
from typing import NamedTuple

import numpy as np

from serving.codecs.base import Prediction
from serving.engine.lit_api import DigitAPI
from serving.engine.metrics.series import SHADOW_COMPARISONS, SHADOW_DROPPED, SHADOW_REFERENCES, Values
from serving.model.tensors import Images

MAX_WAITING = 256
"""Requests."""
MAX_IMAGES = 32
"""Of a request that are repeated, and about as many in a run."""
_PERIOD_SECONDS = 0.1
"""Between two runs, if less than a run waits."""

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
        self._waiting: deque[_Request] = deque()
        self._due = threading.Event()
        self._is_closed = False
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
            self._waiting.append(_Request(images, whole.digits[start : start + len(images)]))
            if len(self._waiting) == MAX_IMAGES:
                self._due.set()

    def close(self) -> None:
        """Mirror no more requests; the thread ends once it has done what waits."""
        self._stable.mirror = None
        self._is_closed = True
        self._due.set()

    def _gap(self) -> int:
        """Return how far the next chosen request is away, the next one of all being 1: geometrically distributed."""
        if self._share >= 1:
            return 1
        return max(1, ceil(log(1 - random()) / log1p(-self._share)))  # noqa: S311

    def _run(self) -> None:
        while not self._is_closed or self._waiting:
            if len(self._waiting) < MAX_IMAGES:
                self._due.wait(_PERIOD_SECONDS)
            self._due.clear()
            if not (requests := list(self._take())):
                continue
            try:
                self._compare(requests)
            except Exception:
                _logger.exception("a run of mirrored requests failed")

    def _take(self) -> Iterator[_Request]:
        """Yield the requests of the next run."""
        images = 0
        while self._waiting and images < MAX_IMAGES:
            request = self._waiting.popleft()
            images += len(request.images)
            yield request

    def _compare(self, requests: list[_Request]) -> None:
        images = np.concatenate([request.images for request in requests])
        stable = [digit for request in requests for digit in request.digits]
        digits = self._candidate.run(images).digits
        differ = [index for index, digit in enumerate(digits) if digit != stable[index]]
        self._agreed += (len(digits) - len(differ), len(differ))
        if self._teacher is None:
            return
        sides = [len(digits) - len(differ), 0, 0]
        if differ:
            for index, digit in zip(differ, self._teacher.run(images[differ]).digits, strict=True):
                sides[1 if digit == stable[index] else 2 if digit == digits[index] else 0] += 1
        self._references += sides
