"""Load generators: a closed loop of n connections, always in a process of its own.

wrk (Debian's package) where it is installed, `benchmarks.load.closed_loop` otherwise. Both cycle through the same
prepared requests and report every latency. A run with a failed request raises `BenchmarkError`.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from benchmarks.errors import BenchmarkError
from benchmarks.load.latency import Latencies
from benchmarks.load.workloads import Workload

Tool = Literal["auto", "wrk", "python"]
LUA = Path(__file__).with_name("wrk.lua")
GRACE_S = 30
"""A generator that runs for this long after its time has failed."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The result of one run of a generator."""

    tool: str
    seconds: float
    latencies: Latencies

    @property
    def requests_per_s(self) -> float:
        """Responses per second of the run."""
        return self.latencies.total / self.seconds


def choose_tool(tool: Tool) -> Literal["wrk", "python"]:
    """Resolve "auto". Raises `BenchmarkError` for wrk where it is not installed."""
    found = shutil.which("wrk")
    if tool == "wrk" and not found:
        raise BenchmarkError(
            "--tool wrk: wrk is not installed; `make system` installs it, or use --tool python"
        )
    return "wrk" if tool != "python" and found else "python"


def describe_tool(tool: Literal["wrk", "python"]) -> str:
    """Return the generator's name and version."""
    if tool == "python":
        return "benchmarks.load.closed_loop"
    # wrk -v always exits with 1.
    process = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return (process.stdout + process.stderr).partition(" [")[0]


def run_load(workload: Workload, connections: int, seconds: float, *, tool: Tool = "auto") -> Load:
    """Open `connections` new connections and keep one request in flight on each for `seconds`."""
    chosen = choose_tool(tool)
    with tempfile.TemporaryDirectory(prefix="distillery-load-") as folder:
        files = [Path(folder) / f"{number}.http" for number in range(len(workload.requests))]
        for file, request in zip(files, workload.requests, strict=True):
            file.write_bytes(request)
        if chosen == "wrk":
            seconds = math.ceil(seconds)
            options = [f"-c{connections}", f"-d{seconds}s", "-s", str(LUA), workload.url, "--"]
            report = _report_of(["wrk", "-t1", *options, *map(str, files)], seconds, workload)
            counts = uncorrected(report, connections)
        else:
            address = urlsplit(workload.url)
            place = [str(address.hostname), str(address.port or 80)]
            program = [sys.executable, "-m", "benchmarks.load.closed_loop"]
            command = [*program, *place, str(connections), str(seconds), *map(str, files)]
            report = _report_of(command, seconds, workload)
            counts = dict(report["latency"])
    return Load(tool=chosen, seconds=report["duration_us"] / 1e6, latencies=Latencies.from_counts(counts))


def uncorrected(report: dict[str, Any], connections: int) -> dict[int, int]:
    """Remove the samples that wrk 4 adds to its histogram; return the measured latencies in microseconds.

    To correct for coordinated omission, wrk assumes one request per connection each `interval` (the mean latency, in a
    closed loop) and adds, for every latency n > 2 * interval, samples of n - interval, n - 2 * interval and so on, as
    long as these are greater than the interval. In a closed loop those requests do not exist. The added samples are
    always smaller than their origin, so a pass from the largest value down removes them exactly; the number of samples
    that remain must be the number of requests.
    """
    shown = {int(value): int(count) for value, count in report["latency"]}
    interval = report["duration_us"] // max(1, report["requests"] // connections)
    added: Counter[int] = Counter()
    seen = {}
    for value in sorted(shown, reverse=True):
        seen[value] = shown[value] - added[value]
        for lower in range(value - interval, interval, -interval):
            added[lower] += seen[value]
    if sum(seen.values()) != report["requests"] or min(seen.values(), default=0) < 0:
        raise BenchmarkError(
            "the histogram of this wrk has another correction than that of wrk 4.1; use --tool python"
        )
    return {value: count for value, count in seen.items() if count}


def _report_of(command: list[str], seconds: float, workload: Workload) -> dict[str, Any]:
    """Run a generator and return the JSON that it prints after the word RESULT."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_S,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(
            f"{workload}: {command[0]} did not end within {seconds + GRACE_S:g} s; the server may hang"
        ) from None
    _, _, line = done.stdout.rpartition("\nRESULT " if command[0] == "wrk" else "RESULT ")
    if done.returncode != 0 or not line:
        raise BenchmarkError(f"{workload}: the load generator failed: {(done.stderr or done.stdout).strip()}")
    report: dict[str, Any] = json.loads(line)
    if not report["requests"] or any(report["errors"].values()):
        raise BenchmarkError(
            f"{workload}: {report['requests']} requests with errors: {report['errors']}; nothing was measured"
        )
    return report
