"""One run: a candidate under the profile's load, and what is known after several of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from scipy.stats import beta, binom

from benchmarks.advise.candidates import Candidate
from benchmarks.advise.profile import Profile
from benchmarks.load.latency import Latencies
from benchmarks.load.open_loop import run_schedule
from benchmarks.systems.servers import ServerProcess

TARGET_SHARE = 0.01
"""Of requests that may be late, for a target of the 99th percentile."""
CONFIDENCE = 0.95
MISSED = 0.01
"""Significance level: a run misses the target when a service that just meets it would have as many late requests
with at most this probability."""
TRIES = 2
"""Runs that must miss the target before a candidate is dropped: a single miss may be a pause of the machine."""
WARM_UP_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Run:
    """Counts of one run."""

    requests: int
    """That have ended."""
    late: int
    seconds: float
    cpu_s: float
    """Of all processes of the service."""
    gave_up: bool
    generator_cores: float
    generator_lag_p99_ms: float
    failed: int
    """Requests without status 200."""
    latency_us: list[tuple[int, int]]
    """Pairs of microseconds and number, of the responses with status 200."""

    @property
    def missed(self) -> bool:
        """Whether this run misses the target, at the significance level `MISSED`."""
        return self.late > most_late(self.requests)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Self:
        """Read what `as_json` returned."""
        return cls(**kept)


@dataclass(frozen=True)
class Known:
    """What several runs of a candidate have shown."""

    runs: Sequence[Run]

    @property
    def requests(self) -> int:
        return sum(run.requests for run in self.runs)

    @property
    def late(self) -> int:
        return sum(run.late for run in self.runs)

    @property
    def cpu_us(self) -> float:
        """CPU time per request, in microseconds."""
        return 1e6 * sum(run.cpu_s for run in self.runs) / max(1, self.requests)

    @property
    def cores(self) -> float:
        """CPU time per second."""
        return sum(run.cpu_s for run in self.runs) / sum(run.seconds for run in self.runs)

    @property
    def served_per_s(self) -> float:
        """Responses with status 200 per second."""
        return sum(run.requests - run.failed for run in self.runs) / sum(run.seconds for run in self.runs)

    @property
    def generator_cores(self) -> float:
        return max(run.generator_cores for run in self.runs)

    @property
    def hopeless(self) -> bool:
        """Whether the candidate is dropped."""
        return sum(run.missed for run in self.runs) >= TRIES

    @property
    def late_bound(self) -> float:
        """Upper 95 % bound of the share of late requests (Clopper and Pearson 1934)."""
        if self.late >= self.requests:
            return 1.0
        return float(beta.ppf(CONFIDENCE, self.late + 1, self.requests - self.late))

    @property
    def meets_target(self) -> bool:
        """Whether at most 1 % are late, with 95 % confidence."""
        return self.late_bound <= TARGET_SHARE

    def latency_ms(self, quantile: float) -> float | None:
        """Return a quantile of the latency; a request without status 200 counts as the slowest. None: it failed."""
        parts = [Latencies.from_counts(dict(run.latency_us)) for run in self.runs if run.latency_us]
        total = self.requests
        if not parts or (pooled := Latencies.merge(parts)).total < quantile * total:
            return None
        return pooled.quantile(quantile * total / pooled.total) / 1e3


def most_late(requests: int) -> int:
    """Return the number of late requests that a service that just meets the target exceeds in 1 % of runs."""
    return int(binom.ppf(1 - MISSED, requests, TARGET_SHARE))


def requests_to_verify() -> int:
    """Return the least number of requests that show the target with 95 % confidence, with one late request."""
    return next(n for n in range(100, 10_000) if beta.ppf(CONFIDENCE, 2, n - 1) <= TARGET_SHARE)


def run_candidate(
    server: ServerProcess,
    candidate: Candidate,
    profile: Profile,
    *,
    seconds: float,
    seed: int,
    whole: bool = False,
) -> Run:
    """Put a running service under load for `seconds`, after a warm-up; arrivals and requests depend on `seed`.

    The run ends early once it misses the target at the significance level `MISSED`, unless it is to be `whole`.
    """
    send = partial(run_schedule, server.url, connections=profile.connections, limit_s=profile.limit_s)
    warm_up = profile.load(server.url, candidate.model, WARM_UP_S, seed)
    send(warm_up.requests, warm_up.schedule)
    schedule, requests = profile.load(server.url, candidate.model, seconds, seed)
    before = server.cpu_seconds()
    load = send(requests, schedule, max_late=None if whole else most_late(len(schedule.due)))
    cpu = server.cpu_seconds() - before
    latencies = load.latencies
    return Run(
        requests=load.ended if load.gave_up else load.scheduled,
        late=load.late,
        seconds=load.seconds,
        cpu_s=round(cpu, 6),
        gave_up=load.gave_up,
        generator_cores=load.generator_cores,
        generator_lag_p99_ms=load.lag_p99_ms,
        failed=sum(count for status, count in load.statuses.items() if status != 200),
        latency_us=_rounded(latencies) if latencies else [],
    )


def _rounded(latencies: Latencies) -> list[tuple[int, int]]:
    """Return pairs of microseconds, to three digits, and number."""
    digits = 10.0 ** np.maximum(0, np.floor(np.log10(np.maximum(latencies.values, 1))) - 2)
    values, index = np.unique(np.ceil(latencies.values / digits) * digits, return_inverse=True)
    counts = np.bincount(index, weights=latencies.counts).astype(int)
    return [(int(value), count) for value, count in zip(values, counts.tolist(), strict=True)]
