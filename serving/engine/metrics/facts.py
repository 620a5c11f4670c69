"""Metrics that do not change while the service runs: its build and limits, and its models by their manifests."""

import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version as version_of

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as Family

from distillery.machine import usable_cores
from serving.model.release import Release
from serving.model.repository import ModelEntry

_VERSION = ("model", "version")


def service_facts(max_in_flight: int) -> Iterator[Family]:
    """Return the facts of a service that admits `max_in_flight` requests in all its processes."""
    build = GaugeMetricFamily(
        "distillery_build_info",
        "Always 1; the labels are the versions of the software.",
        labels=("version", "python", "onnxruntime", "litserve"),
    )
    build.add_metric(
        (
            version_of("distillery"),
            platform.python_version(),
            version_of("onnxruntime"),
            version_of("litserve"),
        ),
        1,
    )
    yield build
    for name, text, value in (
        ("distillery_start_time_seconds", "Time of the service's start.", time.time()),
        ("distillery_requests_in_flight_limit", "Prediction requests that may be in flight.", max_in_flight),
        (
            "distillery_usable_cores",
            "CPU cores that the service may keep busy, by affinity and quota.",
            usable_cores(),
        ),
    ):
        yield GaugeMetricFamily(name, text, value=value)


def release_facts(release: Release, versions: Mapping[str, tuple[str, str]]) -> Iterator[Family]:
    """Return the aliases, by name, and what the candidate is given."""
    info = GaugeMetricFamily(
        "distillery_release_info", "Always 1; the version that an alias names.", labels=("alias", *_VERSION)
    )
    for alias, version in versions.items():
        info.add_metric((alias, *version), 1)
    share = GaugeMetricFamily(
        "distillery_release_share_ratio",
        "Share of the stable version's requests that the candidate serves (split), or repeats (shadow).",
        labels=("kind",),
    )
    share.add_metric(("split",), release.share)
    share.add_metric(("shadow",), release.shadow)
    yield from (info, share)


def model_facts(models: Iterable[ModelEntry]) -> Iterator[Family]:
    """Return what the manifests of the models state."""
    info = GaugeMetricFamily(
        "distillery_model_info",
        "Always 1; the labels describe the model.",
        labels=("model", "version", "precision", "architecture"),
    )
    accuracy = GaugeMetricFamily(
        "distillery_model_test_accuracy_ratio",
        "Share of the 10,000 test digits classified correctly.",
        labels=_VERSION,
    )
    accepted = GaugeMetricFamily(
        "distillery_model_validation_accepted_ratio",
        "Share of the validation digits whose prediction is accepted.",
        labels=_VERSION,
    )
    size = GaugeMetricFamily("distillery_model_size_bytes", "Size of the ONNX file.", labels=_VERSION)
    parameters = GaugeMetricFamily(
        "distillery_model_parameters", "Parameters of the network.", labels=_VERSION
    )
    for manifest in (model.manifest for model in models):
        version = manifest.name, manifest.version
        info.add_metric((*version, manifest.precision, manifest.architecture), 1)
        accuracy.add_metric(version, manifest.test_accuracy)
        if rule := manifest.acceptance:
            accepted.add_metric(version, rule.accepted / rule.digits)
        size.add_metric(version, manifest.size_bytes)
        parameters.add_metric(version, manifest.parameters)
    yield from (info, accuracy, accepted, size, parameters)
