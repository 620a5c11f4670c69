"""A load whose every response is compared with the version of the model that it names.

    python -m benchmarks.load.checked HOST PORT RATE CONNECTIONS EXPECTED_FILE REQUEST_FILE...

Requests arrive at random, RATE per second, and alternate between the request files; connections are kept alive. A
latency is measured from the scheduled time of the request. EXPECTED_FILE (npz) has for each version the probabilities
`[N, 10]` of the images of the N requests. Ends with SIGTERM; prints `RESULT` and a JSON object. `checked_load` runs it
in a process of its own.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.load.connection import Connection, Pool
from benchmarks.load.workloads import TOLERANCE, read_binary_probabilities
from serving.client.tensors import LENGTH
from serving.model.tensors import Scores

ANSWERED_S = 10.0
"""A request without response for this long at the end has failed."""


@dataclass
class CheckedLoad:
    """What became of the requests."""

    due: list[float] = field(default_factory=list)
    """Of the requests that were answered (`time.monotonic`)."""
    latency_ms: list[float] = field(default_factory=list)
    failed: int = 0
    """Without status 200."""
    mixed_up: int = 0
    """With other probabilities than those of the version that the response names."""
    versions: dict[str, int] = field(default_factory=dict)
    """Responses by version."""
    errors: list[str] = field(default_factory=list)
    """The first ones."""

    @property
    def requests(self) -> int:
        """Their number."""
        return len(self.due) + self.failed

    def within(self, start: float, end: float) -> list[float]:
        """Return the latencies of the requests that were due between two times."""
        times = np.array(self.due)
        return list(np.array(self.latency_ms)[(times >= start) & (times < end)])


@contextmanager
def checked_load(
    url: str, requests: Sequence[bytes], expected: Mapping[str, Scores], rate: float, connections: int
) -> Iterator[CheckedLoad]:
    """Run the load within the block; the result is filled in at its end. Raises `BenchmarkError`."""
    address = urlsplit(url)
    load = CheckedLoad()
    with TemporaryDirectory(prefix="distillery-load-") as name:
        folder = Path(name)
        np.savez(folder / "expected.npz", allow_pickle=False, **dict(expected))
        files = [folder / f"{number}.http" for number in range(len(requests))]
        for file, request in zip(files, requests, strict=True):
            file.write_bytes(request)
        place = (str(address.hostname), str(address.port), f"{rate:g}", str(connections))
        command = [sys.executable, "-m", __name__, *place, str(folder / "expected.npz"), *map(str, files)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        try:
            yield load
            process.terminate()
            output, errors = process.communicate(timeout=ANSWERED_S + 60)
        finally:
            process.kill()
            process.wait()
    _, _, line = output.rpartition("RESULT ")
    if process.returncode or not line:
        raise BenchmarkError(f"the load generator failed: {errors.strip()}")
    load.__dict__ |= json.loads(line)


def _run(
    host: str, port: int, rate: float, connections: int, requests: Sequence[bytes]
) -> tuple[list[tuple[float, float, int, bytes]], int]:
    """Send requests until SIGTERM; return due time, latency, number and response of each, and how many were lost."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    arrivals = random.Random(0)  # noqa: S311
    answered: list[tuple[float, float, int, bytes]] = []
    lost = number = 0
    waiting: deque[float] = deque()
    sent: dict[Connection, tuple[float, int]] = {}
    pool = Pool(host, port, connections)
    idle = deque(pool.connections)
    due, until = time.monotonic(), float("inf")
    while not (stopped and not waiting and not sent) and time.monotonic() < until:
        now = time.monotonic()
        if stopped:
            until = min(until, now + ANSWERED_S)
        while not stopped and due <= now:
            waiting.append(due)
            due += arrivals.expovariate(rate)
        try:
            while waiting and idle:
                connection = idle.popleft()
                sent[connection] = waiting.popleft(), number % len(requests)
                pool.begin(connection, requests[sent[connection][1]])
                number += 1
            for connection, _ in pool.responses(0.01 if stopped else min(0.01, max(0.0, due - now))):
                begun, which = sent.pop(connection)
                answered.append((begun, time.monotonic() - begun, which, connection.received))
                idle.append(connection)
        except OSError:  # all requests on their way are counted as lost
            lost += len(sent)
            sent.clear()
            pool.close()
            pool = Pool(host, port, connections)
            idle = deque(pool.connections)
    return answered, lost + len(sent)


def _check(content: bytes, which: int, expected: Mapping[str, Scores]) -> tuple[str, str]:
    """Return the version that a response names, and what is wrong with the response."""
    head, _, body = content.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if " 200 " not in lines[0]:
        return "", f"{lines[0]}: {body[:200].decode(errors='replace')}"
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    if length := fields.get(LENGTH.lower()):
        version = json.loads(body[: int(length)])["model_version"]
        found = read_binary_probabilities({LENGTH: length}, body)[0]
    else:
        document = json.loads(body)
        version, found = document["version"], np.array(document["predictions"][0]["probabilities"])
    if version not in expected:
        return version, f"version {version} is not one of {', '.join(expected)}"
    difference = float(np.abs(found - expected[version][which]).max())
    wrong = f"request {which} differs from version {version} by {difference:.2g}"
    return version, "" if difference <= TOLERANCE else wrong


def main(arguments: Sequence[str]) -> None:
    """Run the load, check the responses, print the result."""
    host, port, rate, connections, expected_file, *files = arguments
    with np.load(expected_file) as content:
        expected = {version: content[version] for version in content}
    requests = [Path(file).read_bytes() for file in files]
    answered, lost = _run(host, int(port), float(rate), int(connections), requests)
    load, versions = CheckedLoad(failed=lost), Counter[str]()
    for due, seconds, which, content in answered:
        version, error = _check(content, which, expected)
        versions[version] += 1
        if error:
            load.errors = [*load.errors, error][:5]
        if not version:
            load.failed += 1
            continue
        load.mixed_up += bool(error)
        load.due.append(due)
        load.latency_ms.append(round(1000 * seconds, 4))
    result: dict[str, Any] = load.__dict__ | {"versions": versions}
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
