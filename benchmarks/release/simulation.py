"""Requests that the sequential test needs, and how often it is wrong, by simulation.

Errors are independent, a request goes to the candidate with a fixed probability, and the counts of both arms are
tested after every block of requests, as `serving.release.sequential.Comparison` does. Requests are those of both arms
together, until the end of the block with the decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from serving.model.release import CRITERIA, Rule
from serving.release.sequential import Comparison, log_average, log_likelihood_ratios

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PRIOR = 0.18
"""Of each count in Turner's estimates, as in their section 3."""
CHUNK = 50
"""Streams that are in memory at once."""


class Streams(NamedTuple):
    """Counts of each block, int64 [streams, blocks]."""

    stable_errors: Ints
    candidate_errors: Ints
    candidate_requests: Ints
    block: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A release: the stable model's error rate, the candidate's share of the requests, and the test."""

    rate: float
    share: float
    alpha: float = 0.05
    tolerance: float = 2.0
    block: int = 100

    def draw(self, random: np.random.Generator, streams: int, blocks: int, ratio: float) -> Streams:
        """Draw the counts of a candidate whose error rate is `ratio` times the stable model's."""
        requests = random.binomial(self.block, self.share, (streams, blocks))
        return Streams(
            random.binomial(self.block - requests, self.rate),
            random.binomial(requests, min(1.0, ratio * self.rate)),
            requests,
            self.block,
        )

    @property
    def fixed_requests(self) -> int:
        """Requests of a one-sided z-test with a fixed sample and a power of 95 % against twice the error rate."""
        rates = (self.rate, 2 * self.rate)
        shares = (1 - self.share, self.share)
        variance = sum(rate * (1 - rate) / share for rate, share in zip(rates, shares, strict=True))
        return ceil(float((norm.isf(self.alpha) + norm.isf(0.05)) / self.rate) ** 2 * variance)


def log_e_values(streams: Streams, bound: float, odds_ratios: Sequence[float]) -> Floats:
    """Return the logarithm of an e-process after each block, as `Comparison` computes it, [streams, blocks].

    Blocks with the same counts have the same likelihood ratios, which are calculated once.
    """
    counts = np.stack(streams[:3], axis=-1).reshape(-1, 3)
    unique, index = np.unique(counts, axis=0, return_inverse=True)
    table = np.array(
        [
            log_likelihood_ratios(
                (stable, streams.block - requests), (candidate, requests), bound, odds_ratios
            )
            for stable, candidate, requests in unique.tolist()
        ]
    )
    ratios = table[index.reshape(streams.stable_errors.shape)]
    return log_average(np.cumsum(ratios, axis=1))


def turner_log_e_values(streams: Streams) -> Floats:
    """Return the same against "at most the stable model's rate", by the e-variables of Turner, Ly and Grünwald.

    Both rates are estimated from the blocks before; the null's rate is their average, weighted with the requests
    (Turner, Ly and Grünwald 2021, equation 8). A block is no evidence while the candidate's estimate is the lower one.
    """
    requests = np.stack([streams.block - streams.candidate_requests, streams.candidate_requests])
    errors = np.stack([streams.stable_errors, streams.candidate_errors])
    before = np.cumsum(errors, axis=2) - errors + PRIOR
    rates = before / (np.cumsum(requests, axis=2) - requests + 2 * PRIOR)
    null = (requests * rates).sum(axis=0) / streams.block
    logs = (errors * np.log(rates / null) + (requests - errors) * np.log((1 - rates) / (1 - null))).sum(
        axis=0
    )
    return np.asarray(np.cumsum(np.where(rates[1] > rates[0], logs, 0), axis=1))


def z_values(streams: Streams) -> Floats:
    """Return the z-statistic of all requests so far, after each block; 0 without errors or requests."""
    requests = np.cumsum(streams.candidate_requests, axis=1)
    others = streams.block * np.arange(1, requests.shape[1] + 1) - requests
    errors, other_errors = (
        np.cumsum(streams.candidate_errors, axis=1),
        np.cumsum(streams.stable_errors, axis=1),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (errors + other_errors) / (requests + others)
        deviation = np.sqrt(pooled * (1 - pooled) * (1 / requests + 1 / others))
        z = (errors / requests - other_errors / others) / deviation
    return np.asarray(np.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0))


