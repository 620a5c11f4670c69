"""Exemplars: for each bucket of the request durations, the trace of the newest request in it that has a span.

They are in the shared metrics, as numbers that are exact in float64, and written for sampled requests only.
"""

from bisect import bisect_left
from collections.abc import Iterator
from time import time

import numpy as np
from numpy.typing import NDArray

from serving.engine.metrics.series import EXEMPLARS, SECONDS, Metrics, Values

_WORDS = range(0, 32, 8)
"""A trace id is four words of eight hexadecimal digits."""


class ExemplarRecorder:
    """Recorder of an API process."""

    def __init__(self, row: Values) -> None:
        self._row = row
        self._numbers: dict[str, NDArray[np.float64]] = {}

    def add(self, slot: str, seconds: float, trace_id: str) -> None:
        """Make a request that has a span the exemplar of its bucket."""
        words = [int(trace_id[start : start + 8], 16) for start in _WORDS]
        numbers = self._numbers.get(slot)
        if numbers is None:
            numbers = self._numbers[slot] = self._row.of(EXEMPLARS, slot=slot)
        numbers[bisect_left(SECONDS, seconds)] = (time(), seconds, *words)


def exemplars(metrics: Metrics) -> Iterator[tuple[int, int, str]]:
    """Yield the newest exemplars of all processes: the indices of slot and bucket, and their text in OpenMetrics."""
    found = np.stack([row.of(EXEMPLARS) for row in metrics.rows()])  # [process, slot, bucket, part]
    newest = found[..., 0].argmax(axis=0)
    for slot, bucket in np.argwhere(found[..., 0].max(axis=0)).tolist():
        moment, seconds, *words = found[newest[slot, bucket], slot, bucket].tolist()
        trace_id = "".join(f"{int(word):08x}" for word in words)
        yield slot, bucket, f' # {{trace_id="{trace_id}"}} {seconds:.9f} {moment:.3f}'
