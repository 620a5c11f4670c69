"""Recorders of a process's requests and runs, published to its row of the shared metrics ten times a second.

Writing to the shared numbers for each request would cost about as much as a run of a small model. Recording in plain
numbers costs a fraction of that; `publish` writes what has accumulated.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from resource import RLIMIT_NOFILE, getpagesize, getrlimit
from typing import Literal

from numpy import add, float64
from numpy.typing import NDArray

from distillery.machine import cpu_throttling
from serving.codecs.base import Codec
from serving.engine.metrics.series import (
    BATCH_IMAGES,
    BATCH_SIZES,
    CPU_PERIODS,
    CPU_THROTTLED_PERIODS,
    CPU_THROTTLED_SECONDS,
    ESCALATED,
    IMAGES,
    IN_FLIGHT,
    INFERENCE_SECONDS,
    LAG_SECONDS,
    LAST_PREDICTION,
    LOOP_LAG,
    MAX_RUN_IMAGES,
    OUTCOME_SECONDS,
    PREDICTIONS,
    PROCESS_CPU_SECONDS,
    PROCESS_DESCRIPTORS,
    PROCESS_MAX_DESCRIPTORS,
    PROCESS_MEMORY,
    PROCESSES_RUNNING,
    QUEUE_SECONDS,
    QUEUED,
    REJECTED,
    REJECTED_REQUESTS,
    REQUEST_SECONDS,
    REQUESTS,
    ROUTE_REQUEST_SECONDS,
    ROUTE_REQUESTS,
    ROUTE_SECONDS,
    RUN_CPU_SECONDS,
    RUN_SECONDS,
    RUNS,
    SECONDS,
    STAGE_SECONDS,
    UNKNOWN_MODEL,
    Values,
    status_class,
)

StatusCounts = defaultdict[tuple[Codec, int], int]
"""Completed requests by codec and status; a `Counter` takes twice as long."""
RejectionCounts = defaultdict[str, int]
"""Requests that ended without a prediction, by reason."""

CPU_SAMPLE_SECONDS = 0.05
"""Between two runs whose CPU time is measured, which takes up to six microseconds."""
_SYSTEM_SECONDS = 1.0
"""Between two looks at what the operating system counts."""
_PAGE_BYTES = getpagesize()

# A thread may record while the event loop publishes. So numbers are never reset: they only grow, `publish` writes the
# growth since its last call, and nothing recorded meanwhile is lost. A count grows last, because `publish` looks at it
# to see whether there is anything new.


class _HistogramRecorder:
    """Observations for one histogram."""

    def __init__(self, numbers: NDArray[float64], bounds: Sequence[float]) -> None:
        self._numbers = numbers
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._published_counts = self._counts.copy()
        self._published_total = 0.0

    def observe(self, amount: float) -> None:
        bucket = bisect_left(self._bounds, amount)
        self._total += amount
        self._counts[bucket] += 1

    def publish(self) -> float:
        """Publish, and return the growth of the sum since the last call."""
        counts = self._counts.copy()
        growth = 0.0
        if counts != self._published_counts:
            total = self._total
            growth = total - self._published_total
            new = [now - before for now, before in zip(counts, self._published_counts, strict=True)]
            self._write(new, growth)
            self._published_counts, self._published_total = counts, total
        return growth

    def _write(self, new: Sequence[int], growth: float) -> None:
        """Add the new observations of each bucket, and their sum."""
        self._numbers += (*new, growth)


class _RouteHistogramRecorder(_HistogramRecorder):
    """Durations of a model's requests in one codec, for the histograms of the model and of the route."""

    _FIRST = (0, *(SECONDS.index(bound) + 1 for bound in ROUTE_SECONDS))
    """Of the buckets of a model that are one of a route."""

    def __init__(self, row: Values, slot: str, codec: Codec) -> None:
        super().__init__(row.of(REQUEST_SECONDS, slot=slot), SECONDS)
        self._route_numbers = row.of(ROUTE_REQUEST_SECONDS, route=codec.route)

    def _write(self, new: Sequence[int], growth: float) -> None:
        super()._write(new, growth)
        self._route_numbers += (*add.reduceat(new, self._FIRST), growth)


class _RunsRecorder:
    """Runs of one batch size."""

    def __init__(self, row: Values, slot: str, images: int) -> None:
        self.images = images
        self.count = 0
        self.batch_seconds = self.predict_seconds = self.unbatch_seconds = 0.0
        size = str(min(images, MAX_RUN_IMAGES))
        self._runs = row.of(RUNS, slot=slot, images=size)
        self._seconds = row.of(RUN_SECONDS, slot=slot, images=size)
        self._published_count = 0
        self._published_seconds = (0.0, 0.0, 0.0)

    def publish(self) -> int:
        """Publish, and return the number of runs since the last call."""
        count, seconds = self.count, (self.batch_seconds, self.predict_seconds, self.unbatch_seconds)
        new = count - self._published_count
        if new:
            self._runs += new
            self._seconds += [
                now - before for now, before in zip(seconds, self._published_seconds, strict=True)
            ]
            self._published_count, self._published_seconds = count, seconds
        return new


