"""A service over HTTP as a system under test; the load comes from a process of its own."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.errors import BenchmarkError
from benchmarks.load.latency import Latencies
from benchmarks.load.run import GRACE_S, run_load
from benchmarks.load.workloads import Workload, check_answers
from benchmarks.loadgen.open_client import Plan
from benchmarks.loadgen.open_loop import Bound, Timeline
from benchmarks.loadgen.systems import BATCH
from benchmarks.systems.servers import ROOT

OFFLINE_CONNECTIONS = 8
"""Enough to keep every core busy with requests of 64 samples."""


class ServedSystem:
    """A model behind HTTP: `workloads` by samples a request, `connections` that are kept open for a run.

    The requests are written to `folder`, from which the generator reads them.
    """

    def __init__(
        self, workloads: dict[int, Workload], folder: Path, *, path: Path, connections: int, limit_s: float
    ) -> None:
        self.name, self.model = workloads[1].server, workloads[1].model
        self._workloads, self._path = workloads, path
        self._connections, self._limit_s = connections, limit_s
        self._folder = folder
        self._files: dict[int, list[str]] = {}
        for samples, workload in workloads.items():
            place = folder / f"{self.name}-{self.model}-{samples}"
            place.mkdir()
            for number, request in enumerate(workload.requests):
                (place / f"{number:04}.http").write_bytes(request)
            self._files[samples] = [str(file) for file in sorted(place.iterdir())]

    def check(self) -> None:
        for workload in self._workloads.values():
            check_answers(workload, self._path)

    def stream(self, samples: int, seconds: float) -> Latencies:
        workload = self._workloads[samples]
        run_load(workload, 1, seconds / 10, tool="python")
        return run_load(workload, 1, seconds, tool="python").latencies

    def serve(self, rate: float, queries: int, seed: int, bound: Bound) -> Timeline:
        return self._open_loop(1, queries, rate, seed, bound)

    def offline(self, samples: int, seed: int) -> tuple[int, Timeline]:
        return BATCH, self._open_loop(BATCH, -(-samples // BATCH), None, seed, None)

    def _open_loop(
        self, samples: int, queries: int, rate: float | None, seed: int, bound: Bound | None
    ) -> Timeline:
        workload = self._workloads[samples]
        address = urlsplit(workload.url)
        plan = Plan(
            host=str(address.hostname),
            port=address.port or 80,
            connections=self._connections if rate else OFFLINE_CONNECTIONS,
            files=self._files[samples],
            queries=queries,
            rate=rate,
            seed=seed,
            limit_s=self._limit_s,
            bound=bound,
        )
        return _generate(plan, self._folder / "plan.json", workload)


def _generate(plan: Plan, file: Path, workload: Workload) -> Timeline:
    """Carry out the plan in another process."""
    file.write_text(json.dumps(asdict(plan)))
    command = [sys.executable, "-m", "benchmarks.loadgen.open_client", str(file)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=plan.limit_s + GRACE_S, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{workload}: the load generator did not end") from None
    _, _, line = done.stdout.partition("RESULT ")
    if done.returncode or not line:
        raise BenchmarkError(f"{workload}: the load generator failed: {(done.stderr or done.stdout).strip()}")
    return Timeline(**json.loads(line))
