"""Latencies as weighted samples: exact quantiles, and histograms small enough for a result file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

BUCKET_RATIO = 1.05
"""Each bucket of a stored histogram is 5 % wider than the one before, which is finer than runs agree."""


@dataclass(frozen=True)
class Latencies:
    """Durations in microseconds, ascending, and the number of samples of each."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def from_samples(cls, samples: ArrayLike) -> Self:
        """Take one duration in microseconds per sample."""
        values, counts = np.unique(np.asarray(samples, dtype=np.float64), return_counts=True)
        return cls(values, counts)

    @classmethod
    def from_counts(cls, counts: Mapping[int, int]) -> Self:
        """Take a mapping of microseconds to numbers of samples."""
        values = np.array(sorted(counts), dtype=np.float64)
        return cls(values, np.array([counts[int(value)] for value in values], dtype=np.int64))

    @classmethod
    def merge(cls, parts: Iterable["Latencies"]) -> Self:
        """Pool the samples of several runs."""
        parts = list(parts)
        values, index = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        counts = np.zeros(len(values), dtype=np.int64)
        np.add.at(counts, index, np.concatenate([part.counts for part in parts]))
        return cls(values, counts)

    @property
    def total(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean in microseconds."""
        return float(np.average(self.values, weights=self.counts))

    def quantile(self, fraction: float) -> float:
        """Return the smallest duration, in microseconds, that `fraction` of the samples do not exceed."""
        rank = max(1, int(np.ceil(fraction * self.total)))
        return float(self.values[np.searchsorted(np.cumsum(self.counts), rank)])

    def quantiles(self, unit: str) -> dict[str, float]:
        """Return `p50`, `p90` and `p99`, each with its `unit` ("us" or "ms") as a suffix."""
        scale = {"us": 1.0, "ms": 1e-3}[unit]
        return {f"p{p}_{unit}": round(self.quantile(p / 100) * scale, 4) for p in (50, 90, 99)}

    def compact(self) -> dict[str, Any]:
        """Return a histogram for a result file.

        `counts[i]` samples lie between `ratio**(first + i)` and `ratio**(first + i + 1)` microseconds.
        """
        buckets = np.floor(np.log(np.maximum(self.values, 1e-3)) / np.log(BUCKET_RATIO)).astype(np.int64)
        first = int(buckets[0])
        counts = np.bincount(buckets - first, weights=self.counts).astype(np.int64)
        return {"unit": "us", "ratio": BUCKET_RATIO, "first": first, "counts": counts.tolist()}
