"""The Prometheus metrics of the service, and their exposition at /metrics.

In prometheus_client's multiprocess mode every process keeps its values in files of one folder, and a scrape sums
them. The folder is named by an environment variable that must be set before this module is imported, which
`serving.__main__` does. `serving.engine.recorder` records values within a process.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from serving.model.repository import ModelEntry

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

SECONDS = tuple(
    round(step * decade, 9)
    for decade in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    for step in (1, 1.5, 2, 3, 5, 7.5)
    if 2e-5 <= step * decade <= 5
)
"""Bucket bounds from 20 µs to 5 s, about a factor of 1.5 apart: quantiles are accurate to about 20 %."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_REGISTRY = CollectorRegistry()


class BulkHistogram(Histogram):
    """A histogram that accepts many observations at once, through internals of prometheus_client that a test checks."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add `counts[i]` observations to bucket i, and `total` to their sum."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


REQUESTS = Counter(
    "distillery_requests_total",
    "Completed prediction requests; model is empty if the request named an unknown model.",
    ("model", "protocol", "status"),
    registry=_REGISTRY,
)
REQUEST_SECONDS = BulkHistogram(
    "distillery_request_duration_seconds",
    "Time from the body received to the response handed over.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
QUEUE_SECONDS = BulkHistogram(
    "distillery_queue_wait_seconds",
    "Time from the input decoded to the start of the run that includes it.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
INFERENCE_SECONDS = BulkHistogram(
    "distillery_inference_duration_seconds",
    "Duration of one run of the model over one batch.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
BATCH_IMAGES = BulkHistogram(
    "distillery_batch_size_images",
    "Images in one run of the model.",
    ("model",),
    buckets=BATCH_SIZES,
    registry=_REGISTRY,
)
STAGES = ("decode", "queue", "inference", "delivery", "encode")
"""Of a successful request; `delivery` is the wait for the event loop after its run."""

STAGE_SECONDS = Counter(
    "distillery_request_stage_seconds_total",
    "Time of successful requests by stage; a run counts in full for each request in it.",
    ("model", "stage"),
    registry=_REGISTRY,
)
OUTCOMES = ("success", "failure")
OUTCOME_SECONDS = Counter(
    "distillery_request_outcome_seconds_total",
    "The seconds of distillery_request_duration_seconds, by outcome: success is status 200.",
    ("model", "outcome"),
    registry=_REGISTRY,
)
LAST_PREDICTION = Gauge(
    "distillery_last_prediction_timestamp_seconds",
    "Time of the last response with predictions; 0 before the first.",
    ("model",),
    multiprocess_mode="max",
    registry=_REGISTRY,
)
RUNS = Counter(
    "distillery_runs_total", "Runs of the model by exact batch size.", ("model", "images"), registry=_REGISTRY
)
RUN_STAGES = ("batch", "predict", "unbatch")
RUN_SECONDS = Counter(
    "distillery_run_seconds_total",
    "Duration of a run's stages by exact batch size.",
    ("model", "images", "stage"),
    registry=_REGISTRY,
)
_BY_EXACT_SIZE = {"distillery_runs", "distillery_run_seconds"}
"""Hundreds of series for `serving.http.v2_statistics`; /metrics has histograms instead."""

IMAGES = Counter("distillery_images_total", "Images classified.", ("model",), registry=_REGISTRY)
PREDICTIONS = Counter(
    "distillery_predictions_total", "Images classified, by digit.", ("model", "digit"), registry=_REGISTRY
)
REJECTED = Counter(
    "distillery_rejected_predictions_total",
    "Images classified whose confidence is below the model's threshold: accepted is false.",
    ("model",),
    registry=_REGISTRY,
)
PROCESS_CPU_SECONDS = Counter(
    "distillery_process_cpu_seconds_total",
    "CPU time, user and system, of the processes that answer requests (api) or run models for them (worker).",
    ("process",),
    registry=_REGISTRY,
)
IN_FLIGHT = Gauge(
    "distillery_requests_in_flight",
    "Prediction requests in flight.",
    ("model",),
    multiprocess_mode="livesum",
    registry=_REGISTRY,
)


def count_unknown_model(protocol: str, status: int) -> None:
    """Count a request that named an unknown model; the name itself must not become a label."""
    REQUESTS.labels("", protocol, str(status)).inc()


def forget_process(pid: int) -> None:
    """Remove the gauges of a process that died, such as its requests in flight; its counters remain."""
    if FOLDER_VARIABLE in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def merged(kind: str = "") -> Iterable[Metric]:
    """Return the sums over all processes, including those that died. Reads files: not to be called on the event loop.

    A process has one file per kind of metric: "counter", "gauge" and "histogram". Only values of one file are of the
    same moment: reading all files takes milliseconds, during which a process may publish.
    """
    if FOLDER_VARIABLE in os.environ:
        files = list(_files(Path(os.environ[FOLDER_VARIABLE]), kind))
        return MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call, no-any-return]
    return _REGISTRY.collect()


def _files(folder: Path, kind: str) -> Iterator[str]:
    """Yield all files but those just created, which are empty and would break the merge, and those just deleted."""
    for path in folder.glob(f"{kind}*.db"):
        with suppress(FileNotFoundError):
            if path.stat().st_size:
                yield str(path)


def exposition(models: Iterable[ModelEntry]) -> bytes:
    """Return the metrics of all processes in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_ProcessMetrics())
    registry.register(_ManifestMetrics(models))
    return generate_latest(registry)


class _ProcessMetrics(Collector):
    """The metrics of the processes that /metrics shows."""

    def collect(self) -> Iterable[Metric]:
        return (metric for metric in merged() if metric.name not in _BY_EXACT_SIZE)


class _ManifestMetrics(Collector):
    """Gauges read from the manifests, which are the same in every process."""

    def __init__(self, models: Iterable[ModelEntry]) -> None:
        self._manifests = [model.manifest for model in models]

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "distillery_model_info",
            "Always 1; the labels describe the model.",
            labels=("model", "version", "precision", "architecture"),
        )
        accuracy = GaugeMetricFamily(
            "distillery_model_test_accuracy_ratio",
            "Share of the 10,000 test digits classified correctly.",
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
