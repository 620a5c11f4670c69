"""LoadGen's Server scenario: the highest rate of Poisson arrivals that keeps p99 below a bound.

1. From a first guess the rate is doubled while it passes, or halved while it fails, until the limit lies between
   two rates.
2. The geometric middle of the two is tried until they are 5 % apart.
3. The last rate that passed is confirmed by longer runs with seeds of their own, all of which must pass; if one
   does not, the rate is lowered by 5 % and confirmed again, then by 10 %, 20 % and so on (LoadGen's rules ask for
   five such runs, and lower the rate by "a small delta").

A run passes by the test of `early_stopping`. In 1 and 2 a rate fails when it fails with two seeds: one
pause of the machine is not the system's limit. Every run is bounded in queries and time, and ends as soon as more
queries were slow than may be. A rate that fails because the generator fell behind is no limit of the system, and
the result says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import sqrt
from typing import Any, Literal

from benchmarks.loadgen.early_stopping import allowed_overlatency, least_queries
from benchmarks.loadgen.open_loop import Bound, Timeline, Verdict

PERCENTILE = 0.99
TRIES = 2
LONGER = 2
"""A confirming run is so much longer than a probe."""
BOUNDS = 10
"""A run lasts at least so many times the bound: the queue of an overloaded system needs time to grow."""

RunAt = Callable[[float, int, int, Bound], Timeline]
"""From rate (1/s), number of queries, seed and bound to what was seen."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long and how closely to look."""

    bound_ms: float = 10.0
    """LoadGen's own default."""
    seconds: float = 1.0
    """Length of a probe."""
    least: int = least_queries(PERCENTILE)
    """Queries in a probe, however long that takes."""
    longest_s: float = 10.0
    """A rate so low that `least` queries take longer is not tried."""
    precision: float = 0.05
    confirmations: int = 2
    attempts: int = 6
    """How often the rate is lowered before the search gives up."""

    @property
    def floor(self) -> float:
        """The lowest rate that is tried."""
        return self.least / self.longest_s


@dataclass(kw_only=True)
class Outcome:
    """The highest rate that was confirmed (None: not even the lowest), and the way there."""

    rate: float | None = None
    confirmed: list[Timeline] = field(default_factory=list)
    limited_by: Literal["system", "generator"] = "system"
    trace: list[dict[str, Any]] = field(default_factory=list)


class Search:
    """One search; `run_at` is the system."""

    def __init__(
        self,
        run_at: RunAt,
        settings: Settings,
        *,
        seed: int,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._run_at, self._settings, self._progress = run_at, settings, progress
        self._seeds = count(seed)
        self._outcome = Outcome()

    def run(self, guess: float) -> Outcome:
        """Start at `guess` queries a second."""
        low, high = self._bracket(guess)
        if low is not None:
            self._confirm(self._bisect(low, high))
        return self._outcome

    def _bracket(self, rate: float) -> tuple[float | None, float]:
        floor = self._settings.floor
        rate = max(rate, floor)
        if self._passes(rate):
            while self._passes(2 * rate):
                rate *= 2
            return rate, 2 * rate
        while rate > floor:
            lower = max(rate / 2, floor)
            if self._passes(lower):
                return lower, rate
            rate = lower
        return None, floor

    def _bisect(self, low: float, high: float) -> float:
        while high / low > 1 + self._settings.precision:
            middle = sqrt(low * high)
            if self._passes(middle):
                low = middle
            else:
                high = middle
        return low

    def _confirm(self, rate: float) -> None:
        for attempt in range(self._settings.attempts):
            runs = []
            for timeline, verdict in self._probes(rate, self._settings.confirmations, LONGER, "confirm"):
                if verdict != "pass":
                    self._outcome.limited_by = verdict
                    break
                runs.append(timeline)
            else:
                self._outcome.rate, self._outcome.confirmed = rate, runs
                return
            rate = max(rate / (1 + self._settings.precision * 2**attempt), self._settings.floor)

    def _passes(self, rate: float) -> bool:
        verdicts: list[Verdict] = []
        for _, verdict in self._probes(rate, TRIES, 1, "search"):
            if verdict == "pass":
                return True
            verdicts.append(verdict)
        self._outcome.limited_by = "system" if "system" in verdicts else "generator"
        return False

    def _probes(self, rate: float, runs: int, length: int, step: str) -> Iterator[tuple[Timeline, Verdict]]:
        """Run at this rate again and again, each time with a seed that was not used before."""
        settings = self._settings
        for _ in range(runs):
            seed = next(self._seeds)
            seconds = max(settings.seconds, BOUNDS * settings.bound_ms / 1e3) * length
            queries = min(max(settings.least, round(rate * seconds)), round(rate * settings.longest_s))
            allowed = allowed_overlatency(queries, PERCENTILE)
            self._progress(rate)
            timeline = self._run_at(rate, queries, seed, Bound(ms=settings.bound_ms, allowed=allowed))
            verdict = timeline.verdict(allowed)
            self._outcome.trace.append(_line(step, rate, seed, timeline, verdict))
            yield timeline, verdict


def _line(step: str, rate: float, seed: int, timeline: Timeline, verdict: Verdict) -> dict[str, Any]:
    """Return a run as the result file keeps it; no percentiles of a run that was ended early."""
    whole = timeline.answered == timeline.queries
    return {
        "step": step,
        "rate": round(rate, 1),
        "seed": seed,
        "queries": timeline.queries,
        "answered": timeline.answered,
        "refused": timeline.refused,
        "slow": timeline.slow,
        "verdict": verdict,
        **(timeline.latencies.quantiles("ms") if whole else {}),
        "late_p99_ms": timeline.late_p99_ms,
        "busy": None if timeline.busy is None else round(timeline.busy, 3),
    }
