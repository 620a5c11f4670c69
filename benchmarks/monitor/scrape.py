"""The metrics of a service at one moment, and their growth between two."""

import math
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.errors import BenchmarkError

PREFIX = "distillery_"
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """All samples of `/metrics`, without the common prefix of their names."""

    taken: float
    """`time.monotonic`"""
    samples: dict[str, dict[Labels, float]]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the Prometheus text format. Raises `BenchmarkError` if it is that of another service."""
        samples: dict[str, dict[Labels, float]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = frozenset(sample.labels.items())
                    samples.setdefault(sample.name.removeprefix(PREFIX), {})[labels] = sample.value
        except ValueError as error:
            raise BenchmarkError(f"/metrics is not in the Prometheus text format: {error}") from None
        if "requests_total" not in samples:
            raise BenchmarkError(f"/metrics has no {PREFIX}requests_total: it is that of another service")
        return cls(time.monotonic(), samples)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels; 0 if it has none."""
        return sum(self.each(name, **labels).values())

    def each(self, name: str, **labels: str) -> dict[Labels, float]:
        """Return the samples of a metric that have these labels."""
        wanted = labels.items()
        return {found: value for found, value in self.samples.get(name, {}).items() if wanted <= found}

    def values_of(self, name: str, label: str) -> list[str]:
        """Return the values that a label of a metric has, in their order in the text."""
        return list(dict.fromkeys(dict(labels)[label] for labels in self.samples.get(name, {})))


class Growth(NamedTuple):
    """What happened between two scrapes of one service."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        return self.after.taken - self.before.taken

    def of(self, name: str, **labels: str) -> float:
        """Return the growth of a counter; that since its start if the service has started anew."""
        before, after = self.before.total(name, **labels), self.after.total(name, **labels)
        return after - before if after >= before else after

    def rate(self, name: str, **labels: str) -> float:
        """Return the growth per second."""
        return self.of(name, **labels) / self.seconds

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the rates by the value of a label, those above 0."""
        rates = {value: self.rate(name, **{label: value}) for value in self.after.values_of(name, label)}
        return {value: rate for value, rate in rates.items() if rate > 0}

    def quantile(self, name: str, quantile: float, **labels: str) -> float | None:
        """Return a quantile of a histogram, interpolated within its bucket as Prometheus does; None without events."""
        counts = sorted(
            (float(bound), self.of(f"{name}_bucket", le=bound, **labels))
            for bound in self.after.values_of(f"{name}_bucket", "le")
        )
        if not counts or not counts[-1][1]:
            return None
        rank = quantile * counts[-1][1]
        lower_bound = lower = 0.0
        for bound, count in counts:
            if count >= rank:
                if math.isinf(bound):
                    return lower_bound
                return lower_bound + (bound - lower_bound) * (rank - lower) / ((count - lower) or 1)
            lower_bound, lower = bound, count
        return lower_bound


class Service:
    """A service whose metrics are read; its connection is kept."""

    def __init__(self, url: str, *, ca_file: Path | None = None, api_key: str | None = None) -> None:
        context = ssl.create_default_context(cafile=ca_file) if ca_file else True
        headers = {"X-API-Key": api_key} if api_key else {}
        self._url = f"{url.rstrip('/')}/metrics"
        self._client = httpx.Client(timeout=10, verify=context, headers=headers)

    def scrape(self) -> Scrape:
        """Return its present metrics. Raises `BenchmarkError`."""
        try:
            response = self._client.get(self._url)
        except httpx.HTTPError as error:
            raise BenchmarkError(f"{self._url}: no response: {error}") from None
        if response.status_code != 200:
            hint = "; --api-key is needed, of scope metrics" if response.status_code in (401, 403) else ""
            raise BenchmarkError(f"{self._url}: status {response.status_code}, expected 200{hint}")
        return Scrape.parse(response.text)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
