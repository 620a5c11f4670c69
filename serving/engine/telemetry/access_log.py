"""The access log: one line of JSON per request on standard output, without pixels or keys.

It cannot fill a disk, stop the service or delay a request:

- a share of the successful requests is logged, and at most `rate` lines per second; a line `{"time": …, "dropped": n}`
  states how many were left out since the line before;
- lines are written ten times a second by a thread. If their reader is slow, at most `rate` lines wait for it;
- nothing is written to a file on a disk of which less than `MIN_FREE` is free.
"""

import os
import stat
import time
from contextlib import suppress
from queue import SimpleQueue
from random import random
from threading import Thread
from typing import Any

import orjson

from serving.engine.telemetry.record import Observable, Record

MIN_FREE = 0.05
"""The share of a disk that is not filled with log lines."""
MAX_PATH = 200
"""Characters of a URL's path in the log."""
_PIPE_BUF = 4096  # POSIX: up to this length, lines of several processes do not mix
_CLOSING_SECONDS = 1.0


class AccessLog:
    """The access log of one API process; an `Observer` of predictions."""

    def __init__(self, descriptor: int, *, sample: float, rate: int) -> None:
        """Log a share `sample` of the successful requests and all others, at most `rate` lines per second."""
        self._sample = sample
        self._rate = rate
        self._lines: list[bytes] = []
        self._room: float = rate
        """Further lines that may be added now."""
        self._refilled = time.monotonic()
        self._dropped = self._reported = 0
        self._second, self._prefix = 0, ""
        self._writer = _Writer(descriptor)
        self._writer.start()

    def observe(self, request: Observable, status: int) -> None:
        """Log a prediction request."""
        if self._admits(status):
            self._lines.append(orjson.dumps(self._document(request.record(status))))

    def add(self, request_id: bytes, status: int, seconds: float, **fields: str) -> None:
        """Log any other request."""
        if self._admits(status):
            document: dict[str, Any] = {"time": self._now(), "id": request_id.decode(), **fields}
            document |= {"status": status, "total_ms": _milliseconds(0, seconds)}
            self._lines.append(orjson.dumps(document))

    def _admits(self, status: int) -> bool:
        if status < 400 and self._sample < 1 and random() >= self._sample:  # noqa: S311
            return False
        if self._room < 1:
            self._dropped += 1
            return False
        self._room -= 1
        return True

    def _document(self, record: Record) -> dict[str, Any]:
        document: dict[str, Any] = {"time": self._now(), "id": record.id}
        if record.trace_id:
            document["trace_id"] = record.trace_id
        document |= {"protocol": record.protocol, "route": record.route, "model": record.model}
        if record.client:
            document["client"] = record.client
        if record.code:
            document["error"] = record.code
        document |= {"images": record.images, "status": record.status}
        if record.encoding:
            document["decode_ms"] = _milliseconds(record.received, record.decoded)
            document["queue_ms"] = _milliseconds(record.decoded, record.started)
            document["inference_ms"] = _milliseconds(record.started, record.finished)
        document["total_ms"] = _milliseconds(record.received or record.entered, record.ended)
        return document

    def _now(self) -> str:
        """Return the time in UTC with milliseconds (RFC 3339)."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._prefix}{int((now - second) * 1000):03}Z"

    def publish(self) -> None:
        """Write the lines added since the last call; called ten times a second."""
        now = time.monotonic()
        room = self._room + (now - self._refilled) * self._rate
        self._room, self._refilled = min(room, self._rate - len(self._lines)), now
        dropped = self._dropped + self._writer.dropped - self._reported  # only grow: two threads count
        if dropped and self._room >= 1:
            self._room -= 1
            self._reported += dropped
            self._lines.append(orjson.dumps({"time": self._now(), "dropped": dropped}))
        if self._lines and self._writer.idle:
            self._writer.write(self._lines)
            self._lines = []

    def close(self) -> None:
        """Write what is left, unless its reader is too slow."""
        self.publish()
        self._writer.close()


class _Writer(Thread):
    """Writes lines to a descriptor, so that a slow reader or disk holds up nothing else."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="access log", daemon=True)  # it does not hold up the end of the process either
        self._descriptor = descriptor
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._batches: SimpleQueue[list[bytes] | None] = SimpleQueue()
        self.idle = True
        self.dropped = 0
        """Lines that could not be written."""

    def write(self, lines: list[bytes]) -> None:
        self.idle = False
        self._batches.put(lines)

    def close(self) -> None:
        self._batches.put(None)
        self.join(_CLOSING_SECONDS)

    def run(self) -> None:
        while (lines := self._batches.get()) is not None:
            for part in _parts(lines):
                if self._is_full() or not self._write(part):
                    self.dropped += part.count(b"\n")
            self.idle = True

    def _is_full(self) -> bool:
        if not self._is_file:
            return False
        with suppress(OSError):
            disk = os.fstatvfs(self._descriptor)
            return disk.f_bavail < disk.f_blocks * MIN_FREE
        return False

    def _write(self, part: bytes) -> bool:
        try:
            while part:
                part = part[os.write(self._descriptor, part) :]
        except OSError:  # its reader is gone, or the disk is full
            return False
        return True


def _parts(lines: list[bytes]) -> list[bytes]:
    """Join lines to parts of at most `_PIPE_BUF` bytes."""
    parts: list[list[bytes]] = [[]]
    length = 0
    for line in lines:
        length += len(line) + 1
        if length > _PIPE_BUF:
            parts.append([])
            length = len(line) + 1
        parts[-1].append(line)
    return [b"\n".join((*part, b"")) for part in parts if part]


def _milliseconds(begin: float, end: float) -> float:
    return int((end - begin) * 1e6) / 1e3
