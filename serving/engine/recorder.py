"""Recorders of a process's requests and runs, published to the shared metrics ten times a second.

Writing to the shared files of `serving.engine.metrics` costs more than a run of a small model. Recording in plain
numbers costs a tenth of that; `publish` writes what has accumulated.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from serving.engine.metrics import (
    BATCH_IMAGES,
    BATCH_SIZES,
    IMAGES,
    IN_FLIGHT,
    INFERENCE_SECONDS,
    LAST_PREDICTION,
    OUTCOME_SECONDS,
    OUTCOMES,
    PREDICTIONS,
    PROCESS_CPU_SECONDS,
    QUEUE_SECONDS,
    REJECTED,
    REQUEST_SECONDS,
    REQUESTS,
    RUN_SECONDS,
    RUN_STAGES,
    RUNS,
    SECONDS,
    STAGE_SECONDS,
    STAGES,
    BulkHistogram,
)

# A thread may record while the event loop publishes. So numbers are never reset: they only grow, `publish` writes the
# growth since its last call, and nothing recorded meanwhile is lost. A count grows last, because `publish` looks at it
# to see whether there is anything new.


class _HistogramRecorder:
    """Observations for one histogram."""

    def __init__(self, histogram: BulkHistogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
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
            self._histogram.add(new, growth)
            self._published_counts, self._published_total = counts, total
        return growth


class _RunsRecorder:
    """Runs of one batch size."""

    def __init__(self, model: str, images: int) -> None:
        self.images = images
        self.count = 0
        self.batch_seconds = self.predict_seconds = self.unbatch_seconds = 0.0
        self._runs = RUNS.labels(model, str(images))
        self._seconds = [RUN_SECONDS.labels(model, str(images), stage) for stage in RUN_STAGES]
        self._published: tuple[int, tuple[float, ...]] = (0, (0.0,) * len(RUN_STAGES))

    def publish(self) -> int:
        """Publish, and return the number of runs since the last call."""
        count, seconds = self.count, (self.batch_seconds, self.predict_seconds, self.unbatch_seconds)
        published_count, published_seconds = self._published
        if count > published_count:
            self._runs.inc(count - published_count)
            for counter, now, before in zip(self._seconds, seconds, published_seconds, strict=True):
                counter.inc(now - before)
            self._published = count, seconds
        return count - published_count


class RunMetrics:
    """Recorder of a model's runs, in the process that runs it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._seconds = _HistogramRecorder(INFERENCE_SECONDS.labels(model), SECONDS)
        self._histogram = BATCH_IMAGES.labels(model)
        self._runs: dict[int, _RunsRecorder] = {}  # by batch size, which --max-batch and --max-images bound

    def ran(self, images: int, batch_seconds: float, predict_seconds: float, unbatch_seconds: float) -> None:
        """Record a run over `images` images and the durations of its hooks."""
        self._seconds.observe(predict_seconds)
        runs = self._runs.get(images)
        if runs is None:
            runs = self._runs.setdefault(images, _RunsRecorder(self._model, images))
        runs.batch_seconds += batch_seconds
        runs.predict_seconds += predict_seconds
        runs.unbatch_seconds += unbatch_seconds
        runs.count += 1

    def publish(self) -> None:
        """Write what was recorded since the last call to the shared metrics."""
        self._seconds.publish()
        counts = [0] * (len(BATCH_SIZES) + 1)
        total = 0
        for runs in list(self._runs.values()):
            new = runs.publish()
            counts[bisect_left(BATCH_SIZES, runs.images)] += new
            total += new * runs.images
        if total:
            self._histogram.add(counts, total)


class RequestMetrics:
    """Recorder of a model's requests, on the event loop of an API process."""

    def __init__(self, model: str) -> None:
        self.in_flight = self._published_in_flight = 0
        self._model = model
        self._statuses: defaultdict[tuple[str, int], int] = defaultdict(int, {("rest", 200): 0})
        self._digits = [0] * 10
        self._seconds = _HistogramRecorder(REQUEST_SECONDS.labels(model), SECONDS)
        self._failed = 0.0
        self._queue = _HistogramRecorder(QUEUE_SECONDS.labels(model), SECONDS)
        self._decode = self._inference = self._delivery = self._encode = 0.0
        # Looking up a metric by its labels takes as long as writing to it.
        self._in_flight = IN_FLIGHT.labels(model)
        self._last_prediction = LAST_PREDICTION.labels(model)
        self._outcome_seconds = [OUTCOME_SECONDS.labels(model, outcome) for outcome in OUTCOMES]
        self._stage_seconds = [STAGE_SECONDS.labels(model, stage) for stage in STAGES]
        self._images = IMAGES.labels(model)
        self._predictions = [PREDICTIONS.labels(model, str(digit)) for digit in range(10)]
        self._rejected = self._published_rejected = 0
        self._rejected_counter = REJECTED.labels(model)

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

    def answered(self, protocol: str, status: int, *, seconds: float | None) -> None:
        """Record the status of a request; `seconds` is None if its body never arrived."""
        self._statuses[protocol, status] += 1
        if seconds is not None:
            self._seconds.observe(seconds)
            if status != 200:
                self._failed += seconds

    def publish(self) -> None:
        """Write what was recorded since the last call to the shared metrics."""
        if self.in_flight != self._published_in_flight:
            self._published_in_flight = self.in_flight
            self._in_flight.set(self.in_flight)
        if self._statuses:
            self._publish_answers()
        if images := sum(self._digits):
            self._publish_predictions(images)
        if self._rejected != self._published_rejected:
            self._rejected_counter.inc(self._rejected - self._published_rejected)
            self._published_rejected = self._rejected

    def _publish_answers(self) -> None:
        success, failure = self._outcome_seconds
        success.inc(max(0.0, self._seconds.publish() - self._failed))
        failure.inc(self._failed)
        for (protocol, status), count in self._statuses.items():
            REQUESTS.labels(self._model, protocol, str(status)).inc(count)
        self._failed = 0.0
        self._statuses.clear()

    def _publish_predictions(self, images: int) -> None:
        stages = (self._decode, self._queue.publish(), self._inference, self._delivery, self._encode)
        for counter, seconds in zip(self._stage_seconds, stages, strict=True):
            counter.inc(seconds)
        self._last_prediction.set(time.time())
        self._images.inc(images)
        for counter, count in zip(self._predictions, self._digits, strict=True):
            if count:
                counter.inc(count)
        self._decode = self._inference = self._delivery = self._encode = 0.0
        self._digits = [0] * 10


class CpuMetrics:
    """CPU time (user and system, all threads) of this process since it started; a fork starts at zero.

    CPU time per prediction is the growth of the sum over all processes between two scrapes, divided by the
    growth of `distillery_images_total`, while one model alone is under load.
    """

    def __init__(self, process: Literal["api", "worker"]) -> None:
        self._counter = PROCESS_CPU_SECONDS.labels(process)
        self._published = 0.0

    def publish(self) -> None:
        """Add the CPU time used since the last call to the shared counter."""
        seconds = time.process_time()
        self._counter.inc(seconds - self._published)
        self._published = seconds
