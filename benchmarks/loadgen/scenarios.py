"""LoadGen's four scenarios, for any system under test.

| scenario | a query | the next one | figure |
| --- | --- | --- | --- |
| SingleStream | 1 sample | when the last was answered | p90 latency |
| MultiStream | 8 samples | when the last was answered | p99 latency |
| Server | 1 sample | Poisson arrivals | the highest rate that keeps p99 within the bound |
| Offline | all samples | there is one | samples/s |

Kept of LoadGen's rules (MLPerf Inference Rules, github.com/mlcommons/inference_policies; loadgen/mlperf.conf):
the sample library is loaded before the clock starts; schedule and samples come from a seed; warm-up is not
counted; a run has a least duration and a least number of queries (662 for a p99, 64 for a p90, 24,576 samples
offline); a latency counts from the time a query was scheduled; accuracy is checked first, in a run of its own;
a percentile is stated with what the number of queries is worth (early stopping); the Server rate is found by
bisection and confirmed by further runs.

Not kept: a run lasts seconds, not ten minutes; random numbers are NumPy's PCG64, not mt19937; the library is our
100 digits; two runs confirm the Server rate, not five. So these figures are no MLPerf results and are not
comparable with any; only the vocabulary and the method are LoadGen's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Literal

from benchmarks.errors import BenchmarkError
from benchmarks.load.latency import Latencies
from benchmarks.load.sessions import REFERENCE
from benchmarks.loadgen.early_stopping import estimate, least_queries
from benchmarks.loadgen.server_search import PERCENTILE, Search, Settings
from benchmarks.loadgen.systems import System

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
Row = dict[str, Any]

STREAMS = {"SingleStream": (1, 0.90), "MultiStream": (8, 0.99)}
"""Samples a query, and the percentile that is the figure."""
METRICS: dict[Scenario, tuple[str, str]] = {
    "SingleStream": ("90th percentile latency", "ms"),
    "MultiStream": ("99th percentile latency", "ms"),
    "Server": ("scheduled samples per second", "queries/s"),
    "Offline": ("samples per second", "images/s"),
}
"""What LoadGen calls the figure, and its unit."""
GUESS = 4
"""Times the rate of one stream: rather too high than too low, for a run that fails is soon over."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How long everything takes, and where its random numbers come from."""

    seconds: float = 2.0
    """Of SingleStream, MultiStream and Offline, all rounds together; at least."""
    rounds: int = 2
    """How often the models have their turn, but for Server."""
    samples: int = 24_576
    """Offline, all rounds together; at least."""
    longest_s: float = 30.0
    """However few queries were answered by then, a run ends."""
    search: Settings = field(default_factory=Settings)
    seed: int = 0


