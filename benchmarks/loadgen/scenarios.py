"""MLPerf LoadGen's four scenarios, interleaved over the systems under test.

| scenario | samples per query | next query | figure |
| --- | --- | --- | --- |
| SingleStream | 1 | after the answer to the last | p90 latency |
| MultiStream | 8 | after the answer to the last | p99 latency |
| Server | 1 | Poisson arrivals | highest rate of a valid run |
| Offline | all | none | samples/s |

Every query is issued and timed by LoadGen. A round runs each system once; a figure is the median over the rounds.
In Server a round is a search over LoadGen runs, valid when p99 is within the bound with early stopping's confidence.
LoadGen's own search (`FindPeakPerformance`) bisects down to 0.1 queries/s, some 25 runs, and takes one pause of the
machine for the limit.

Runs last seconds instead of MLPerf's ten minutes and the sample library has 100 digits, so the figures are no MLPerf
results.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from math import sqrt
from statistics import median
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.errors import BenchmarkError
from benchmarks.load.interleave import interleave
from benchmarks.load.sessions import REFERENCE
from benchmarks.loadgen.run import Outcome, Scenario, System, run_loadgen
from benchmarks.results.ratio import Ratio
from distillery import Command

Row = dict[str, Any]

METRICS: dict[Scenario, tuple[str, str]] = {
    "SingleStream": ("90th percentile latency", "ms"),
    "MultiStream": ("99th percentile latency", "ms"),
    "Server": ("scheduled samples per second", "queries/s"),
    "Offline": ("samples per second", "images/s"),
}
"""LoadGen's name of the figure, and its unit."""
MIN_QUERIES = {"SingleStream": 64, "MultiStream": 662, "Server": 662}
"""The fewest queries with which early stopping allows one above the percentile (MLPerf Inference Rules)."""
MIN_RATE = 66.2
"""Queries/s: at a lower rate the fewest queries take longer than 10 s."""
WARM_UP_S = 0.1
MIN_LATENCY_NS = 20_000
"""Estimate of a latency, from below; LoadGen generates as many queries as would fit before the run."""
PRECISION = 0.05
TRIES = 2
"""Runs that must fail before a rate does: one pause of the machine is not the system's limit."""
GENERATOR_CPU = 0.9
"""Above this part of a core, the generator limits the rate: it runs Python, one thread at a time."""


class Rules(Command):
    """Length and number of the runs."""

    group = "run"

    bound_ms: PositiveFloat = Field(10.0, description="maximum p99 latency in Server")  # LoadGen's default
    seconds: PositiveFloat = Field(1.0, description="minimum seconds per run")
    rounds: PositiveInt = Field(5, description="rounds; each runs every scenario once per model")
    samples: PositiveInt = Field(24_576, description="minimum samples per Offline run")
    longest_seconds: PositiveFloat = Field(30.0, description="maximum seconds per run")
    seed: NonNegativeInt = Field(
        0, description="seed of the first run: arrivals and samples; then the next ones"
    )


@dataclass(frozen=True, kw_only=True)
class Round:
    """The figure of a scenario in one round, and the run that it comes from."""

    figure: float | None
    """None in Server when the bound is exceeded at every rate."""
    outcome: Outcome
    limited_by_generator: bool = False
    search: Sequence[dict[str, Any]] = ()


