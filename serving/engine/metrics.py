"""What the service counts, and how the counts of all its processes come together at /metrics.

prometheus_client's multiprocess mode keeps every process's numbers in files of one folder; a scrape adds
them up. The folder is named by an environment variable that must be set before this module is imported:
`serving.config` does so. What a process counts meanwhile stands in `serving.engine.recorder`.
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
"""Bucket bounds from 20 µs to 5 s, about 1.5 apart, so that a quantile is known to about 20 %."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_REGISTRY = CollectorRegistry()


class BulkHistogram(Histogram):
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
REQUEST_SECONDS = BulkHistogram(
    "distillery_request_duration_seconds",
    "From the body received to the response handed over.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
QUEUE_SECONDS = BulkHistogram(
    "distillery_queue_wait_seconds",
    "From the input decoded to the start of the run that answers it.",
    ("model",),
    buckets=SECONDS,
    registry=_REGISTRY,
)
INFERENCE_SECONDS = BulkHistogram(
    "distillery_inference_duration_seconds",
    "One run of the model over one batch.",
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
"""Of an answered request; `delivery` is the wait for its turn once its run has finished."""

STAGE_SECONDS = Counter(
    "distillery_request_stage_seconds_total",
    "Where answered requests spent their time; a run counts whole for each request in it.",
    ("model", "stage"),
    registry=_REGISTRY,
)
OUTCOMES = ("success", "failure")
OUTCOME_SECONDS = Counter(
    "distillery_request_outcome_seconds_total",
    "The seconds of distillery_request_duration_seconds, apart for answers with status 200 and all others.",
    ("model", "outcome"),
    registry=_REGISTRY,
)
LAST_PREDICTION = Gauge(
    "distillery_last_prediction_timestamp_seconds",
    "When a request was last answered with predictions; 0 before the first.",
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
    "Seconds of a run's stages by exact batch size.",
    ("model", "images", "stage"),
    registry=_REGISTRY,
)
_BY_EXACT_SIZE = {"distillery_runs", "distillery_run_seconds"}
"""For `serving.http.v2_statistics` only: hundreds of series, of which /metrics has a histogram already."""

IMAGES = Counter("distillery_images_total", "Images classified.", ("model",), registry=_REGISTRY)
PREDICTIONS = Counter(
    "distillery_predictions_total", "Images classified, by digit.", ("model", "digit"), registry=_REGISTRY
)
PROCESS_CPU_SECONDS = Counter(
    "distillery_process_cpu_seconds_total",
    "CPU time, user and system, of the processes that answer requests (api) or run models for them (worker).",
    ("process",),
    registry=_REGISTRY,
)
IN_FLIGHT = Gauge(
    "distillery_requests_in_flight",
    "Prediction requests being answered.",
    ("model",),
    multiprocess_mode="livesum",
    registry=_REGISTRY,
)


def count_unknown_model(protocol: str, status: int) -> None:
    """Note a request that named no served model; its words never become a label."""
    REQUESTS.labels("", protocol, str(status)).inc()


def forget_process(pid: int) -> None:
    """Drop what a process that died had under way; what it counted stays counted."""
    if FOLDER_VARIABLE in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def merged(kind: str = "") -> Iterable[Metric]:
    """All processes' numbers added up, those that have died included. Reads files: not for the event loop.

    A process keeps a file for each kind of metric, "counter", "gauge" and "histogram". Only what stands in the
    same file is of the same moment: reading all of them takes milliseconds, in which a process may publish.
    """
    if FOLDER_VARIABLE in os.environ:
        files = list(_files(Path(os.environ[FOLDER_VARIABLE]), kind))
        return MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call, no-any-return]
    return _REGISTRY.collect()


def _files(folder: Path, kind: str) -> Iterator[str]:
    """All but those just created, which are empty and would break the merge, and those just deleted."""
    for path in folder.glob(f"{kind}*.db"):
        with suppress(FileNotFoundError):
            if path.stat().st_size:
                yield str(path)


def exposition(models: Iterable[ModelEntry]) -> bytes:
    """All processes' metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Counted())
    registry.register(_ModelFacts(models))
    return generate_latest(registry)


class _Counted(Collector):
    """What the processes counted and Prometheus is to know."""

    def collect(self) -> Iterable[Metric]:
        return (metric for metric in merged() if metric.name not in _BY_EXACT_SIZE)


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
