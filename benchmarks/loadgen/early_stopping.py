"""What a percentile of so many queries is worth: LoadGen's early stopping.

A run of n queries, t of which were slower than a bound, shows at 99 % confidence that the p-th percentile of
the system lies below the bound when a system that has just p of its queries below it would give t or fewer
slow ones in at most 1 % of such runs: P(Binomial(n, 1 - p) <= t) <= 0.01. That is the test of LoadGen's
`early_stopping.cc` (github.com/mlcommons/inference) with its tolerance d = 0. It takes queries as independent;
those that waited behind the same slow one are not, so runs are repeated with other seeds as well.
"""

import math

import numpy as np

from benchmarks.load.latency import Latencies

CONFIDENCE = 0.99


def allowed_overlatency(queries: int, percentile: float, confidence: float = CONFIDENCE) -> int:
    """Return how many of `queries` may be slower than the bound; -1 when they are too few to show anything."""
    slow = 1 - percentile
    counts = np.arange(math.ceil(queries * slow))
    steps = np.log((queries - counts) / (counts + 1) * slow / percentile)
    logarithms = queries * math.log(percentile) + np.concatenate([[0.0], np.cumsum(steps)])
    at_most = np.cumsum(np.exp(logarithms))
    return int(np.searchsorted(at_most, 1 - confidence, side="right")) - 1


def least_queries(percentile: float, overlatency: int = 1, confidence: float = CONFIDENCE) -> int:
    """Return the fewest queries of which `overlatency` may be slow: 64 for p90 and 662 for p99, as in LoadGen."""
    queries = overlatency + 1
    while allowed_overlatency(queries, percentile, confidence) < overlatency:
        queries += 1
    return queries


def estimate(latencies: Latencies, percentile: float) -> float | None:
    """Return the duration, in microseconds, below which the percentile lies at 99 % confidence.

    None where the queries are too few to say so.
    """
    allowed = allowed_overlatency(latencies.total, percentile)
    rank = latencies.total - allowed
    return None if allowed < 0 else latencies.quantile((rank - 0.5) / latencies.total)
