"""Several servers, models and bodies under load in turns, and what came of it.

Round after round every case has its turn on new connections: two processes on one port share connections
unevenly by chance, and a machine is not the same from minute to minute. What is compared runs side by side,
ratios are taken within a round, and the median of the rounds is reported with all rounds beside it.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.load.latency import Latencies
from benchmarks.load.run import Load, Tool, run_load
from benchmarks.load.sessions import REFERENCE
from benchmarks.load.workloads import Workload

WARM_UP_S = 0.3


@dataclass(frozen=True)
class Case:
    """One workload at one number of connections."""

    workload: Workload
    connections: int

    @property
    def kind(self) -> tuple[str, int]:
        """Cases of one kind are compared with each other."""
        return self.workload.body, self.connections


def order(workloads: Iterable[Workload], connections: Sequence[int]) -> list[Case]:
    """Put what will be compared side by side: by body and connections, by model, and then the servers."""
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


def measure_in_turns(
    cases: Sequence[Case],
    *,
    rounds: int,
    seconds: float,
    tool: Tool = "auto",
    progress: Callable[[Case], None] = lambda _: None,
    turn: Callable[[Case], AbstractContextManager[object]] = lambda _: nullcontext(),
) -> list[dict[str, Any]]:
    """Run every case in every round, backwards in every other one, and return a row for each.

    A row has `server`, `model`, `body`, `images_per_request`, `connections`, `requests`, the medians of the
    rounds `requests_per_s`, `images_per_s`, `p50_ms`, `p90_ms`, `p99_ms`, the rounds themselves, the pooled
    histogram, and `speedup`: requests/s by those of the same server's teacher (None without one).
    A case is under load inside of its `turn` only.
    """
    for case in {id(case.workload): case for case in cases}.values():
        with turn(case):
            run_load(case.workload, max(other.connections for other in cases), WARM_UP_S, tool="python")
    loads: dict[int, list[Load]] = {index: [] for index in range(len(cases))}
    for number in range(rounds):
        for index in range(len(cases)) if number % 2 == 0 else reversed(range(len(cases))):
            case = cases[index]
            with turn(case):
                loads[index].append(run_load(case.workload, case.connections, seconds, tool=tool))
            progress(case)
    references = {
        (case.workload.server, case.kind): loads[index]
        for index, case in enumerate(cases)
        if case.workload.model == REFERENCE
    }
    return [
        _row(case, loads[index], references.get((case.workload.server, case.kind)))
        for index, case in enumerate(cases)
    ]


def _row(case: Case, loads: list[Load], reference: list[Load] | None) -> dict[str, Any]:
    rates = [load.requests_per_s for load in loads]
    quantiles = [load.latencies.quantiles("ms") for load in loads]
    pooled = Latencies.merge(load.latencies for load in loads)
    speedup = None
    if reference:
        theirs = (load.requests_per_s for load in reference)
        speedup = round(median(ours / their for ours, their in zip(rates, theirs, strict=True)), 3)
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
        "speedup": speedup,
        "rounds": {
            "requests_per_s": [round(rate, 1) for rate in rates],
            "p50_ms": [q["p50_ms"] for q in quantiles],
            "p99_ms": [q["p99_ms"] for q in quantiles],
        },
        "histogram": pooled.compact(),
    }
