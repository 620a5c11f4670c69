"""An open loop over HTTP/1.1 in a process of its own: queries are sent when they arrive, whatever the server does.

    python -m benchmarks.loadgen.open_client PLAN.json        the fields of `Plan`; prints a `Timeline` as JSON

The schedule is made before the clock starts. A query that finds every connection busy waits for one, and its
latency counts from the time it should have been sent. How late the generator itself was, that is while a
connection was free, is told apart; so is how much of the time it had nothing to do.
"""

import contextlib
import gc
import json
import select
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load.connection import Pool
from benchmarks.loadgen.arrivals import all_at_once, draw_samples, poisson_arrivals
from benchmarks.loadgen.open_loop import Bound, Timeline, timeline

NEAR_S = 20e-6
"""A wait so short is not worth a sleep, which comes back some 30 µs late."""
OK = 200


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the generator is to do."""

    host: str
    port: int
    connections: int
    files: list[str]
    """Each has one complete request."""
    queries: int
    rate: float | None
    """Poisson arrivals a second; None: everything arrives at the start."""
    seed: int
    limit_s: float
    """Ends by itself so long after the start."""
    bound: Bound | None = None


def open_loop(plan: Plan) -> Timeline:
    """Carry out the plan. Raises `ConnectionError` when the server hangs up."""
    requests = [Path(file).read_bytes() for file in plan.files]
    chosen = [requests[index] for index in draw_samples(len(requests), plan.queries, plan.seed)]
    arrivals = (
        poisson_arrivals(plan.rate, plan.queries, plan.seed) if plan.rate else all_at_once(plan.queries)
    )
    pool = Pool(plan.host, plan.port, plan.connections)
    warm_up = [requests[0]] * plan.connections
    _run(pool, warm_up, [0.0] * len(warm_up), limit_s=plan.limit_s, bound=None)
    result = _run(pool, chosen, arrivals.tolist(), limit_s=plan.limit_s, bound=plan.bound)
    pool.close()
    return result


def _run(
    pool: Pool, requests: list[bytes], arrivals: list[float], *, limit_s: float, bound: Bound | None
) -> Timeline:
    """Send every request at its time, or later when no connection is free, and time every answer."""
    clock = time.perf_counter
    free = deque((connection, 0.0) for connection in pool.connections)  # and since when
    late = [0.0] * len(arrivals)
    answered: list[int] = []
    latency: list[float] = []
    bound_s, allowed = (bound.ms / 1e3, bound.allowed) if bound else (float("inf"), 0)
    following = slow = refused = 0
    idle_s = now = 0.0
    start = clock()
    while len(answered) < len(arrivals) and slow <= allowed and now < limit_s:
        while following < len(arrivals) and free and arrivals[following] <= (now := clock() - start):
            connection, since = free.popleft()
            late[following] = now - max(arrivals[following], since)
            connection.query = following
            pool.begin(connection, requests[following])
            following += 1
        event = arrivals[following] if following < len(arrivals) and free else limit_s
        before = clock() - start
        wait = min(event, limit_s) - before
        if wait > NEAR_S:
            select.select([pool.poll], [], [], wait)  # epoll itself counts in whole milliseconds
            idle_s += clock() - start - before
        for connection, status in pool.answered(0):
            now = clock() - start
            query = connection.query
            answered.append(query)
            latency.append(now - arrivals[query])
            slow += latency[-1] > bound_s or status != OK
            refused += status != OK
            free.append((connection, now))
        now = clock() - start
    return timeline(
        latency,
        [late[query] for query in answered],
        queries=len(arrivals),
        seconds=now,
        bound=bound,
        refused=refused,
        busy=1 - idle_s / now,
    )


def read_plan(document: str) -> Plan:
    """Read a plan from JSON, as `dataclasses.asdict` gives it."""
    fields = json.loads(document)
    bound = fields.pop("bound")
    return Plan(**fields, bound=Bound(**bound) if bound else None)


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # not every kernel lets a process wake up on time
        Path("/proc/self/timerslack_ns").write_text("1")
    gc.disable()  # a process so short-lived does without; a collection is a pause in the schedule
    try:
        done = open_loop(read_plan(Path(sys.argv[1]).read_text()))
    except OSError as error:
        sys.exit(str(error))
    print("RESULT", json.dumps(asdict(done)))
