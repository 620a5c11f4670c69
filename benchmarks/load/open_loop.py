"""An open loop: requests are sent at scheduled times, whether or not earlier ones have a response.

    python -m benchmarks.load.open_loop HOST PORT CONNECTIONS LIMIT MAX_LATE FOLDER

A latency is measured from the scheduled time; it includes the time that a request waits for a connection or for the
generator. `run_schedule` runs the generator in a process of its own, which reads schedule and
requests from a folder.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.load.latency import Latencies
from benchmarks.load.overload import Clients
from benchmarks.load.run import GRACE_S

SCHEDULE_FILE, REQUESTS_FILE = "schedule.json", "requests.bin"
ANSWERED_S = 5.0
"""After the scheduled time of the last request; requests without a response by then have failed."""


class Schedule(NamedTuple):
    """The scheduled time of each request, ascending, in seconds from the start; and which request to send."""

    due: list[float]
    numbers: list[int]

    @property
    def rate(self) -> float:
        """Requests per second, from the start to the last one."""
        return len(self.due) / self.due[-1]


def poisson(rate: float, seconds: float, kinds: int, seed: int) -> Schedule:
    """Return a Poisson process of `rate` requests per second, each one of `kinds` requests; at least one request."""
    random = np.random.default_rng(seed)
    count = max(1, random.poisson(rate * seconds))
    due = np.sort(random.uniform(0, seconds, count))
    return Schedule(due.tolist(), random.integers(0, kinds, count).tolist())


@dataclass(frozen=True, kw_only=True)
class OpenLoad:
    """What became of the requests of a schedule."""

    seconds: float
    """Until the last response."""
    scheduled: int
    ended: int
    """Requests that were answered, with any status, or whose connection was closed."""
    late: int
    """Requests without status 200 within the limit, unanswered ones included."""
    gave_up: bool
    """True if the run ended early because too many requests were late; requests in flight are not counted as late."""
    statuses: dict[int, int]
    latencies: Latencies | None
    """Of responses with status 200; None without any."""
    lag_p99_ms: float
    """From the scheduled time until the request was sent: the generator's part."""
    generator_cores: float

    @property
    def late_share(self) -> float:
        """Of the requests that have ended, or of all if some never did."""
        return self.late / max(1, self.ended if self.gave_up else self.scheduled)


def run_schedule(
    url: str,
    requests: Sequence[bytes],
    schedule: Schedule,
    *,
    connections: int,
    limit_s: float,
    max_late: int | None = None,
) -> OpenLoad:
    """Send the scheduled ones of `requests`, complete HTTP/1.1 requests to `url`, over new connections.

    The run ends as soon as more than `max_late` requests are late, if it is given. Raises `BenchmarkError` when the
    generator fails.
    """
    address = urlsplit(url)
    with tempfile.TemporaryDirectory(prefix="distillery-load-") as folder:
        _write(Path(folder), requests, schedule)
        place = (str(address.hostname), str(address.port or 80), str(connections))
        limits = (f"{limit_s:.9g}", str(len(schedule.due) if max_late is None else max_late))
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.load.open_loop",
                    *place,
                    *limits,
                    folder,
                ],
                capture_output=True,
                text=True,
                timeout=schedule.due[-1] + ANSWERED_S + GRACE_S,
                check=False,
                cwd=Path(__file__).parents[2],
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{url}: the load generator did not end; the server may hang") from None
    _, _, line = done.stdout.rpartition("RESULT ")
    if done.returncode or not line:
        raise BenchmarkError(f"{url}: the load generator failed: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(line)
    counts = dict(report.pop("latency_us"))
    report["statuses"] = {int(status): count for status, count in report["statuses"].items()}
    return OpenLoad(**report, latencies=Latencies.from_counts(counts) if counts else None)


def follow(clients: Clients, requests: Sequence[bytes], schedule: Schedule, max_late: int) -> dict[str, Any]:
    """Send the requests when they are due; return the fields of `OpenLoad`, with `latency_us` for its latencies."""
    start, cpu = time.perf_counter(), time.process_time()
    due, numbers = deque(schedule.due), deque(schedule.numbers)
    total, sent, gave_up = len(due), 0, False
    lags = []
    now = start
    while now < start + schedule.due[-1] + ANSWERED_S:
        while due and start + due[0] <= now and clients.send(requests[numbers[0]], start + due[0]):
            lags.append(time.perf_counter() - start - due.popleft())
            numbers.popleft()
            sent += 1
        ended = sum(clients.statuses.values())
        if gave_up := ended - clients.good > max_late:
            break
        if not due and ended >= sent:
            break
        # Without an idle connection, the next event is a response.
        wait = start + due[0] - time.perf_counter() if due and clients.idle else 0.05
        clients.receive(max(0.0, wait))
        now = time.perf_counter()
    seconds = time.perf_counter() - start
    ended = sum(clients.statuses.values())
    return {
        "seconds": round(seconds, 4),
        "scheduled": total,
        "ended": ended,
        "late": (ended if gave_up else total) - clients.good,
        "gave_up": gave_up,
        "statuses": dict(clients.statuses),
        "latency_us": sorted(clients.microseconds.items()),
        "lag_p99_ms": round(float(np.quantile(lags, 0.99)) * 1e3, 4) if lags else 0.0,
        "generator_cores": round((time.process_time() - cpu) / seconds, 4),
    }


def _write(folder: Path, requests: Sequence[bytes], schedule: Schedule) -> None:
    lengths = [len(request) for request in requests]
    (folder / SCHEDULE_FILE).write_text(json.dumps({**schedule._asdict(), "lengths": lengths}))
    (folder / REQUESTS_FILE).write_bytes(b"".join(requests))


def _read(folder: Path) -> tuple[list[bytes], Schedule]:
    plan = json.loads((folder / SCHEDULE_FILE).read_text())
    content, ends = (folder / REQUESTS_FILE).read_bytes(), list(accumulate(plan["lengths"]))
    requests = [content[end - length : end] for end, length in zip(ends, plan["lengths"], strict=True)]
    return requests, Schedule(plan["due"], plan["numbers"])


def main(arguments: Sequence[str]) -> None:
    """Run the schedule in the folder that the arguments name and print its report."""
    host, port, connections, limit, max_late, folder = arguments
    requests, schedule = _read(Path(folder))
    clients = Clients(host, int(port), int(connections), requests, float(limit))
    report = follow(clients, requests, schedule, int(max_late))
    clients.close()
    print("RESULT", json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
