"""The rule of a release: sequential tests on the metrics of candidate and stable version, once a second.

Each criterion is a test of its own at alpha / n, so that the probability that the rule stops a candidate that is as
good in all of them is at most alpha, and so is that of promoting one that is worse by more than the tolerance in any.
The tests hold at every moment (`serving.release.sequential`): the rule may look after every second, for weeks.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from serving.engine.metrics.series import (
    FEEDBACK,
    IMAGES,
    REJECTED,
    REQUEST_SECONDS,
    REQUESTS,
    SECONDS,
    SHADOW_REFERENCES,
    Values,
    statuses,
)
from serving.model.release import CRITERIA, Criterion, Rule
from serving.release.sequential import Comparison, Counts, Limit

_QUANTILE = 0.99
_MIN_DURATIONS = 200
"""Requests of the stable version from which its p99 is taken."""
_SLOW_FACTOR = 2.0
_FIRST_FAILURE = next(index for index, status in enumerate(statuses()) if int(status) >= 500)

Verdict = Literal["worse", "as_good"] | None


class Evidence(NamedTuple):
    """The state of one criterion."""

    stable: Counts
    """Errors and their base since the candidate was started."""
    candidate: Counts
    worse: float
    """E-value that the candidate is worse: 20 are evidence at alpha = 5 %, before the division by n."""
    as_good: float
    verdict: Verdict


class _Test(Protocol):
    @property
    def worse(self) -> float:
        """E-value that the candidate is worse."""

    @property
    def as_good(self) -> float:
        """E-value that it is as good."""

    @property
    def verdict(self) -> Verdict:
        """What has been decided."""

    def update(self, stable: Counts, candidate: Counts) -> None:
        """Add errors and their base since the last call."""


class _Paired:
    """The test of mirrored images: of those for which the teacher sides with one version, with which one."""

    def __init__(self, alpha: float, tolerance: float) -> None:
        self._even = Limit(alpha, 0.5)
        self._tolerated = Limit(alpha, tolerance / (1 + tolerance))

    def update(self, stable: Counts, candidate: Counts) -> None:
        """Add the errors of both; their base is not used: it is the same images."""
        errors = candidate[0], stable[0] + candidate[0]
        self._even.update(*errors)
        self._tolerated.update(*errors)

    @property
    def worse(self) -> float:
        return self._even.above

    @property
    def as_good(self) -> float:
        return self._tolerated.below

    @property
    def verdict(self) -> Verdict:
        if self._even.verdict == "above":
            return "worse"
        return "as_good" if self._tolerated.verdict == "below" else None


class Comparisons:
    """The comparison of one candidate with the stable version, from its start on."""

    def __init__(self, rule: Rule, stable: str, candidate: str, totals: Values) -> None:
        """`stable` and `candidate` are slots of `totals`, the metrics at the start."""
        self._slots = stable, candidate
        alpha = rule.alpha / len(CRITERIA)
        self._tests: dict[Criterion, _Test] = {
            name: _Paired(alpha, rule.tolerance)
            if name == "shadow"
            else Comparison(alpha, rule.tolerance, rule.negligible)
            for name in CRITERIA
            if name not in rule.ignored
        }
        self._rule = rule
        self._slow_bucket = _bucket(rule.slow_ms / 1000) if rule.slow_ms else None
        self._first = self._last = self._counts(totals)

    @property
    def slow_ms(self) -> float | None:
        """The limit of the criterion slow; None until the stable version's p99 is known."""
        return None if self._slow_bucket is None else SECONDS[self._slow_bucket] * 1000

    def update(self, totals: Values) -> Verdict:
        """Add what has been counted since the last call; return the verdict on the candidate."""
        if self._slow_bucket is None and (p99 := _quantile(totals, self._slots[0])) is not None:
            self._slow_bucket = _bucket(p99 * _SLOW_FACTOR)
            slow = self._counts(totals)["slow"]
            self._first, self._last = {**self._first, "slow": slow}, {**self._last, "slow": slow}
        counts = self._counts(totals)
        for name, test in self._tests.items():
            (stable, candidate), (before, candidate_before) = counts[name], self._last[name]
            test.update(_growth(before, stable), _growth(candidate_before, candidate))
        self._last = counts
        if any(test.verdict == "worse" for test in self._tests.values()):
            return "worse"
        required = self._rule.required
        if required and all(self._tests[name].verdict == "as_good" for name in required):
            return "as_good"
        return None

    def evidence(self) -> Mapping[Criterion, Evidence]:
        """Return the state of every criterion."""
        found = {}
        for name, test in self._tests.items():
            (first, candidate_first), (last, candidate_last) = self._first[name], self._last[name]
            counts = _growth(first, last), _growth(candidate_first, candidate_last)
            found[name] = Evidence(*counts, test.worse, test.as_good, test.verdict)
        return found

    def reason(self, verdict: Verdict) -> str:
        """Return the counts of the criteria with this verdict, the candidate's against those of the stable version."""
        return "; ".join(
            f"{name}: {one.candidate[0]} of {one.candidate[1]} against {one.stable[0]} of {one.stable[1]}"
            for name, one in self.evidence().items()
            if one.verdict == verdict and (verdict == "worse" or name in self._rule.required)
        )

    def _counts(self, totals: Values) -> dict[Criterion, tuple[Counts, Counts]]:
        """Return errors and their base of both slots by criterion."""
        stable, candidate = (self._of(totals, slot) for slot in self._slots)
        # The references are the candidate's: [both right or both wrong, stable alone right, candidate alone right].
        same, stable_right, candidate_right = map(int, totals.of(SHADOW_REFERENCES, slot=self._slots[1]))
        images = same + stable_right + candidate_right
        paired = (candidate_right, images), (stable_right, images)
        return {**{name: (stable[name], candidate[name]) for name in stable}, "shadow": paired}

    def _of(self, totals: Values, slot: str) -> dict[Criterion, Counts]:
        requests = totals.of(REQUESTS, slot=slot).sum(axis=0)  # by status
        durations = totals.of(REQUEST_SECONDS, slot=slot)[:-1]
        images = int(totals.of(IMAGES, slot=slot))
        right, wrong = map(int, totals.of(FEEDBACK, slot=slot))
        slow = (0, 0)
        if self._slow_bucket is not None:
            slow = int(durations[self._slow_bucket + 1 :].sum()), int(durations.sum())
        return {
            "failed": (int(requests[_FIRST_FAILURE:].sum()), int(requests.sum())),
            "slow": slow,
            "unaccepted": (min(int(totals.of(REJECTED, slot=slot)), images), images),
            "wrong": (wrong, right + wrong),
        }


def _growth(before: Counts, now: Counts) -> Counts:
    """Return the growth of errors and base; the base is published a moment apart, and may lag behind."""
    base = max(0, now[1] - before[1])
    return min(max(0, now[0] - before[0]), base), base


def _bucket(seconds: float) -> int:
    """Return the index of the first bound of at least these seconds."""
    return min(bisect_left(SECONDS, seconds), len(SECONDS) - 1)


def _quantile(totals: Values, slot: str) -> float | None:
    """Return the bound below which the p99 of all durations is, None if there are too few."""
    counts: Any = totals.of(REQUEST_SECONDS, slot=slot)[:-1]
    if counts.sum() < _MIN_DURATIONS:
        return None
    index = int((counts.cumsum() >= _QUANTILE * counts.sum()).argmax())
    return SECONDS[min(index, len(SECONDS) - 1)]