class RunMetrics:
    """Recorder of a model's runs, in the process that runs it."""

    def __init__(self, row: Values, slot: str) -> None:
        self._row = row
        self._slot = slot
        self._seconds = _HistogramRecorder(row.of(INFERENCE_SECONDS, slot=slot), SECONDS)
        self._batch_images = row.of(BATCH_IMAGES, slot=slot)
        self._runs: dict[int, _RunsRecorder] = {}  # by batch size, which the limits of the service bound
        self._cpu_numbers = row.of(RUN_CPU_SECONDS, slot=slot)
        self._cpu_seconds = self._published_cpu_seconds = 0.0
        self._cpu_due = 0.0
        self._runs_since = 0

    def cpu_started(self, now: float) -> float | None:
        """Return the CPU time of the thread if that of the next run is to be measured, and None if it is not."""
        self._runs_since += 1
        if now < self._cpu_due:
            return None
        self._cpu_due = now + CPU_SAMPLE_SECONDS
        return time.thread_time()

    def cpu_ended(self, started: float) -> None:
        """Record the CPU time of a run, which stands for all since the last one that was measured."""
        self._cpu_seconds += self._runs_since * (time.thread_time() - started)
        self._runs_since = 0

    def ran(self, images: int, batch_seconds: float, predict_seconds: float, unbatch_seconds: float) -> None:
        """Record a run over `images` images and the durations of its hooks."""
        self._seconds.observe(predict_seconds)
        runs = self._runs.get(images)
        if runs is None:
            runs = self._runs.setdefault(images, _RunsRecorder(self._row, self._slot, images))
        runs.batch_seconds += batch_seconds
        runs.predict_seconds += predict_seconds
        runs.unbatch_seconds += unbatch_seconds
        runs.count += 1

    def publish(self) -> None:
        """Write what was recorded since the last call to the shared metrics."""
        self._seconds.publish()
        cpu_seconds = self._cpu_seconds
        self._cpu_numbers += cpu_seconds - self._published_cpu_seconds
        self._published_cpu_seconds = cpu_seconds
        counts = [0] * (len(BATCH_SIZES) + 1)
        total = 0
        for runs in list(self._runs.values()):
            new = runs.publish()
            counts[bisect_left(BATCH_SIZES, runs.images)] += new
            total += new * runs.images
        if total:
            self._batch_images += (*counts, total)


class RequestMetrics:
    """Recorder of a model's requests, on the event loop of an API process."""

    def __init__(self, row: Values, slot: str) -> None:
        self.in_flight = self._published_in_flight = 0
        self._row = row
        self._slot = slot
        self._statuses = StatusCounts(int)
        self._digits = [0] * 10
        self._seconds: dict[Codec, _RouteHistogramRecorder] = {}
        self._failed = 0.0
        self._queue = _HistogramRecorder(row.of(QUEUE_SECONDS, slot=slot), SECONDS)
        self._decode = self._inference = self._delivery = self._encode = 0.0
        self._rejected = self._published_rejected = 0
        self._escalated = self._published_escalated = 0
        # Finding a series by its labels takes as long as writing to it.
        self._in_flight = row.of(IN_FLIGHT, slot=slot)
        self._last_prediction = row.of(LAST_PREDICTION, slot=slot)
        self._outcome_seconds = row.of(OUTCOME_SECONDS, slot=slot)
        self._stage_seconds = row.of(STAGE_SECONDS, slot=slot)
        self._images = row.of(IMAGES, slot=slot)
        self._predictions = row.of(PREDICTIONS, slot=slot)
        self._rejected_images = row.of(REJECTED, slot=slot)
        self._escalated_images = row.of(ESCALATED, slot=slot)

    def predicted(
        self,
        digits: Iterable[int],
        decode_seconds: float,
        queue_seconds: float,
        inference_seconds: float,
        delivery_seconds: float,
        encode_seconds: float,
    ) -> None:
        """Record the predicted digits of a request and its duration by stage."""
        self._queue.observe(queue_seconds)
        self._decode += decode_seconds
        self._inference += inference_seconds
        self._delivery += delivery_seconds
        self._encode += encode_seconds
        for digit in digits:
            self._digits[digit] += 1

    def rejected(self, images: int) -> None:
        """Record predictions that are not accepted."""
        self._rejected += images

    def escalated(self, images: int) -> None:
        """Record images that the teacher of a cascade classified."""
        self._escalated += images

    def answered(self, codec: Codec, status: int, *, seconds: float | None) -> None:
        """Record the status of a request; `seconds` is None if its body never arrived."""
        self._statuses[codec, status] += 1
        if seconds is not None:
            durations = self._seconds.get(codec)
            if durations is None:
                durations = self._seconds[codec] = _RouteHistogramRecorder(self._row, self._slot, codec)
            durations.observe(seconds)
            if status != 200:
                self._failed += seconds

    def publish(self) -> None:
        """Write what was recorded since the last call to the shared metrics."""
        if self.in_flight != self._published_in_flight:
            in_flight = self.in_flight
            self._in_flight += (
                in_flight - self._published_in_flight
            )  # a version may have two, old and new files
            self._published_in_flight = in_flight
        if self._statuses:
            self._publish_answers()
        if images := sum(self._digits):
            self._publish_predictions(images)
        if self._rejected != self._published_rejected:
            self._rejected_images += self._rejected - self._published_rejected
            self._published_rejected = self._rejected
        if self._escalated != self._published_escalated:
            self._escalated_images += self._escalated - self._published_escalated
            self._published_escalated = self._escalated

    def _publish_answers(self) -> None:
        growth = sum(durations.publish() for durations in self._seconds.values())
        self._outcome_seconds += (max(0.0, growth - self._failed), self._failed)
        self._failed = 0.0
        _publish_statuses(self._row, self._slot, self._statuses)

    def _publish_predictions(self, images: int) -> None:
        queue = self._queue.publish()
        self._stage_seconds += (self._decode, queue, self._inference, self._delivery, self._encode)
        self._last_prediction[...] = time.time()
        self._images += images
        self._predictions += self._digits
        self._decode = self._inference = self._delivery = self._encode = 0.0
        self._digits = [0] * 10


