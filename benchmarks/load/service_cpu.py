"""CPU time per prediction, from the service's own counters.

Background load hardly affects it, while it slows every request on the wall clock.
"""

import time
import urllib.request
from collections.abc import Callable
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.errors import BenchmarkError

PUBLISHED_S = 0.2
"""An API process publishes its counters every 0.1 s."""

T = TypeVar("T")


class ServiceCpu:
    """The CPU time that the service at `url` (without a path) takes."""

    def __init__(self, url: str) -> None:
        self.url = f"{url.rstrip('/')}/metrics"

    def per_prediction(self, model: str, load: Callable[[], T]) -> tuple[T, float]:
        """Run `load` on this model alone; return its result and µs of CPU time of all processes per prediction.

        Raises `BenchmarkError` when the service does not publish its CPU time or made no prediction.
        """
        seconds, predictions = self._read(model)
        result = load()
        time.sleep(PUBLISHED_S)
        seconds_after, predictions_after = self._read(model)
        if predictions_after == predictions:
            raise BenchmarkError(f"{self.url}: {model} made no prediction under load")
        return result, (seconds_after - seconds) * 1e6 / (predictions_after - predictions)

    def _read(self, model: str) -> tuple[float, float]:
        """Return seconds of CPU time of all processes, and predictions of `model`."""
        try:
            with urllib.request.urlopen(self.url, timeout=10) as response:  # noqa: S310 - http, checked by --url
                text = response.read().decode()
        except OSError as error:
            raise BenchmarkError(f"{self.url}: no response: {error}") from error
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        cpu = [sample.value for sample in samples if sample.name == "distillery_process_cpu_seconds_total"]
        if not cpu:
            raise BenchmarkError(f"{self.url} has no distillery_process_cpu_seconds_total")
        images = (sample for sample in samples if sample.name == "distillery_images_total")
        return sum(cpu), sum(sample.value for sample in images if sample.labels["model"] == model)