def first_requests(values: Floats, threshold: float, block: int) -> Floats:
    """Return the requests until each stream first reaches the threshold; infinity if it never does."""
    crossed = values >= threshold
    return np.where(crossed.any(axis=1), (crossed.argmax(axis=1) + 1.0) * block, np.inf)


def simulate(setting: Setting, *, streams: int, horizon: float, seed: int) -> dict[str, Any]:
    """Return what happens to candidates with twice, equal and half the error rate.

    Each stream has `horizon` times the requests of the fixed sample. `stop` and `stop_turner`: a candidate with twice
    the errors is stopped; `promote_equal`, `promote_better`: one with as many or half of them is promoted, each with
    `share` of the streams, `median` and `p95` of the requests. `false_stops` and `false_stops_z`: share of the
    streams with an equal candidate that is stopped, by this test and by the z-test after every block;
    `false_promotions`: of those with `tolerance` times the errors.
    """
    random = np.random.default_rng(seed)
    blocks = ceil(horizon * setting.fixed_requests / setting.block)
    threshold = -log(setting.alpha)
    comparison = Comparison(setting.alpha, setting.tolerance)
    found: dict[str, list[Floats]] = {}

    def note(name: str, values: Floats, limit: float = threshold) -> None:
        found.setdefault(name, []).append(first_requests(values, limit, setting.block))

    for begin in range(0, streams, CHUNK):
        several = min(CHUNK, streams - begin)
        worse, equal, better, limit = (
            setting.draw(random, several, blocks, ratio) for ratio in (2.0, 1.0, 0.5, setting.tolerance)
        )
        note("stop", log_e_values(worse, *comparison.worse_test))
        note("stop_turner", turner_log_e_values(worse))
        note("promote_equal", log_e_values(equal, *comparison.as_good_test))
        note("promote_better", log_e_values(better, *comparison.as_good_test))
        note("false_stops", log_e_values(equal, *comparison.worse_test))
        note("false_stops_z", z_values(equal), float(norm.isf(setting.alpha)))
        note("false_promotions", log_e_values(limit, *comparison.as_good_test))
    row: dict[str, Any] = {
        "rate": setting.rate,
        "share": setting.share,
        "fixed_requests": setting.fixed_requests,
        "horizon_requests": blocks * setting.block,
    }
    for name, parts in found.items():
        requests = np.concatenate(parts)
        row[name] = _share(requests) if name.startswith("false") else _summary(requests)
    return row


def simulate_rule(
    setting: Setting, ratio: float, rule: Rule, *, streams: int, limit: int, seed: int
) -> list[tuple[str | None, float]]:
    """Return the decision on each of several candidates by a rule with the criterion `wrong` alone, and its requests.

    The candidates have `ratio` times the stable model's error rate. A block is what arrives between two looks: a
    Poisson number of requests. Without a decision after `limit` requests it is None, and they are infinite.
    """
    random = np.random.default_rng(seed)
    found: list[tuple[str | None, float]] = []
    for _ in range(streams):
        comparison = Comparison(rule.alpha / len(CRITERIA), rule.tolerance, rule.negligible)
        requests = 0
        while comparison.verdict is None and requests < limit:
            block = int(random.poisson(setting.block))
            candidate = int(random.binomial(block, setting.share))
            comparison.update(
                (int(random.binomial(block - candidate, setting.rate)), block - candidate),
                (int(random.binomial(candidate, min(1.0, ratio * setting.rate))), candidate),
            )
            requests += block
        decision = {"worse": "rollback", "as_good": "promote", None: None}[comparison.verdict]
        found.append((decision, float(requests) if decision else np.inf))
    return found


def _summary(requests: Floats) -> dict[str, Any]:
    """Return the quantiles of the requests; None where too many streams have no decision."""
    quantiles = {"median": 0.5, "p95": 0.95}
    values = {name: float(np.quantile(requests, q, method="higher")) for name, q in quantiles.items()}
    return {"share": _share(requests)} | {
        name: round(value) if np.isfinite(value) else None for name, value in values.items()
    }


def _share(requests: Floats) -> float:
    return round(float(np.isfinite(requests).mean()), 5)