class UnknownModelMetrics:
    """Recorder of requests that name no served model, which `serving.engine.admission.admission` counts."""

    def __init__(self, row: Values, statuses: StatusCounts) -> None:
        self._row = row
        self._statuses = statuses

    def publish(self) -> None:
        """Write what was counted since the last call to the shared metrics."""
        _publish_statuses(self._row, UNKNOWN_MODEL, self._statuses)


class RejectionMetrics:
    """Recorder of requests that end without a prediction, which `serving.engine.request` counts."""

    def __init__(self, row: Values, counts: RejectionCounts) -> None:
        self._row = row
        self._counts = counts

    def publish(self) -> None:
        """Write what was counted since the last call to the shared metrics."""
        for reason, count in self._counts.items():
            numbers = self._row.of(REJECTED_REQUESTS, reason=reason)
            numbers += count
        self._counts.clear()


class QueueMetrics:
    """Recorder of the requests that wait for a run of one model."""

    def __init__(self, row: Values, slot: str, queued: Callable[[], int]) -> None:
        self._numbers = row.of(QUEUED, slot=slot)
        self._queued = queued

    def publish(self) -> None:
        """Write the present number to the shared metrics."""
        self._numbers[...] = self._queued()


class LoopMetrics:
    """Recorder of the delays of the event loop."""

    def __init__(self, row: Values) -> None:
        self._lags = _HistogramRecorder(row.of(LOOP_LAG), LAG_SECONDS)

    def late(self, seconds: float) -> None:
        """Record by how much a timer was late."""
        self._lags.observe(max(0.0, seconds))

    def publish(self) -> None:
        """Write what was recorded since the last call to the shared metrics."""
        self._lags.publish()


class ProcessMetrics:
    """CPU time (user and system, all threads) of this process since it started, its memory and its descriptors.

    A fork starts at zero. CPU time per prediction is the growth of the sum over all processes between two scrapes,
    divided by the growth of `distillery_images_total`, while one model alone is under load.
    """

    def __init__(self, row: Values, process: Literal["api", "worker"]) -> None:
        self._seconds = row.of(PROCESS_CPU_SECONDS, process=process)
        self._published = 0.0
        self._running = row.of(PROCESSES_RUNNING, process=process)
        self._memory = row.of(PROCESS_MEMORY, process=process)
        self._descriptors = row.of(PROCESS_DESCRIPTORS, process=process)
        self._max_descriptors = row.of(PROCESS_MAX_DESCRIPTORS, process=process)
        self._throttling = [
            row.of(name) for name in (CPU_PERIODS, CPU_THROTTLED_PERIODS, CPU_THROTTLED_SECONDS)
        ]
        self._due = 0.0

    def publish(self) -> None:
        """Add the CPU time used since the last call to the shared counter; once a second, write the rest as well."""
        seconds = time.process_time()
        self._seconds += seconds - self._published
        self._published = seconds
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _SYSTEM_SECONDS
            self._running[...] = 1
            self._publish_system()

    def _publish_system(self) -> None:
        """Write what the operating system counts; without /proc, as on macOS, nothing."""
        with suppress(OSError):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._memory[...] = pages * _PAGE_BYTES
            self._descriptors[...] = len(list(Path("/proc/self/fd").iterdir())) - 1  # that of the folder
            self._max_descriptors[...] = getrlimit(RLIMIT_NOFILE)[0]
        for numbers, value in zip(self._throttling, cpu_throttling(), strict=True):
            numbers[...] = value


def _publish_statuses(row: Values, slot: str, statuses: StatusCounts) -> None:
    for (codec, status), count in statuses.items():
        requests = row.of(REQUESTS, slot=slot, protocol=codec.name, status=str(status))
        requests += count
        by_route = row.of(ROUTE_REQUESTS, route=codec.route, status=status_class(status))
        by_route += count
    statuses.clear()
