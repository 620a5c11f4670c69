"""Sequential tests of a candidate's error rate, valid whenever they are read and stopped.

A fixed-sample test that is repeated after every block of requests rejects a true null sooner or later. Here the
evidence is an e-process: a non-negative process whose expectation under the null is at most 1 at every stopping time,
so that the probability that it ever reaches 1/alpha is at most alpha (Ville's inequality; Ramdas, Grünwald, Vovk and
Shafer, "Game-theoretic statistics and safe anytime-valid inference", 2023).

`Comparison` compares two streams. Given a block's requests in each arm and its errors in both arms together, the errors
of the candidate follow Fisher's noncentral hypergeometric distribution, whose only parameter is the odds ratio. The
likelihood ratio of an odds ratio to the null's bound is monotone in the candidate's errors, hence an e-value for every
odds ratio on the null's side of the bound. The product over the blocks, averaged over a grid of odds ratios, is the
e-process. The error rate itself may drift from block to block, nothing is estimated, and a block may have any size. The
e-variables of Turner, Ly and Grünwald ("Generic E-variables for exact sequential k-sample tests that allow for optional
stopping", 2021) estimate both rates from the blocks before; they need about 1.5 times as many requests
(`distillery-bench sequential`).

`Limit` compares one stream with a fixed rate, by the same average of likelihood ratios.

Both assume that errors are independent, given the rates. Alpha bounds the probability that one side of one test
is wrong; a release that is decided by n tests needs alpha / n in each.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil, exp, inf, lgamma, log, log1p, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Counts = tuple[int, int]
"""Errors and requests."""
Floats = NDArray[np.float64]
Test = tuple[float, Sequence[float]]
"""The odds ratio that bounds the null, and those that it is tested against."""

MIN_BLOCK = 20
"""Requests of both arms together. Smaller blocks are joined: dividing a stream into blocks of n loses 1/n of it."""
DESIGN_RATIO = 2.0
"""The odds ratio that half of the average's weight is on: a candidate with twice the errors."""
RATIOS = (1.25, 1.4, 1.6, 2.5, 3.2, 4.0, 8.0, 32.0)
"""The others, as multiples of the null's bound, or as its divisors."""
TAIL = 20.0
"""All but e^(-2 TAIL) of a distribution is added up."""
MAX_EXPONENT = 700.0


