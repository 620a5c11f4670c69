"""Live accuracy: the true digits that clients send for images that were classified, counted by model and version.

A label is counted once. The same label again changes nothing, so that a client may repeat a request; another one is
rejected, because counters must not decrease.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from serving.codecs.base import Codec, Prediction, Query
from serving.codecs.errors import AlreadyLabelled, InvalidRange, UnknownRequest
from serving.engine.metrics.series import CORRECT, FEEDBACK, Metrics, Slots, Values
from serving.engine.recent_predictions import RecentPredictions, version_tag
from serving.engine.request_log import RequestLog
from serving.engine.telemetry.record import Served

_Z = 1.959964
"""Of a two-sided interval of 95 %."""


class Accuracy(NamedTuple):
    """The live accuracy of a version."""

    model: str
    version: str
    labels: int
    correct: int

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy by Wilson's score (Wilson, 1927); without labels, 0 to 1."""
        if not self.labels:
            return 0.0, 1.0
        share, weight = self.correct / self.labels, _Z**2 / self.labels
        centre = (share + weight / 2) / (1 + weight)
        half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / self.labels + weight / (4 * self.labels))
        return max(0.0, centre - half), min(1.0, centre + half)


class Feedback:
    """The labels that arrive in one API process."""

    def __init__(
        self,
        recent: RecentPredictions,
        row: Values,
        slots: Callable[[], Slots],
        log: RequestLog | None = None,
    ) -> None:
        """`recent` writes to the row of this process; `slots` returns those of the versions that are served."""
        self._recent, self._row, self._slots, self._log = recent, row, slots, log

    def predicted(
        self,
        request_id: bytes,
        client: str | None,
        served: Served,
        codec: Codec,
        query: Query,
        prediction: Prediction,
    ) -> None:
        """Remember what a response contains; the request log decides whether it keeps the images."""
        log = self._log
        logged = log is not None and log.predicted(request_id, client, served, codec, query, prediction)
        self._recent.add(request_id, client, served, prediction.digits, logged)

    def knows(self, request_id: str, client: str | None) -> bool:
        """Return whether a request is known now; one of another process is known a tenth of a second later."""
        return self._recent.find(request_id.encode(), client) is not None

    def label(self, request_id: str, client: str | None, index: int, digit: int) -> bool:
        """Count the true digit of an image; return False if the same label was counted before.

        Raises `UnknownRequest`, `InvalidRange`, `AlreadyLabelled`.
        """
        found = self._recent.find(request_id.encode(), client)
        slot = self._slot(found.slot, found.version) if found else None
        if found is None or slot is None:
            raise UnknownRequest(
                f"there is no request {request_id!r} of this client among those of the last {self._recent.seconds:g} "
                f"s, and the last {self._recent.requests:,} of each process; send the X-Request-ID of the response"
            )
        if index >= found.images:
            images = "1 image" if found.images == 1 else f"{found.images} images"
            raise InvalidRange(
                f"index is {index}, but the request {request_id!r} had {images}, counted from 0"
            )
        predicted, before = self._recent.label(found, index, digit)
        if before == digit:
            return False
        if before is not None:
            raise AlreadyLabelled(
                f"image {index} of the request {request_id!r} was labelled {before} before, and now {digit}; "
                "a label cannot be changed"
            )
        counts = self._row.of(FEEDBACK, slot=slot, correct=CORRECT[predicted != digit])
        counts += 1
        if self._log and found.logged:
            self._log.labelled(request_id.encode(), index, digit)
        return True

    def _slot(self, slot: int, tag: int) -> str | None:
        """Return the slot if it is still that of the version that made the prediction."""
        for (name, version), its in self._slots().items():
            if its == str(slot) and version_tag(name, version) == tag:
                return its
        return None


def live_accuracy(metrics: Metrics, slots: Slots) -> list[Accuracy]:
    """Return the accuracy of each version that is or was served, by all labels since the service started."""
    counts: Mapping[str, int]
    found = []
    totals = metrics.totals()
    for (name, version), slot in slots.items():
        counts = {correct: int(totals.of(FEEDBACK, slot=slot, correct=correct)) for correct in CORRECT}
        found.append(Accuracy(name, version, sum(counts.values()), counts["true"]))
    return found
