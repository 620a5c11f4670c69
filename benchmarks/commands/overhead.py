"""`distillery-bench overhead`: what feedback and the request log cost a request that has nothing to do with them.

Each case is a service of its own with one API process; in each round every service is loaded once. Compared are the CPU
time of the process per request, all threads included, and throughput, within the round. The service without any of it
runs twice: the ratio of the two is what the measurement itself shows.
"""

import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.http import SERVICE_CPU_LAG_S, service_cpu
from benchmarks.load.interleave import interleave
from benchmarks.load.run import run_load
from benchmarks.load.workloads import BodyKind, Workload, check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import Ratio
from benchmarks.systems.servers import ServerProcess, running_service
from serving.model.repository import default_model

PLAIN = "nothing"
AGAIN = "nothing, again"
CASES = {
    PLAIN: ["--no-feedback"],
    AGAIN: ["--no-feedback"],
    "feedback": ["--feedback"],
    "request log": ["--no-feedback", "--request-log", "LOG"],
    "both": ["--feedback", "--request-log", "LOG"],
}
"""Flags of the service by case; LOG is replaced by a new folder."""
_WARM_UP_S = 1.0


class Overhead(Bench, RepositorySettings):
    """Measure what feedback and the request log cost a request, interleaved.

    With the default model, which is the fastest, the share is the largest.
    """

    limitations = (
        "the load generator shares the cores with the service",
        "one image per request, and a log of the default share of them: the cost of a row grows with the share",
    )
    examples = ("distillery-bench overhead --rounds 5 --seconds 1",)

    model: str | None = Field(None, description="model to serve; default: that of the service")
    body: BodyKind = Field("json", description="request body")
    connections: PositiveInt = Field(16, description="concurrent requests")
    seconds: PositiveFloat = Field(2.0, description="seconds per case and round; whole seconds with wrk")
    rounds: PositiveInt = Field(20, description="rounds; each measures every case once")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        model = self.model or default_model(entries)
        with ExitStack() as stack:
            servers = {case: self._start(stack, flags) for case, flags in CASES.items()}
            workloads = {
                case: service_workload(server.url, model, self.body, server=case)
                for case, server in servers.items()
            }
            for workload in workloads.values():
                check_answers(workload, entries[model].path)
                run_load(workload, self.connections, _WARM_UP_S)
            plan = [(servers[case], workload) for case, workload in workloads.items()]
            measured = interleave(plan, self.rounds, partial(_measure, self.connections, self.seconds))
        rounds = dict(zip(CASES, measured, strict=True))
        return {
            "models": model_facts(entries),
            "model": model,
            "body": self.body,
            "connections": self.connections,
            "rows": [_row(case, rounds[case], rounds[PLAIN]) for case in CASES],
        }

    def _start(self, stack: ExitStack, flags: list[str]) -> ServerProcess:
        log = stack.enter_context(tempfile.TemporaryDirectory(prefix="distillery-log-"))
        found = [str(Path(log)) if flag == "LOG" else flag for flag in flags]
        return stack.enter_context(running_service(self.models_dir, "--api-servers", "1", *found))


def _measure(connections: int, seconds: float, case: tuple[ServerProcess, Workload]) -> dict[str, float]:
    """Load one service; return its CPU time per request and its throughput."""
    server, workload = case
    before = service_cpu(server.url)
    load = run_load(workload, connections, seconds)
    time.sleep(SERVICE_CPU_LAG_S)
    cpu = service_cpu(server.url) - before
    return {
        "cpu_us": cpu * 1e6 / load.latencies.total,
        "requests_per_s": load.requests_per_s,
        "p99_ms": load.latencies.quantiles("ms")["p99_ms"],
    }


def _row(case: str, rounds: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of a case, and its ratios to the plain one within the rounds."""
    row: dict[str, Any] = {"case": case}
    for figure in rounds[0]:
        values, reference = [one[figure] for one in rounds], [one[figure] for one in plain]
        row[figure] = round(median(values), 3)
        row[f"{figure}_ratio"] = Ratio.within_rounds(values, reference).as_json() if case != PLAIN else None
    return row | {"rounds": rounds}
