"""What an open loop records: queries that arrive by a schedule, and how long after it each was answered.

A closed loop omits what it waits for: while one answer is slow, no other query is sent. Here every latency counts
from the time the query should have been sent, so that a stall of the system is seen by all that arrived in it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.load.latency import Latencies

Verdict = Literal["pass", "system", "generator"]
"""Of a run: it kept the bound, or which of the two did not."""
BUSY = 0.95
"""A generator that has nothing to do for less than a twentieth of its time is too slow for the rate."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """No more than `allowed` queries may take longer than `ms`; a run ends as soon as it has failed."""

    ms: float
    allowed: int


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One run of an open loop; plain numbers, so that it comes out of another process as JSON."""

    queries: int
    """In the schedule."""
    seconds: float
    """From the start to the last answer."""
    latency: list[tuple[int, int]]
    """Microseconds from the intended time, and how many answers took so long."""
    lateness: list[tuple[int, int]]
    """Microseconds that the generator itself was late with a query, and how many queries."""
    refused: int
    """Answers with a status other than 200."""
    slow: int
    """Answers above the bound, where there is one."""
    slow_anyway: int
    """Those of them that are above it without the generator's lateness, too."""
    busy: float | None
    """Part of the time in which the generator had something to do; None where it costs nothing."""

    @property
    def answered(self) -> int:
        """Less than `queries` where the run was ended early."""
        return sum(count for _, count in self.latency)

    @property
    def latencies(self) -> Latencies:
        """From the intended time."""
        return Latencies.from_counts(dict(self.latency))

    @property
    def late_p99_ms(self) -> float | None:
        """The generator's own lateness; None when nothing was answered."""
        if not self.lateness:
            return None
        return Latencies.from_counts(dict(self.lateness)).quantiles("ms")["p99_ms"]

    def verdict(self, allowed: int) -> Verdict:
        """Say whether no more than `allowed` queries were slow, and if not, whether the generator was the reason."""
        if self.answered == self.queries and self.slow <= allowed and not self.refused:
            return "pass"
        late = self.slow_anyway <= allowed < self.slow and not self.refused
        return "generator" if late or (self.busy or 0) > BUSY else "system"


def timeline(
    latency_s: ArrayLike,
    late_s: ArrayLike,
    *,
    queries: int,
    seconds: float,
    bound: Bound | None,
    refused: int = 0,
    busy: float | None = None,
) -> Timeline:
    """Sum up the latency of every answer and the generator's lateness with it, both in seconds."""
    latencies, late = np.asarray(latency_s, dtype=np.float64), np.asarray(late_s, dtype=np.float64)
    bound_s = bound.ms / 1e3 if bound else np.inf
    return Timeline(
        queries=queries,
        seconds=seconds,
        latency=_count(latencies),
        lateness=_count(late),
        refused=refused,
        slow=int((latencies > bound_s).sum()),
        slow_anyway=int((latencies - late > bound_s).sum()),
        busy=busy,
    )


def _count(seconds: NDArray[np.float64]) -> list[tuple[int, int]]:
    values, counts = np.unique(np.rint(seconds * 1e6).astype(np.int64), return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))
