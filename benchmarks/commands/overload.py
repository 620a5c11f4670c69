"""`distillery-bench overload`: what the service still does when it gets more than it can do."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt
from rich.progress import track

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.errors import BenchmarkError
from benchmarks.load.latency import Latencies
from benchmarks.load.run import GRACE_S
from benchmarks.load.workloads import BodyKind, Workload, check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.systems.servers import ServerProcess, running_service

CAPACITY_CONNECTIONS = 16
"""Of the closed loop that measures the capacity."""
SETTLE_S = 1.0
"""After an overload, within which the service must have recovered."""


class Case(NamedTuple):
    """A load: an open loop of `times` the capacity, or a closed loop that retries at once."""

    connections: int
    times: float = 0
    """0: a closed loop."""

    def __str__(self) -> str:
        return f"{self.times:g}× open" if self.times else f"{self.connections:,} closed"


class Overload(Bench, RepositorySettings):
    """Measure goodput and latency under more load than the service can serve.

    Goodput is the number of responses with status 200 within the deadline, as a share of the capacity: the goodput of
    16 connections, measured before each case; also per second of the service's CPU time, which the generator does not
    share. The deadline is the service's --request-timeout.
    """

    limitations = (
        "the load generator, in Python, shares the cores with the service: what it takes is missing from the goodput",
        "an open loop offers at most what the generator can send: see offered",
    )
    examples = ("distillery-bench overload --rounds 1 --seconds 2 --body json-64",)

    model: str = Field("teacher", description="model to serve")
    body: list[BodyKind] = Field(["json", "json-64"], description="request bodies")
    deadline: PositiveFloat = Field(0.5, description="seconds, --request-timeout of the service")
    times: list[PositiveFloat] = Field([1, 2, 5, 20], description="open loops, in multiples of the capacity")
    connections: list[PositiveInt] = Field(
        [256, 1000], description="closed loops; open ones use as many as the largest"
    )
    seconds: PositiveFloat = Field(5.0, description="seconds per case and round")
    rounds: PositiveInt = Field(3, description="rounds; each measures every case once")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        cases = [Case(max(self.connections), times) for times in self.times]
        cases += [Case(count) for count in self.connections]
        with running_service(self.models_dir, "--request-timeout", f"{self.deadline:g}") as server:
            workloads = [service_workload(server.url, self.model, body) for body in self.body]
            for workload in workloads:
                check_answers(workload, entries[self.model].path)
                self._load(workload, Case(CAPACITY_CONNECTIONS), 1.0, 0)  # warm up
            plan = [(workload, case) for workload in workloads for case in cases]
            measured: dict[tuple[str, Case], list[dict[str, Any]]] = {}
            for _ in range(self.rounds):
                for workload, case in track(plan, "overload", transient=True):
                    measured.setdefault((workload.body, case), []).append(self._round(server, workload, case))
        rows = [_row(body, case, rounds, self.deadline) for (body, case), rounds in measured.items()]
        return {
            "models": model_facts(entries),
            "model": self.model,
            "deadline": self.deadline,
            "rounds": self.rounds,
            "rows": rows,
        }

    def _round(self, server: ServerProcess, workload: Workload, case: Case) -> dict[str, Any]:
        cpu = server.cpu_seconds()
        capacity = self._load(workload, Case(CAPACITY_CONNECTIONS), 1.0, 0)
        capacity_cpu = server.cpu_seconds() - cpu
        per_s = capacity["good"] / capacity["seconds"]
        before, cpu = server.memory_mib(), server.cpu_seconds()
        report = self._load(workload, case, self.seconds, case.times * per_s)
        after, overload_cpu = server.memory_mib(), server.cpu_seconds() - cpu
        time.sleep(SETTLE_S)
        recovered = self._load(workload, Case(CAPACITY_CONNECTIONS), 0.5, 0)
        return report | {
            "capacity": per_s,
            "efficiency": report["good"] / overload_cpu / (capacity["good"] / capacity_cpu),
            "memory_mib": after - before,
            "recovered": recovered["good"] / recovered["seconds"] / per_s,
        }

    def _load(self, workload: Workload, case: Case, seconds: float, rate: float) -> dict[str, Any]:
        """Run the generator. Raises `BenchmarkError`."""
        address = urlsplit(workload.url)
        with tempfile.TemporaryDirectory(prefix="distillery-load-") as folder:
            files = [Path(folder) / f"{number}.http" for number in range(len(workload.requests))]
            for file, request in zip(files, workload.requests, strict=True):
                file.write_bytes(request)
            place = (str(address.hostname), str(address.port), str(case.connections))
            numbers = (f"{rate:.6g}", f"{seconds:g}", f"{self.deadline:g}")
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.load.overload", *place, *numbers, *map(str, files)],
                capture_output=True,
                text=True,
                timeout=seconds + GRACE_S,
                check=False,
                cwd=Path(__file__).parents[2],
            )
        _, _, line = done.stdout.rpartition("RESULT ")
        if done.returncode or not line:
            raise BenchmarkError(f"{workload}: the load generator failed: {done.stderr.strip()}")
        report: dict[str, Any] = json.loads(line)
        return report


def _row(body: str, case: Case, rounds: list[dict[str, Any]], deadline: float) -> dict[str, Any]:
    """Return the medians of the rounds; rates per second."""

    def rate(name: str) -> float:
        return float(round(median(one["statuses"].get(name, 0) / one["seconds"] for one in rounds), 1))

    latencies = Latencies.merge(
        Latencies.from_counts(dict(one["latency_us"])) for one in rounds if one["latency_us"]
    )
    goodput = [one["good"] / one["seconds"] for one in rounds]
    shares = [good / one["capacity"] for good, one in zip(goodput, rounds, strict=True)]
    known = {"200", "503", "504"}
    return {
        "body": body,
        "case": str(case),
        "connections": case.connections,
        "times": case.times,
        "capacity_per_s": round(median(one["capacity"] for one in rounds), 1),
        "offered_per_s": round(median(sum(one["statuses"].values()) / one["seconds"] for one in rounds), 1),
        "unsent_per_s": round(median(one["unsent"] / one["seconds"] for one in rounds), 1),
        "goodput_per_s": round(median(goodput), 1),
        "goodput_share": round(median(shares), 3),
        "goodput_shares": [round(share, 3) for share in shares],
        "goodput_per_cpu_second": round(median(one["efficiency"] for one in rounds), 3),
        "generator_cores": round(median(one["cpu"] / one["seconds"] for one in rounds), 2),
        "late_per_s": round(
            median((one["statuses"].get("200", 0) - one["good"]) / one["seconds"] for one in rounds), 1
        ),
        "rejected_per_s": rate("503"),
        "timed_out_per_s": rate("504"),
        "others": sum(count for one in rounds for status, count in one["statuses"].items() if status not in known),
        "p50_ms": round(latencies.quantile(0.5) / 1e3, 1),
        "p99_ms": round(latencies.quantile(0.99) / 1e3, 1),
        "within_deadline": bool(latencies.quantile(0.99) / 1e6 <= deadline),
        "memory_mib": round(max(one["memory_mib"] for one in rounds), 1),
        "recovered": round(median(one["recovered"] for one in rounds), 3),
    }  # fmt: skip