class Comparison:
    """Evidence that a candidate's error rate is higher than the stable model's, and that it is as good.

    `worse` is the e-value against "the candidate's odds of an error are at most the stable model's": from 1 / alpha on,
    the candidate is stopped. `as_good` is the e-value against "they are at least `tolerance` times the stable
    model's", odds in both cases: at low rates, the ratio of odds is that of rates, and it is never the smaller one
    of a worse candidate. An error rate of up to `negligible` counts as good even if the stable model's is lower,
    without which two models without errors could never be told to be as good as each other.

    Raises `ValueError` for an alpha outside of 0 to 1, a tolerance of 1 or less or a negligible rate outside
    of 0 to 1.
    """

    def __init__(self, alpha: float, tolerance: float, negligible: float = 0.0) -> None:
        if not 1 < tolerance < inf:
            raise ValueError(f"tolerance: {tolerance} is not above 1; an equal candidate has a ratio of 1")
        if not 0 <= negligible < 1:
            raise ValueError(f"negligible: {negligible} is not a rate of at least 0 and below 1")
        self._threshold = _threshold(alpha)
        self.worse_test: Test = (1.0, (DESIGN_RATIO, *RATIOS))
        self.as_good_test: Test = (tolerance, (1.0, *(tolerance / ratio for ratio in RATIOS)))
        self._worse, self._as_good = _Average(*self.worse_test), _Average(*self.as_good_test)
        self._negligible = Limit(alpha, negligible) if negligible else None
        self._stable: Counts = (0, 0)
        self._candidate: Counts = (0, 0)
        self._verdict: Literal["worse", "as_good"] | None = None

    def update(self, stable: Counts, candidate: Counts) -> None:
        """Add the errors and requests of both arms since the last call.

        Raises `ValueError` for more errors than requests or a negative number.
        """
        for name, counts in (("stable", stable), ("candidate", candidate)):
            _check(name, *counts)
        self._stable = (self._stable[0] + stable[0], self._stable[1] + stable[1])
        self._candidate = (self._candidate[0] + candidate[0], self._candidate[1] + candidate[1])
        if self._negligible:
            self._negligible.update(*candidate)
        if self._stable[1] + self._candidate[1] >= MIN_BLOCK:
            self._worse.update(self._stable, self._candidate)
            self._as_good.update(self._stable, self._candidate)
            self._stable = self._candidate = (0, 0)
        if self._verdict is None:
            self._verdict = _crossed(self._threshold, worse=self._log_worse, as_good=self._log_as_good)

    @property
    def worse(self) -> float:
        """E-value of "higher error rate" now."""
        return _exp(self._log_worse)

    @property
    def as_good(self) -> float:
        """E-value of "not `tolerance` times the error rate" now."""
        return _exp(self._log_as_good)

    @property
    def verdict(self) -> Literal["worse", "as_good"] | None:
        """What first reached 1 / alpha; it stays."""
        return self._verdict

    def state(self) -> dict[str, Any]:
        """Return what `restore` continues from, as JSON's types."""
        return {
            "stable": list(self._stable),
            "candidate": list(self._candidate),
            "worse": self._worse.logs.tolist(),
            "as_good": self._as_good.logs.tolist(),
            "negligible": self._negligible.state() if self._negligible else None,
            "verdict": self._verdict,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a comparison with the same settings."""
        self._stable = (state["stable"][0], state["stable"][1])
        self._candidate = (state["candidate"][0], state["candidate"][1])
        self._worse.logs = np.array(state["worse"])
        self._as_good.logs = np.array(state["as_good"])
        if self._negligible:
            self._negligible.restore(state["negligible"])
        self._verdict = state["verdict"]

    @property
    def _log_worse(self) -> float:
        """The null is a union of two, so the smaller e-value counts."""
        return min(self._worse.log, self._negligible.log_above if self._negligible else inf)

    @property
    def _log_as_good(self) -> float:
        """The null is an intersection of two, so the average of their e-values is one."""
        if not self._negligible:
            return self._as_good.log
        return float(np.logaddexp(self._as_good.log, self._negligible.log_below)) - log(2)


class Limit:
    """Evidence that an error rate is above a limit, and that it is below.

    Raises `ValueError` for an alpha or a limit outside of 0 to 1.
    """

    def __init__(self, alpha: float, limit: float) -> None:
        if not 0 < limit < 1:
            raise ValueError(f"limit: {limit} is not a rate between 0 and 1")
        self._threshold = _threshold(alpha)
        self._limit = limit
        self._errors = self._requests = 0
        self._verdict: Literal["above", "below"] | None = None

    def update(self, errors: int, requests: int) -> None:
        """Add the errors and requests since the last call.

        Raises `ValueError` for more errors than requests or a negative number.
        """
        _check("counts", errors, requests)
        self._errors += errors
        self._requests += requests
        if self._verdict is None:
            self._verdict = _crossed(self._threshold, above=self.log_above, below=self.log_below)

    @property
    def above(self) -> float:
        """E-value of "above the limit" now."""
        return _exp(self.log_above)

    @property
    def below(self) -> float:
        """E-value of "below the limit" now."""
        return _exp(self.log_below)

    @property
    def verdict(self) -> Literal["above", "below"] | None:
        """What first reached 1 / alpha; it stays."""
        return self._verdict

    @property
    def log_above(self) -> float:
        """Logarithm of the e-value against "at most the limit"."""
        return self._log([DESIGN_RATIO, *RATIOS])

    @property
    def log_below(self) -> float:
        """Logarithm of the e-value against "at least the limit"."""
        return self._log([1 / ratio for ratio in (DESIGN_RATIO, *RATIOS)])

    def state(self) -> dict[str, Any]:
        """Return what `restore` continues from, as JSON's types."""
        return {"errors": self._errors, "requests": self._requests, "verdict": self._verdict}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a test with the same settings."""
        self._errors, self._requests, self._verdict = state["errors"], state["requests"], state["verdict"]

    def _log(self, ratios: Sequence[float]) -> float:
        """Average the likelihood ratios of these multiples of the limit's odds."""
        logs = [
            self._errors * log(ratio) - self._requests * log1p(self._limit * (ratio - 1)) for ratio in ratios
        ]
        return float(log_average(np.array(logs)))


class _Average:
    """Likelihood ratios of several odds ratios to one bound, and the logarithm of their average."""

    def __init__(self, bound: float, odds_ratios: Sequence[float]) -> None:
        self._bound = bound
        self._odds_ratios = odds_ratios
        self.logs: Floats = np.zeros(len(odds_ratios))

    def update(self, stable: Counts, candidate: Counts) -> None:
        """Multiply by the ratios of a block."""
        self.logs = self.logs + log_likelihood_ratios(stable, candidate, self._bound, self._odds_ratios)

    @property
    def log(self) -> float:
        """The e-value's."""
        return float(log_average(self.logs))


def log_likelihood_ratios(
    stable: Counts, candidate: Counts, bound: float, odds_ratios: Sequence[float]
) -> Floats:
    """Return the log-likelihood of a block by each odds ratio minus that by `bound`, given all errors of the block."""
    errors, (failed, requests) = stable[0] + candidate[0], candidate

    def log_likelihood(odds_ratio: float) -> float:  # without the part that all odds ratios share
        return failed * log(odds_ratio) - _log_normaliser(stable[1], requests, errors, odds_ratio)

    null = log_likelihood(bound)
    return np.array([log_likelihood(odds_ratio) - null for odds_ratio in odds_ratios])


@lru_cache(1 << 16)
def _log_normaliser(others: int, requests: int, errors: int, odds_ratio: float) -> float:
    """Return log of the sum of C(requests, k) C(others, errors - k) odds_ratio^k over k.

    The number of errors k is a sum of independent Bernoulli variables, so by Hoeffding's inequality all but e^(-2 TAIL)
    of the sum is within sqrt(TAIL n) of the mean, which is within 1 of the mode.
    """
    first, last = max(0, errors - others), min(requests, errors)
    mode = _mode(others, requests, errors, odds_ratio)
    width = ceil(sqrt(TAIL * (last - first))) + 1
    low, high = max(first, mode - width), min(last, mode + width)
    k = np.arange(low, high, dtype=np.float64)
    steps = (
        log(odds_ratio)
        + np.log(requests - k)
        + np.log(errors - k)
        - np.log(k + 1)
        - np.log(others - errors + k + 1)
    )
    terms = np.concatenate(([0.0], np.cumsum(steps)))
    highest = float(terms.max())
    start = _log_choose(requests, low) + _log_choose(others, errors - low) + low * log(odds_ratio)
    return start + highest + log(float(np.exp(terms - highest).sum()))


def _mode(others: int, requests: int, errors: int, odds_ratio: float) -> int:
    """Return the k with the largest term: the terms rise as long as their ratio to the one before is at least 1."""
    low, high = max(0, errors - others), min(requests, errors)
    while low < high:
        k = (low + high + 1) // 2
        if odds_ratio * (requests - k + 1) * (errors - k + 1) >= k * (others - errors + k):
            low = k
        else:
            high = k - 1
    return low


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def log_average(logs: Floats) -> Floats:
    """Return the logarithm of the average of e-values over the last axis; half of the weight is on the first."""
    others = np.logaddexp.reduce(logs[..., 1:], axis=-1) - log(logs.shape[-1] - 1)
    return np.asarray(np.logaddexp(logs[..., 0], others) - log(2))


def _threshold(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha} is not a probability between 0 and 1")
    return -log(alpha)


def _crossed(threshold: float, **logs: float) -> Any:
    """Return the name of the first that has reached the threshold."""
    return next((name for name, value in logs.items() if value >= threshold), None)


def _check(name: str, errors: int, requests: int) -> None:
    if not 0 <= errors <= requests:
        raise ValueError(f"{name}: {errors} errors of {requests} requests; expected 0 to {requests}")


def _exp(logarithm: float) -> float:
    return exp(min(logarithm, MAX_EXPONENT))
