"""`distillery-bench overhead`: what feedback, the request log and shadow traffic cost the other requests.

In each round, the service of every case, with one API process, is started and loaded once: two processes of the same
program differ in speed by some percent, as long as they live. Compared are the CPU time of the process per request, all
threads included, and throughput, within the round. The service without any of it runs twice: the ratio of the two is
what the measurement itself shows. All services have the same repository, two equal versions of one model, and the same
API key.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.errors import BenchmarkError
from benchmarks.load.http import SERVICE_CPU_LAG_S, service_counter, service_cpu
from benchmarks.load.interleave import interleave
from benchmarks.load.run import run_load
from benchmarks.load.workloads import BodyKind, Workload, check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import Ratio
from benchmarks.systems.candidates import write_versions
from benchmarks.systems.servers import running_service
from serving.engine.metrics.series import SHADOW_COMPARISONS, SHADOW_DROPPED
from serving.model.repository import ALIASES, ModelEntry, default_model

PLAIN = "nothing"
AGAIN = "nothing, again"
SHADOW = "shadow"
CASES = {
    PLAIN: ["--no-feedback"],
    AGAIN: ["--no-feedback"],
    "feedback": ["--feedback"],
    "request log": ["--no-feedback", "--request-log", "LOG"],
    "both": ["--feedback", "--request-log", "LOG"],
    SHADOW: ["--no-feedback"],
}
"""Flags of the service by case; LOG is replaced by a new folder."""
MIRRORED = 0.05
"""Share of the requests that the candidate repeats in the case `shadow`."""
KEY = "benchmark"
_WARM_UP_S = 1.0
_START_S = 60


class Overhead(Bench, RepositorySettings):
    """Measure what feedback, request log and shadow traffic cost.

    With the default model, which is the fastest, the share is the largest. The candidate of the shadow traffic is
    another version with the same graph, and its runs are part of the CPU time.
    """

    limitations = (
        "the load generator shares the cores with the service",
        "one image per request, and a log of the default share of them: the cost of a row grows with the share",
        "the CPU time of the case shadow includes the candidate's runs, which cost as much as those of the stable "
        "version, in runs of a tenth of a second's requests",
    )
    examples = ("distillery-bench overhead --rounds 5 --seconds 1",)

    model: str | None = Field(None, description="model to serve; default: that of the service")
    body: BodyKind = Field("json", description="request body")
    connections: PositiveInt = Field(16, description="concurrent requests")
    seconds: PositiveFloat = Field(2.0, description="seconds per case and round; whole seconds with wrk")
    rounds: PositiveInt = Field(16, description="rounds; each starts and measures every case once")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        model = self.model or default_model(entries)
        entry = entries[model]
        measured = interleave(list(CASES), self.rounds, partial(self._measure, entry))
        rounds = dict(zip(CASES, measured, strict=True))
        return {
            "models": model_facts(entries),
            "model": model,
            "body": self.body,
            "connections": self.connections,
            "mirrored": MIRRORED,
            "rows": [_row(case, rounds[case], rounds[PLAIN]) for case in CASES],
        }

    def _measure(self, entry: ModelEntry, case: str) -> dict[str, float]:
        """Start the service of a case and load it; return CPU time per request, throughput, and what was mirrored."""
        with tempfile.TemporaryDirectory(prefix="distillery-overhead-") as name:
            folder = Path(name)
            (folder / "log").mkdir()
            write_versions(folder / "models", entry.name, [entry, entry])
            flags = [str(folder / "log") if flag == "LOG" else flag for flag in CASES[case]]
            flags = ["--api-servers", "1", "--api-key", KEY, *flags]
            with running_service(folder / "models", *flags) as server:
                if case == SHADOW:
                    _mirror(server.url, entry.name)
                headers = {"X-API-Key": KEY}
                workload = service_workload(server.url, ALIASES[0], self.body, server=case, headers=headers)
                check_answers(workload, entry.path)
                run_load(workload, self.connections, _WARM_UP_S)
                return _loaded(server.url, workload, self.connections, self.seconds)


def _mirror(url: str, model: str) -> None:
    """Let the candidate repeat a share of the requests. Raises `BenchmarkError`."""
    release = {"candidate": f"{model}/2", "share": 0, "shadow": MIRRORED}
    answer = httpx.put(f"{url}/release", json=release, headers={"X-API-Key": KEY}, timeout=_START_S)
    if answer.status_code != 200:
        raise BenchmarkError(f"PUT /release: status {answer.status_code}: {answer.text[:500]}")


def _loaded(url: str, workload: Workload, connections: int, seconds: float) -> dict[str, float]:
    """Load a service and return its figures."""
    before = _counters(url)
    load = run_load(workload, connections, seconds)
    time.sleep(SERVICE_CPU_LAG_S)
    growth = {name: value - before[name] for name, value in _counters(url).items()}
    return {
        "cpu_us": growth["cpu"] * 1e6 / load.latencies.total,
        "requests_per_s": load.requests_per_s,
        "p99_ms": load.latencies.quantiles("ms")["p99_ms"],
        "requests": load.latencies.total,
        "mirrored": growth["mirrored"],
        "left_out": growth["left_out"],
    }


def _counters(url: str) -> dict[str, float]:
    return {
        "cpu": service_cpu(url),
        "mirrored": service_counter(url, SHADOW_COMPARISONS),
        "left_out": service_counter(url, SHADOW_DROPPED),
    }


def _row(case: str, rounds: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of a case, its ratios to the plain one within the rounds, and the share that was mirrored."""
    row: dict[str, Any] = {"case": case}
    for figure in ("cpu_us", "requests_per_s", "p99_ms"):
        values, reference = [one[figure] for one in rounds], [one[figure] for one in plain]
        row[figure] = round(median(values), 3)
        row[f"{figure}_ratio"] = Ratio.within_rounds(values, reference).as_json() if case != PLAIN else None
    requests = sum(one["requests"] for one in rounds)
    for counted in ("mirrored", "left_out"):
        row[f"{counted}_share"] = round(sum(one[counted] for one in rounds) / requests, 6)
    return row | {"rounds": rounds}
