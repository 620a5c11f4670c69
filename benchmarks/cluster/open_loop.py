"""An open loop whose rate changes, in a process of its own.

    python -m benchmarks.cluster.open_loop HOST PORT CONNECTIONS SECONDS RATES_FILE REQUEST_FILE...

Sends requests at each of the rates, a JSON list, for SECONDS. Prints a line of JSON for each, with the time
(`time.monotonic`) of its start.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.load.latency import Latencies
from benchmarks.load.overload import Clients, run

DEADLINE_S = 5.0


def run_rate(clients: Clients, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a rate; return the counts and the 99th percentile of the latencies in seconds."""
    clients.statuses.clear()
    clients.microseconds.clear()
    start = time.monotonic()
    report = run(clients, rate, seconds)
    latencies = Latencies.from_counts(dict(report["latency_us"]))
    return {
        "time": start,
        "offered_per_s": rate,
        "unsent": report["unsent"],
        "answered": report["statuses"].get(200, 0),
        "failed": sum(count for status, count in report["statuses"].items() if status != 200),
        "p99_s": round(latencies.quantile(0.99) / 1e6, 4) if latencies.total else None,
    }


if __name__ == "__main__":
    host_, port_, connections_, seconds_, rates_, *files = sys.argv[1:]
    bodies = [Path(file).read_bytes() for file in files]
    clients_ = Clients(host_, int(port_), int(connections_), bodies, DEADLINE_S)
    for rate_ in json.loads(Path(rates_).read_text()):
        print(json.dumps(run_rate(clients_, rate_, float(seconds_))), flush=True)
    clients_.close()
