"""What the service counts, and how the counts of all its processes come together at /metrics.

prometheus_client's multiprocess mode keeps every process's numbers in files of one folder; a scrape adds
them up. The folder is named by an environment variable that must be set before this module is imported:
`serving.config` does so.
"""

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from serving.repository import ModelEntry

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

SECONDS = tuple(
    round(step * decade, 9)
    for decade in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    for step in (1, 1.5, 2, 3, 5, 7.5)
    if 2e-5 <= step * decade <= 5
)
"""Bucket bounds from 20 µs to 5 s, about 1.5 apart, so that a quantile is known to about 20 %."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_REGISTRY = CollectorRegistry()


class _BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add `counts[i]` observations to bucket i, and `total` to their sum."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


REQUESTS = Counter(
    "distillery_requests_total",
    "Answered prediction requests; model is empty where the request named none that is served.",
    ("model", "protocol", "status"),
    registry=_REGISTRY,
)
REQUEST_SECONDS = _BulkHistogram(
    "distillery_request_duration_seconds",
    "From the body received to the response handed over.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
QUEUE_SECONDS = _BulkHistogram(
    "distillery_queue_wait_seconds",
    "From the input decoded to the start of the run that answers it.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
INFERENCE_SECONDS = _BulkHistogram(
    "distillery_inference_duration_seconds",
    "One run of the model over one batch.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
BATCH_IMAGES = _BulkHistogram(
    "distillery_batch_size_images",
    "Images in one run of the model.",
    ("model",),
    buckets=BATCH_SIZES,
    registry=_REGISTRY,
)
IMAGES = Counter("distillery_images_total", "Images classified.", ("model",), registry=_REGISTRY)
PREDICTIONS = Counter(
    "distillery_predictions_total", "Images classified, by digit.", ("model", "digit"), registry=_REGISTRY
)
IN_FLIGHT = Gauge(
    "distillery_requests_in_flight",
    "Prediction requests being answered.",
    ("model",),
    multiprocess_mode="livesum",
    registry=_REGISTRY,
)


class _Tally:
    """Observations noted but not yet published, at a tenth of a histogram's price."""

    def __init__(self, histogram: _BulkHistogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, amount: float) -> None:
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._total += amount

    def publish(self) -> None:
        if self._total:
            self._histogram.add(self._counts, self._total)
            self._counts = [0] * len(self._counts)
            self._total = 0.0


class RunMetrics:
    """What the process that runs a model notes of each run."""

    def __init__(self, model: str) -> None:
        self._seconds = _Tally(INFERENCE_SECONDS.labels(model), SECONDS)
        self._images = _Tally(BATCH_IMAGES.labels(model), BATCH_SIZES)

    def ran(self, images: int, seconds: float) -> None:
        self._seconds.observe(seconds)
        self._images.observe(images)

    def publish(self) -> None:
        """Make visible to all processes what was noted since the last time."""
        self._seconds.publish()
        self._images.publish()


class RequestMetrics:
    """What the process that answers requests notes of each.

    Writing to the shared files costs more than a small model does, so a request is noted in plain integers,
    and `publish`, called a few times a second, writes what has come together.
    """

    def __init__(self, model: str) -> None:
        self.in_flight = 0
        self._model = model
        self._statuses: defaultdict[tuple[str, int], int] = defaultdict(int, {("rest", 200): 0})
        self._digits = [0] * 10
        self._seconds = _Tally(REQUEST_SECONDS.labels(model), SECONDS)
        self._queue_seconds = _Tally(QUEUE_SECONDS.labels(model), SECONDS)

    def predicted(self, digits: Iterable[int], *, queue_seconds: float) -> None:
        self._queue_seconds.observe(queue_seconds)
        for digit in digits:
            self._digits[digit] += 1

    def answered(self, protocol: str, status: int, *, seconds: float | None) -> None:
        self._statuses[protocol, status] += 1
        if seconds is not None:
            self._seconds.observe(seconds)

    def publish(self) -> None:
        """Make visible to all processes what was noted since the last time."""
        self._seconds.publish()
        self._queue_seconds.publish()
        IN_FLIGHT.labels(self._model).set(self.in_flight)
        IMAGES.labels(self._model).inc(sum(self._digits))
        for digit, count in enumerate(self._digits):
            PREDICTIONS.labels(self._model, str(digit)).inc(count)
        for (protocol, status), count in self._statuses.items():
            REQUESTS.labels(self._model, protocol, str(status)).inc(count)
        self._digits = [0] * 10
        self._statuses = defaultdict(int, dict.fromkeys(self._statuses, 0))


def count_unknown_model(protocol: str, status: int) -> None:
    """Note a request that named no served model; its words never become a label."""
    REQUESTS.labels("", protocol, str(status)).inc()


def forget_process(pid: int) -> None:
    """Drop what a process that died had under way; what it counted stays counted."""
    if FOLDER_VARIABLE in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def exposition(models: Iterable[ModelEntry]) -> bytes:
    """All processes' metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    if FOLDER_VARIABLE in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry = _REGISTRY
    facts = CollectorRegistry()
    facts.register(_ModelFacts(models))
    return generate_latest(registry) + generate_latest(facts)


class _ModelFacts(Collector):
    """What the manifests say: the same in every process, so nothing is stored for it."""

    def __init__(self, models: Iterable[ModelEntry]) -> None:
        self._manifests = [model.manifest for model in models]

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "distillery_model_info",
            "Always 1; what the model is.",
            labels=("model", "version", "precision", "architecture"),
        )
        accuracy = GaugeMetricFamily(
            "distillery_model_test_accuracy_ratio",
            "Share of the 10,000 test digits classified right.",
            labels=("model",),
        )
        size = GaugeMetricFamily("distillery_model_size_bytes", "Size of the ONNX file.", labels=("model",))
        parameters = GaugeMetricFamily(
            "distillery_model_parameters", "Parameters of the network.", labels=("model",)
        )
        for manifest in self._manifests:
            info.add_metric((manifest.name, manifest.version, manifest.precision, manifest.architecture), 1)
            accuracy.add_metric((manifest.name,), manifest.test_accuracy)
            size.add_metric((manifest.name,), manifest.size_bytes)
            parameters.add_metric((manifest.name,), manifest.parameters)
        return chain((info, accuracy, size, parameters))
