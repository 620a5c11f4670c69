"""One candidate on a running service: labelled digits at a steady rate, until the service itself decides.

Everything is sent on the same few keep-alive connections: images to the alias `stable`, their true digits to
`POST /feedback`, and `GET /release` for the decision.
"""

import json
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.load.connection import Connection, Pool
from benchmarks.load.workloads import request
from benchmarks.release.digits import Ints
from serving.model.release import Rule

CONNECTIONS = 6
LABELS = 256
"""In one request to `/feedback`, at most."""
LABELS_S = 0.25
"""After which a label is sent."""
POLL_S = 0.2
"""Between two requests of the release's state."""
LAST_S = 3.0
"""In which the service decides after the last label: it looks once a second."""
REST_S = 0.5
"""Between two candidates: an API process publishes its counters every 0.1 s."""
PATIENCE_S = 30
_COUNTS = re.compile(r"wrong: (\d+) of (\d+) against (\d+) of (\d+)")

Counts = tuple[int, int]
"""Errors and labels."""


@dataclass
class Stream:
    """What became of one candidate."""

    decision: str | None = None
    """Of the rule: rollback, promote, or None within the limit."""
    candidate: Counts = (0, 0)
    """That the decision is based on."""
    stable: Counts = (0, 0)
    sent: int = 0
    """Images until the decision was known here."""
    failed: int = 0
    """Requests without status 200, and labels that were rejected."""
    seconds: float = 0.0
    """From the start of the candidate to the decision."""

    @property
    def requests(self) -> float:
        """Labelled requests of both arms at the decision, infinity without one."""
        return float(self.candidate[1] + self.stable[1]) if self.decision else float("inf")

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


@dataclass
class Live:
    """A service with the versions 1, stable, and 2, the candidate, of one model."""

    url: str
    key: str
    model: str
    bodies: Sequence[bytes]
    """JSON of each digit."""
    labels: Ints
    rate: float
    """Images per second, on average; they arrive at random."""
    share: float
    rule: Rule
    _streams: int = field(default=0, init=False)

    def run(self, places: Ints, seed: int) -> Stream:
        """Start the candidate, send the digits at `places` until a decision, and restore the stable version.

        Raises `BenchmarkError` for a service that does not respond, or another decision than the rule's.
        """
        self._streams += 1
        with httpx.Client(base_url=self.url, headers={"X-API-Key": self.key}, timeout=PATIENCE_S) as client:
            started = self._call(
                client,
                "PUT",
                {
                    "candidate": f"{self.model}/2",
                    "share": self.share,
                    "rule": self.rule.model_dump(mode="json"),
                },
            )["started"]
            stream = _Sending(self, places, started, np.random.default_rng(seed), f"s{self._streams}").run()
            while True:
                time.sleep(REST_S)
                state = self._call(client, "GET")
                if state["stable"] == f"{self.model}/1" and state["candidate"] is None:
                    return stream
                self._call(client, "POST", path="/release/rollback")

    def _call(
        self, client: httpx.Client, method: str, document: object = None, path: str = "/release"
    ) -> dict[str, Any]:
        response = client.request(method, path, json=document)
        if response.status_code != 200:
            raise BenchmarkError(f"{method} {path}: status {response.status_code}: {response.text[:500]}")
        return dict(response.json())


class _Sending:
    """The requests of one candidate."""

    def __init__(
        self, live: Live, places: Ints, started: float, random: np.random.Generator, prefix: str
    ) -> None:
        self._live, self._started, self._random, self._prefix = live, started, random, prefix
        self._places = places
        self._access = {"X-API-Key": live.key}
        address = urlsplit(live.url)
        self._pool = Pool(str(address.hostname), address.port or 80, CONNECTIONS)
        self._idle = deque(self._pool.connections)
        self._waiting: dict[Connection, Callable[[int, bytes], None]] = {}
        self._labels: list[dict[str, Any]] = []
        self._stream = Stream()

    def run(self) -> Stream:
        """Send until a decision, or until `LAST_S` after the last digit."""
        now = time.monotonic()
        due, labels_due, poll_due, end = now, now + LABELS_S, now + POLL_S, float("inf")
        try:
            while self._stream.decision is None and now < end:
                if self._labels and self._idle and (now >= labels_due or len(self._labels) >= LABELS):
                    self._send_labels()
                    labels_due = now + LABELS_S
                if self._idle and now >= poll_due:
                    self._begin(self._state_request(), self._on_state)
                    poll_due = now + POLL_S
                while self._idle and due <= now and self._stream.sent < len(self._places):
                    self._send_digit()
                    due += self._random.exponential(1 / self._live.rate)
                if self._stream.sent == len(self._places):
                    end = min(end, now + LAST_S)
                self._receive(min(0.01, max(0.0, due - now)))
                now = time.monotonic()
            deadline = now + PATIENCE_S
            while self._waiting and time.monotonic() < deadline:
                self._receive(0.01)
        except OSError as error:
            raise BenchmarkError(f"{self._live.url}: a connection was lost: {error}") from error
        finally:
            self._pool.close()
        self._stream.failed += len(self._waiting)
        return self._stream

    def _begin(self, content: bytes, on_response: Callable[[int, bytes], None]) -> None:
        connection = self._idle.popleft()
        self._waiting[connection] = on_response
        self._pool.begin(connection, content)

    def _receive(self, seconds: float) -> None:
        for connection, status in self._pool.responses(seconds):
            on_response = self._waiting.pop(connection)
            self._idle.append(connection)
            if status != 200:
                self._stream.failed += 1
            else:
                on_response(status, connection.received.partition(b"\r\n\r\n")[2])

    def _send_digit(self) -> None:
        place = self._places[self._stream.sent]
        request_id = f"{self._prefix}-{self._stream.sent}"
        label = {"id": request_id, "digit": int(self._live.labels[place])}
        headers = {**self._access, "Content-Type": "application/json", "X-Request-ID": request_id}
        content = request(f"{self._live.url}/predict/stable", headers, self._live.bodies[place])
        self._begin(content, lambda _status, _body: self._labels.append(label))
        self._stream.sent += 1

    def _send_labels(self) -> None:
        labels, self._labels = self._labels[:LABELS], self._labels[LABELS:]
        headers = {**self._access, "Content-Type": "application/json"}
        content = request(f"{self._live.url}/feedback", headers, json.dumps({"labels": labels}).encode())
        self._begin(content, self._on_labels)

    def _on_labels(self, _: int, body: bytes) -> None:
        self._stream.failed += len(json.loads(body)["rejected"])

    def _state_request(self) -> bytes:
        host = urlsplit(self._live.url).netloc
        return f"GET /release HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {self._live.key}\r\n\r\n".encode()

    def _on_state(self, _: int, body: bytes) -> None:
        """Take the decision, if there is one since the start of the candidate."""
        decided = [one for one in json.loads(body)["decisions"] if one["time"] >= self._started]
        decided = [one for one in decided if one["decision"] in {"rollback", "promote"}]
        if self._stream.decision or not decided:
            return
        counts = _COUNTS.search(decided[-1]["reason"])
        if decided[-1]["by"] != "rule" or counts is None:
            raise BenchmarkError(
                f"{decided[-1]['decision']} by {decided[-1]['by']}, not because of errors: {decided[-1]['reason']!r}"
            )
        candidate, labels, stable, others = map(int, counts.groups())
        self._stream.decision = decided[-1]["decision"]
        self._stream.candidate, self._stream.stable = (candidate, labels), (stable, others)
        self._stream.seconds = round(decided[-1]["time"] - self._started, 2)
