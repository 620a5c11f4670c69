"""A closed loop over HTTP/1.1 in a process of its own, for machines without wrk and for rounds below a second.

    python -m benchmarks.load.closed_loop HOST PORT CONNECTIONS SECONDS REQUEST_FILE...

Each file is one complete request; they are sent cyclically. Every connection sends its next request as soon as the
response to the last one is complete. Prints one line of JSON in the format of `wrk.lua`.
"""

import json
import sys
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.load.connection import PATIENCE_S, Pool


def closed_loop(
    host: str, port: int, connections: int, seconds: float, requests: list[bytes]
) -> dict[str, Any]:
    """Keep `connections` requests in flight for `seconds` and report the latency of every response."""
    endless = cycle(requests)
    microseconds: Counter[int] = Counter()
    failed = 0
    pool = Pool(host, port, connections)
    now = last = start = time.perf_counter()
    for connection in pool.connections:
        pool.begin(connection, next(endless))
    while now < start + seconds:
        for connection, status in pool.responses(PATIENCE_S):
            last = time.perf_counter()
            microseconds[round((last - connection.started) * 1e6)] += 1
            failed += status != 200
            pool.begin(connection, next(endless))
        now = time.perf_counter()
        if now - last > PATIENCE_S:
            raise ConnectionError(f"no response within {PATIENCE_S} s")
    pool.close()
    return {
        "requests": microseconds.total(),
        "duration_us": round((now - start) * 1e6),
        "errors": {"status": failed},
        "latency": sorted(microseconds.items()),
    }


if __name__ == "__main__":
    host_, port_, connections_, seconds_, *files = sys.argv[1:]
    try:
        report = closed_loop(
            host_, int(port_), int(connections_), float(seconds_), [Path(file).read_bytes() for file in files]
        )
    except OSError as error:
        sys.exit(str(error))
    print("RESULT", json.dumps(report))
