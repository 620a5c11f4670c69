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
from functools import lru_cache
from queue import SimpleQueue
from random import random
from threading import Thread

import orjson

from serving.engine.telemetry.record import Observable, Record

MIN_FREE = 0.05
"""The share of a disk that is not filled with log lines."""
MAX_PATH = 200
"""Characters of a URL's path in the log."""
_PIPE_BUF = 4096  # POSIX: up to this length, lines of several processes do not mix
_MAX_BYTES = 65536
"""Of a write that no other process can interrupt: to a file, whose offset the kernel locks, or by one process."""
_CLOSING_SECONDS = 1.0
_LINE = (
    b'{"time":"%b%03dZ","id":"%b"%b,%b,"images":%d,"status":%d,'
    b'"decode_ms":%.3f,"queue_ms":%.3f,"inference_ms":%.3f,"total_ms":%.3f}'
)
"""Of a request with predictions."""


class AccessLog:
    """The access log of one API process; an `Observer` of predictions."""

    def __init__(self, descriptor: int, *, sample: float, rate: int, shared: bool = True) -> None:
        """Log a share `sample` of the successful requests and all others, at most `rate` lines per second.

        `shared`: other processes log to the same descriptor.
        """
        self._sample = sample
        self._rate = rate
        self._lines: list[bytes] = []
        self._records: list[Record] = []
        """Of predictions, whose lines are made by the next `publish`."""
        self._room: float = rate
        """Further lines that may be added now."""
        self._refilled = time.monotonic()
        self._dropped = self._reported = 0
        self._second, self._prefix = 0, b""
        self._writer = _Writer(descriptor, shared=shared)
        self._writer.start()

    def observe(self, request: Observable, status: int, ended: float) -> None:
        """Log a prediction request."""
        if self._admits(status):
            self._records.append(request.record(status, ended))  # lines made in a row take half the time

    def add(self, request_id: bytes, status: int, seconds: float, **fields: str) -> None:
        """Log any other request."""
        if self._admits(status):
            now = b"%b%03dZ" % self._time(time.time())
            document = {"time": now.decode(), "id": request_id.decode(), **fields}
            total_ms = int(seconds * 1e6) / 1e3
            self._lines.append(orjson.dumps({**document, "status": status, "total_ms": total_ms}))

    def _admits(self, status: int) -> bool:
        if status < 400 and self._sample < 1 and random() >= self._sample:  # noqa: S311
            return False
        if self._room < 1:
            self._dropped += 1
            return False
        self._room -= 1
        return True

    def _line(self, record: Record, offset: float) -> bytes:
        """Return the line of a prediction request; a serialiser would take several times as long.

        `offset` leads from `time.monotonic` to the time since 1970.

        Ids have no character to escape (`serving.engine.telemetry.correlation`).
        """
        second, milliseconds = self._time(record.ended + offset)
        trace = b',"trace_id":"%b"' % record.trace_id.encode() if record.trace_id else b""
        codec = record.codec
        name, version = (record.endpoint.name, record.endpoint.version) if record.endpoint else (None, None)
        fields = _fields(codec.name, codec.route, name, version, record.client, record.code)
        total_ms = (record.ended - (record.received or record.entered)) * 1e3
        if record.result is None:
            values = (second, milliseconds, record.id, trace, fields, record.status, total_ms)
            return b'{"time":"%b%03dZ","id":"%b"%b,%b,"images":null,"status":%d,"total_ms":%.3f}' % values
        result = record.result
        timing = result.timing
        return _LINE % (
            second,
            milliseconds,
            record.id,
            trace,
            fields,
            result.images,
            record.status,
            timing.decode_ms,
            timing.queue_ms,
            timing.inference_ms,
            total_ms,
        )

    def _time(self, moment: float) -> tuple[bytes, int]:
        """Return a time in UTC (RFC 3339) up to the second, and its milliseconds."""
        second = int(moment)
        if second != self._second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second, self._prefix = second, text.encode()
        return self._prefix, int((moment - second) * 1000)

    def publish(self) -> None:
        """Write the lines added since the last call; called ten times a second."""
        now, wall = time.monotonic(), time.time()
        records, self._records = self._records, []
        self._lines += [self._line(record, wall - now) for record in records]
        room = self._room + (now - self._refilled) * self._rate
        self._room, self._refilled = min(room, self._rate - len(self._lines)), now
        dropped = self._dropped + self._writer.dropped - self._reported  # only grow: two threads count
        if dropped and self._room >= 1:
            self._room -= 1
            self._reported += dropped
            self._lines.append(b'{"time":"%b%03dZ","dropped":%d}' % (*self._time(wall), dropped))
        if self._lines and self._writer.idle:
            self._writer.write(self._lines)
            self._lines = []

    def close(self) -> None:
        """Write what is left, unless its reader is too slow."""
        self.publish()
        self._writer.close()


class _Writer(Thread):
    """Writes lines to a descriptor, so that a slow reader or disk holds up nothing else."""

    def __init__(self, descriptor: int, *, shared: bool) -> None:
        super().__init__(name="access log", daemon=True)  # it does not hold up the end of the process either
        self._descriptor = descriptor
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._max_bytes = _PIPE_BUF if shared and not self._is_file else _MAX_BYTES
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
            for part in _parts(lines, self._max_bytes):
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


def _parts(lines: list[bytes], max_bytes: int) -> list[bytes]:
    """Join lines to parts of at most `max_bytes`."""
    parts: list[list[bytes]] = [[]]
    length = 0
    for line in lines:
        length += len(line) + 1
        if length > max_bytes:
            parts.append([])
            length = len(line) + 1
        parts[-1].append(line)
    return [b"\n".join((*part, b"")) for part in parts if part]


@lru_cache(maxsize=1024)
def _fields(
    protocol: str,
    route: str,
    model: str | None,
    version: str | None,
    client: str | None,
    error: str | None,
) -> bytes:
    """Return the fields of a line that many requests have in common."""
    document = {"protocol": protocol, "route": route, "model": model}
    optional = (("version", version), ("client", client), ("error", error))
    document |= {name: value for name, value in optional if value}
    return orjson.dumps(document)[1:-1]