def run_scenario(
    scenario: Scenario,
    systems: Sequence[System],
    rules: Rules,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Run one scenario over the systems in interleaved rounds; return a row for each.

    A row has `system`, `model`, `scenario`, `metric`, `unit`, `figure` (None when no rate was valid), `ratio` (the
    improvement over the reference model, `Ratio.as_json`; None without one), `queries` of all
    rounds, `p50_ms`, `p90_ms` and `p99_ms` (medians) and `rounds`. Server adds `bound_ms`, `limited_by` and the
    `search` of every round. Raises `BenchmarkError` when a query fails, or is rejected outside of Server.
    """
    runners = [_Runner(system, scenario, rules, progress) for system in systems]
    measured = interleave(runners, rules.rounds, _Runner.round)
    figures = {system.model: _figures(rounds) for system, rounds in zip(systems, measured, strict=True)}
    return [
        _row(scenario, system, rounds, rules, None if system.model == REFERENCE else figures.get(REFERENCE))
        for system, rounds in zip(systems, measured, strict=True)
    ]


class _Runner:
    """One system in one scenario, round after round."""

    def __init__(
        self, system: System, scenario: Scenario, rules: Rules, progress: Callable[[str], None]
    ) -> None:
        self._system, self._scenario, self._rules, self._progress = system, scenario, rules, progress
        self._seeds = count(rules.seed)
        self._rate = 0.0
        """Of the last round of Server or Offline."""

    def round(self) -> Round:
        """Measure once."""
        self._progress(f"{self._scenario} {self._system.model}")
        if self._scenario == "Server":
            return self._server()
        outcome = self._offline() if self._scenario == "Offline" else self._stream(self._scenario)
        figures = {"SingleStream": outcome.p90_ms, "MultiStream": outcome.p99_ms}
        return Round(figure=figures.get(self._scenario, outcome.samples_per_s), outcome=outcome)

    def _stream(self, scenario: Scenario) -> Outcome:
        expected = f"{'single' if scenario == 'SingleStream' else 'multi'}_stream_expected_latency_ns"
        warm = self._run(scenario, {expected: MIN_LATENCY_NS}, seconds=WARM_UP_S)
        return self._run(scenario, {expected: max(MIN_LATENCY_NS, round(warm.p50_ms * 1e6 / 2))})

    def _offline(self) -> Outcome:
        # LoadGen issues a tenth more samples, so that a run somewhat faster than expected is long enough.
        def run(samples: float) -> Outcome:
            return self._run("Offline", {"offline_expected_qps": samples / self._rules.seconds})

        rate = self._rate or run(self._rules.samples / 8).samples_per_s or 0
        outcome = run(max(self._rules.samples, rate * self._rules.seconds))
        self._rate = outcome.samples_per_s or 0
        return outcome

    def _server(self) -> Round:
        trace: list[dict[str, Any]] = []
        outcomes: dict[float, Outcome] = {}

        def passes(rate: float) -> bool:
            for _ in range(TRIES):
                self._progress(f"Server {self._system.model} {rate:,.0f}/s")
                outcomes[rate] = self._server_run(rate)
                trace.append({"rate": round(rate, 1), **asdict(outcomes[rate])})
                if outcomes[rate].valid:
                    return True
            return False

        first = not self._rate
        guess = self._rate or 1e3 / self._stream("SingleStream").p50_ms
        rate = find_peak(passes, guess, floor=MIN_RATE, step=2 if first else 1.2)
        self._rate = rate or guess
        busy = max((run["cpu"] for run in trace if not run["valid"]), default=0)
        return Round(
            figure=rate and round(rate, 1),
            outcome=outcomes[rate or min(outcomes)],
            limited_by_generator=self._system.separate and busy > GENERATOR_CPU,
            search=trace,
        )

    def _server_run(self, rate: float) -> Outcome:
        settings = {
            "server_target_qps": rate,
            "server_target_latency_ns": round(self._rules.bound_ms * 1e6),
            "server_target_latency_percentile": 0.99,
            "server_coalesce_queries": True,  # queries that are due together are issued together
        }
        return self._run("Server", settings)

    def _run(self, scenario: Scenario, settings: dict[str, Any], *, seconds: float | None = None) -> Outcome:
        durations = {
            "min_duration_ms": round((seconds or self._rules.seconds) * 1e3),
            "max_duration_ms": round(self._rules.longest_seconds * 1e3),
            "min_query_count": MIN_QUERIES.get(scenario, 1),
        }
        outcome = run_loadgen(self._system, scenario, durations | settings, seed=next(self._seeds))
        if outcome.rejected and scenario != "Server":
            raise BenchmarkError(
                f"{self._system.name}, {self._system.model}, {scenario}: {outcome.rejected} samples were rejected, "
                "expected 200 for every request"
            )
        return outcome


def find_peak(
    passes: Callable[[float], bool], guess: float, *, floor: float, step: float = 2
) -> float | None:
    """Return the highest rate that passes, to 5 %; None when `floor` fails.

    From `guess`, the rate is multiplied or divided by `step` (downwards in growing steps) until the limit lies between
    two rates, whose geometric mean is then tried.
    """
    guess = max(guess, floor)
    if passes(guess):
        low = guess
        while passes(low * step):
            low *= step
        high = low * step
    else:
        high = guess
        while not passes(low := max(high / step, floor)):
            if low == floor:
                return None
            high, step = low, step * step
    while high / low > 1 + PRECISION:
        middle = sqrt(low * high)
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def _figures(rounds: Sequence[Round]) -> list[float] | None:
    figures = [one.figure for one in rounds if one.figure]
    return figures if len(figures) == len(rounds) else None


def _row(
    scenario: Scenario, system: System, rounds: Sequence[Round], rules: Rules, reference: list[float] | None
) -> Row:
    metric, unit = METRICS[scenario]
    figures = _figures(rounds)
    ratio = None
    if figures and reference:
        ratio = Ratio.within_rounds(figures, reference, lower_is_better=unit == "ms").as_json()
    outcomes = [one.outcome for one in rounds]
    row: Row = {
        "system": system.name,
        "model": system.model,
        "scenario": scenario,
        "metric": metric,
        "unit": unit,
        "figure": round(median(figures), 4) if figures else None,
        "ratio": ratio,
        "queries": sum(outcome.queries for outcome in outcomes),
        **{
            name: round(median(getattr(outcome, name) for outcome in outcomes), 4)
            for name in ("p50_ms", "p90_ms", "p99_ms")
        },
        "rounds": {
            "figure": [one.figure for one in rounds],
            "valid": [outcome.valid for outcome in outcomes],
        },
    }
    if scenario == "Server":
        row |= {
            "bound_ms": rules.bound_ms,
            "limited_by": "generator" if any(one.limited_by_generator for one in rounds) else "system",
            "search": [list(one.search) for one in rounds],
        }
    return row