def run_scenario(
    scenario: Scenario,
    systems: Sequence[System],
    rules: Rules,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Run one scenario over the systems, in turns where it has rounds; return a row for each.

    A row has `system`, `model`, `scenario`, `metric`, `unit`, `figure` (None where none was reached),
    `samples_per_query`, `queries`, `p50_ms`, `p90_ms`, `p99_ms` and their `histogram`, and `ratio`: how many times
    better the figure is than that of the reference model (None without one). Server adds what `_server` says.
    """
    measure = {"Server": _server, "Offline": _offline}.get(scenario, _stream)
    found = measure(scenario, systems, rules, progress)
    figures = {system.model: row["figure"] for system, row in zip(systems, found, strict=True)}
    metric, unit = METRICS[scenario]
    rows = []
    for system, row in zip(systems, found, strict=True):
        ratio = _ratio(row["figure"], figures.get(REFERENCE), less_is_better=unit == "ms")
        named = {"system": system.name, "model": system.model, "scenario": scenario}
        rows.append({**named, "metric": metric, "unit": unit, "ratio": ratio, **row})
    return rows


def _stream(
    scenario: str, systems: Sequence[System], rules: Rules, progress: Callable[[str], None]
) -> list[Row]:
    samples, percentile = STREAMS[scenario]
    least = least_queries(PERCENTILE)
    pooled: list[list[Latencies]] = [[] for _ in systems]
    for _ in range(rules.rounds):
        for system, parts in zip(systems, pooled, strict=True):
            progress(f"{scenario} {system.model}")
            parts.append(system.stream(samples, rules.seconds / rules.rounds))
    for system, parts in zip(systems, pooled, strict=True):
        seconds = 0.0
        while sum(part.total for part in parts) < least and seconds < rules.longest_s:
            parts.append(system.stream(samples, rules.seconds))
            seconds += rules.seconds
    return [_stream_row(Latencies.merge(parts), samples, percentile) for parts in pooled]


def _stream_row(latencies: Latencies, samples: int, percentile: float) -> Row:
    worth = estimate(latencies, percentile)
    return {
        "figure": round(latencies.quantile(percentile) / 1e3, 4),
        "early_stopping_ms": None if worth is None else round(worth / 1e3, 4),
        **_counted(latencies, samples),
    }


def _server(_: str, systems: Sequence[System], rules: Rules, progress: Callable[[str], None]) -> list[Row]:
    """Search system by system.

    A row adds `bound_ms`, `limited_by`, `late_p99_ms` and `busy` (of the generator, in the confirming runs), and
    the `search`; its percentiles are those of the confirming runs.
    """
    rows = []
    for system in systems:
        alone = system.stream(1, rules.seconds / rules.rounds).quantile(0.5)
        say = partial(_say_rate, progress, system.model)
        search = Search(system.serve, rules.search, seed=rules.seed, progress=say)
        outcome = search.run(GUESS * 1e6 / alone)
        row: Row = {
            "figure": outcome.rate and round(outcome.rate, 1),
            "bound_ms": rules.search.bound_ms,
            "limited_by": outcome.limited_by,
            "search": outcome.trace,
        }
        if outcome.confirmed:
            last = outcome.confirmed[-1]
            latencies = Latencies.merge(run.latencies for run in outcome.confirmed)
            row |= {"late_p99_ms": last.late_p99_ms, "busy": last.busy, **_counted(latencies, 1)}
        rows.append(row)
    return rows


def _offline(_: str, systems: Sequence[System], rules: Rules, progress: Callable[[str], None]) -> list[Row]:
    rows = []
    rates: list[list[float]] = [[] for _ in systems]
    latencies: list[list[Latencies]] = [[] for _ in systems]
    sizes = [_offline_size(system, rules) for system in systems]
    size = 1
    for number in range(rules.rounds):
        for place, system in enumerate(systems):
            progress(f"Offline {system.model}")
            size, timeline = system.offline(sizes[place], rules.seed + number)
            if timeline.refused or timeline.answered < timeline.queries:
                raise BenchmarkError(
                    f"{system.name}, {system.model}: of {timeline.queries} queries {timeline.answered} were answered, "
                    f"{timeline.refused} of them refused; nothing was measured"
                )
            rates[place].append(timeline.queries * size / timeline.seconds)
            latencies[place].append(timeline.latencies)
    for found, parts in zip(rates, latencies, strict=True):
        pooled = Latencies.merge(parts)
        rounds = {"rounds": [round(rate, 1) for rate in found]}
        rows.append({"figure": round(median(found), 1), **rounds, **_counted(pooled, size)})
    return rows


def _offline_size(system: System, rules: Rules) -> int:
    """Return how many samples a round needs for its part of the time, from a short run."""
    least = -(-rules.samples // rules.rounds)
    size, timeline = system.offline(max(1, least // 8), rules.seed)
    rate = timeline.answered * size / timeline.seconds
    return max(least, round(rate * rules.seconds / rules.rounds))


def _say_rate(progress: Callable[[str], None], model: str, rate: float) -> None:
    progress(f"Server {model} {rate:,.0f}/s")


def _counted(latencies: Latencies, samples: int) -> Row:
    return {
        "samples_per_query": samples,
        "queries": latencies.total,
        **latencies.quantiles("ms"),
        "histogram": latencies.compact(),
    }


def _ratio(figure: float | None, reference: float | None, *, less_is_better: bool) -> float | None:
    if not figure or not reference:
        return None
    return round(reference / figure if less_is_better else figure / reference, 3)
