"""The load generator: a closed loop of N connections, always in a process outside the server's.

wrk (Debian's package) where it is installed, `benchmarks.load.closed_loop` otherwise. Both send the same prepared bytes
in turns and report every single latency. A run with one failed request is no measurement: it raises.
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
"""A generator that has not ended so long after its time is stuck."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one run of a generator saw."""

    tool: str
    seconds: float
    latencies: Latencies

    @property
    def requests_per_s(self) -> float:
        """Answers by the time they took together."""
        return self.latencies.total / self.seconds


def choose_tool(tool: Tool) -> Literal["wrk", "python"]:
    """Turn "auto" into what this machine has. Raises `BenchmarkError` where wrk is wanted and missing."""
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
    said = subprocess.run(
        ["wrk", "-v"], capture_output=True, text=True, check=False
    )  # its status is always 1
    return (said.stdout + said.stderr).partition(" [")[0]


def run_load(workload: Workload, connections: int, seconds: float, *, tool: Tool = "auto") -> Load:
    """Open `connections` new connections and keep each of them busy for `seconds`."""
    chosen = choose_tool(tool)
    with tempfile.TemporaryDirectory(prefix="distillery-load-") as folder:
        files = []
        for number, request in enumerate(workload.requests):
            file = Path(folder) / f"{number}.http"
            file.write_bytes(request)
            files.append(str(file))
        if chosen == "wrk":
            return _run_wrk(workload, connections, math.ceil(seconds), files)
        return _run_python(workload, connections, seconds, files)


def _run_wrk(workload: Workload, connections: int, seconds: int, files: list[str]) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(LUA), workload.url, "--", *files]
    report = _report_of(command, seconds, workload)
    counts = uncorrected(report, connections)
    return Load(tool="wrk", seconds=report["duration_us"] / 1e6, latencies=Latencies.from_counts(counts))


def _run_python(workload: Workload, connections: int, seconds: float, files: list[str]) -> Load:
    address = urlsplit(workload.url)
    where = [str(address.hostname), str(address.port or 80)]
    command = [
        sys.executable,
        "-m",
        "benchmarks.load.closed_loop",
        *where,
        str(connections),
        str(seconds),
        *files,
    ]
    report = _report_of(command, seconds, workload)
    counts = {int(value): int(count) for value, count in report["latency"]}
    return Load(tool="python", seconds=report["duration_us"] / 1e6, latencies=Latencies.from_counts(counts))


def uncorrected(report: dict[str, Any], connections: int) -> dict[int, int]:
    """Take back what wrk 4 adds to its histogram and return the latencies that were seen, in microseconds.

    Meaning to correct for coordinated omission, wrk assumes one request per connection each `interval` (the
    mean latency, in a closed loop) and adds, for every latency n > 2 * interval, samples of n - interval,
    n - 2 * interval and so on, as long as these are greater than the interval. In a closed loop nobody waits
    for those requests. The additions only ever go downwards, so walking from the top undoes them exactly;
    that as many samples remain as there were requests is checked.
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
            "this wrk counts latencies in a way we do not know (4.1 was expected); use --tool python"
        )
    return {value: count for value, count in seen.items() if count}


def _report_of(command: list[str], seconds: float, workload: Workload) -> dict[str, Any]:
    """Run a generator and return the JSON it prints after the word RESULT."""
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
        raise BenchmarkError(f"{workload}: {command[0]} did not end; does the server hang?") from None
    _, _, line = done.stdout.rpartition("\nRESULT " if command[0] == "wrk" else "RESULT ")
    if done.returncode != 0 or not line:
        raise BenchmarkError(f"{workload}: the load generator failed: {(done.stderr or done.stdout).strip()}")
    report: dict[str, Any] = json.loads(line)
    if not report["requests"] or any(report["errors"].values()):
        raise BenchmarkError(
            f"{workload}: of {report['requests']} requests some failed: {report['errors']}; nothing was measured"
        )
    return report
