"""Servers, models and bodies under HTTP load, interleaved, and what was measured.

Every round opens new connections: two processes on one port share connections unevenly by chance.
"""

import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple
from urllib.error import HTTPError

from prometheus_client.parser import text_string_to_metric_families
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.errors import BenchmarkError
from benchmarks.load.interleave import interleave
from benchmarks.load.latency import Latencies
from benchmarks.load.run import Load, Tool, run_load
from benchmarks.load.sessions import REFERENCE
from benchmarks.load.workloads import Workload
from benchmarks.results.ratio import Ratio

WARM_UP_S = 0.3
SERVICE_CPU_LAG_S = 0.2
"""An API process publishes its counters every 0.1 s."""
CPU_COUNTER = "distillery_process_cpu_seconds_total"


@dataclass(frozen=True)
class Case:
    """One workload at one number of connections."""

    workload: Workload
    connections: int

    @property
    def group(self) -> tuple[str, str, int]:
        """The server, the body and the connections: cases that differ in the model only are compared."""
        return self.workload.server, self.workload.body, self.connections


def cases_of(workloads: Iterable[Workload], connections: Sequence[int]) -> list[Case]:
    """Return every workload at every number of connections, with cases that are compared next to each other."""
    cases = [Case(workload, count) for workload in workloads for count in connections]
    bodies = list(dict.fromkeys(case.workload.body for case in cases))
    return sorted(
        cases,
        key=lambda case: (
            bodies.index(case.workload.body),
            case.connections,
            case.workload.model != REFERENCE,
            case.workload.model,
        ),
    )


def measure_http(
    cases: Sequence[Case],
    *,
    rounds: int,
    seconds: float,
    tool: Tool = "auto",
    cpu: Mapping[str, Callable[[], float]] | None = None,
    cpu_lag_s: float = 0,
    during: Callable[[Case], AbstractContextManager[object]] = lambda _: nullcontext(),
) -> list[dict[str, Any]]:
    """Put every case under load for `seconds` in every round, with a progress bar; return a row for each.

    A row has `server`, `model`, `body`, `images_per_request`, `connections`, `requests`, the medians of the rounds
    `requests_per_s`, `images_per_s`, `p50_ms`, `p90_ms`, `p99_ms`, `cpu_us` (CPU time per image of the servers in
    `cpu`, which returns the seconds taken until `cpu_lag_s` ago; None for others), the rounds themselves, the pooled
    histogram, and `speedup`: the improvement of requests/s over the same server's teacher (`Ratio.as_json`), None for
    the teacher and without one. `during(case)` is entered around each load.
    """
    for case in {id(case.workload): case for case in cases}.values():
        with during(case):
            run_load(case.workload, max(other.connections for other in cases), WARM_UP_S, tool="python")
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=len(cases) * rounds)

        def measure(case: Case) -> _Round:
            workload, clock = case.workload, (cpu or {}).get(case.workload.server)
            progress.update(task, description=f"{workload.server}, {workload.model}")
            with during(case):
                before = clock() if clock else 0
                load = run_load(workload, case.connections, seconds, tool=tool)
                time.sleep(cpu_lag_s)
                images = load.latencies.total * workload.images_per_request
                cpu_us = (clock() - before) * 1e6 / images if clock else None
            progress.advance(task)
            return _Round(load, cpu_us)

        measured = interleave(cases, rounds, measure)
    references = {
        case.group: own for case, own in zip(cases, measured, strict=True) if case.workload.model == REFERENCE
    }
    return [
        _row(case, own, None if case.workload.model == REFERENCE else references.get(case.group))
        for case, own in zip(cases, measured, strict=True)
    ]


def service_cpu(url: str) -> float:
    """Return the seconds of CPU time that all processes of the service at `url` (without a path) have taken.

    Background load hardly affects CPU time, while it slows every request on the wall clock.
    Raises `BenchmarkError` when the service does not publish it.
    """
    return service_counter(url, CPU_COUNTER)


def service_counter(url: str, counter: str) -> float:
    """Return a counter of the service at `url` (without a path), summed over its labels.

    Raises `BenchmarkError` when the service does not publish it.
    """
    metrics = f"{url.rstrip('/')}/metrics"
    try:
        with urllib.request.urlopen(metrics, timeout=10) as response:  # noqa: S310 - http, checked by --url
            families = list(text_string_to_metric_families(response.read().decode()))
    except OSError as error:
        if isinstance(error, HTTPError):
            error.close()
        raise BenchmarkError(f"{metrics}: no response: {error}") from error
    samples = [sample for family in families for sample in family.samples if sample.name == counter]
    if not samples:
        raise BenchmarkError(f"{metrics} has no {counter}")
    return float(sum(sample.value for sample in samples))


class _Round(NamedTuple):
    load: Load
    cpu_us: float | None


def _row(case: Case, measured: list[_Round], reference: list[_Round] | None) -> dict[str, Any]:
    loads = [one.load for one in measured]
    rates = [load.requests_per_s for load in loads]
    quantiles = [load.latencies.quantiles("ms") for load in loads]
    cpu_us = [round(one.cpu_us, 2) for one in measured if one.cpu_us is not None]
    pooled = Latencies.merge(load.latencies for load in loads)
    speedup = None
    if reference:
        speedup = Ratio.within_rounds(rates, [one.load.requests_per_s for one in reference]).as_json()
    return {
        "server": case.workload.server,
        "model": case.workload.model,
        "body": case.workload.body,
        "images_per_request": case.workload.images_per_request,
        "connections": case.connections,
        "tool": loads[0].tool,
        "requests": pooled.total,
        "requests_per_s": round(median(rates), 1),
        "images_per_s": round(median(rates) * case.workload.images_per_request, 1),
        **{name: round(median(q[name] for q in quantiles), 4) for name in quantiles[0]},
        "cpu_us": median(cpu_us) if cpu_us else None,
        "speedup": speedup,
        "rounds": {
            "requests_per_s": [round(rate, 1) for rate in rates],
            "p50_ms": [q["p50_ms"] for q in quantiles],
            "p99_ms": [q["p99_ms"] for q in quantiles],
            "cpu_us": cpu_us,
        },
        "histogram": pooled.compact(),
    }
