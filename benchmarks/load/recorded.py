"""Requests of a request log as a load: an open loop with their arrival times.

A log holds a sample. An image that was logged with probability p stands for 1/p images, so its request is sent as
often; the copies arrive at random until the next recorded request. Images of a request that are not in the log are not
sent.
"""

import json
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.load.open_loop import Schedule
from benchmarks.load.workloads import request
from distillery.request_log.read import RequestLog
from serving.client.tensors import pack
from serving.model.tensors import Images

JSON = "rest"
"""The protocol of `POST /predict`; others are sent as binary tensors of the Open Inference Protocol."""
MOST_REQUESTS = 5_000_000
"""Arrivals of one replay."""


class Recorded(NamedTuple):
    """The requests of a log, and when each is sent: copies share one."""

    schedule: Schedule
    requests: list[bytes]
    """Complete HTTP/1.1 requests."""
    images: list[int]
    """The number of images of each of them."""

    @property
    def sent_images(self) -> int:
        """Images of all requests that are sent."""
        return sum(self.images[number] for number in self.schedule.numbers)


def recorded_requests(
    log: RequestLog,
    url: str,
    *,
    model: str | None = None,
    speed: float = 1,
    scale: bool = True,
    seconds: float = math.inf,
    key: str | None = None,
    seed: int = 0,
) -> Recorded:
    """Return the requests of `log`, sent to the service at `url`.

    `model`: send them to this model rather than to the recorded one. `speed`: 2 sends them in half the time. `scale`:
    send as many as were made rather than as were logged. `seconds`: length of the busiest part, which is sent. `key`:
    the API key. Raises `BenchmarkError` for too many of them.
    """
    table = log.table.select(["id", "model", "protocol", "rate"]).to_pydict()
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, (request_id, of_row) in enumerate(zip(table["id"], table["model"], strict=True)):
        rows_of.setdefault((request_id, of_row), []).append(row)
    groups = sorted(rows_of.values(), key=lambda rows: log.times[rows[0]])
    first = np.array([rows[0] for rows in groups])
    times = (log.times[first] - log.times[first[0]]) / speed
    # A request is in the log if one of its images is.
    rates = np.array([max(table["rate"][row] for row in rows) for rows in groups])
    chosen = _busiest(times, 1 / rates, seconds)
    groups, rates, times = groups[chosen], rates[chosen], times[chosen] - times[chosen][0]
    random = np.random.default_rng(seed)
    copies = _copies(rates, random) if scale else np.ones(len(groups), np.int64)
    if copies.sum() > MOST_REQUESTS:
        raise BenchmarkError(
            f"{copies.sum():,} requests to send, {MOST_REQUESTS:,} at most: use --seconds or --no-scale"
        )
    sources = np.repeat(np.arange(len(groups)), copies)
    arrivals = _arrivals(times, copies, random)
    order = np.argsort(arrivals, kind="stable")
    prepared = [
        _request(log.images[rows], url, model or table["model"][rows[0]], table["protocol"][rows[0]], key)
        for rows in groups
    ]
    schedule = Schedule(arrivals[order].tolist(), sources[order].tolist())
    return Recorded(schedule, prepared, [len(rows) for rows in groups])


def _busiest(times: NDArray[np.float64], weights: NDArray[np.float64], seconds: float) -> slice:
    """Return the part of `seconds` with the largest sum of weights, the first of several."""
    ends = np.searchsorted(times, times + seconds, side="right")
    sums = np.concatenate([[0], np.cumsum(weights)])
    first = int(np.argmax(sums[ends] - sums[:-1]))
    return slice(first, int(ends[first]))


def _copies(rates: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return how often each request is sent: 1/rate on average."""
    wanted = 1 / rates
    whole = np.floor(wanted)
    copies: NDArray[np.int64] = (whole + (random.random(len(rates)) < wanted - whole)).astype(np.int64)
    return copies


def _arrivals(
    times: NDArray[np.float64], copies: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the time of every copy: the first at its recorded time, the others before the next request."""
    gaps = np.diff(times, append=times[-1] + (times[-1] / max(1, len(times) - 1)))
    later = np.repeat(gaps, copies) * random.random(int(copies.sum()))
    later[np.cumsum(copies) - copies] = 0
    arrivals: NDArray[np.float64] = np.repeat(times, copies) + later
    return arrivals


def _request(images: Images, url: str, model: str, protocol: str, key: str | None) -> bytes:
    base, access = url.rstrip("/"), {"X-API-Key": key} if key else {}
    if protocol == JSON:
        name, value = ("image", images[0]) if len(images) == 1 else ("images", images)
        body = json.dumps({name: value.tolist()}, separators=(",", ":")).encode()
        return request(f"{base}/predict/{model}", {"Content-Type": "application/json"} | access, body)
    headers, body = pack(np.ascontiguousarray(images))
    return request(f"{base}/v2/models/{model}/infer", headers | access, body)
