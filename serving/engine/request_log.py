"""The request log of one API process: which images are logged, and the thread that writes them.

A share `sample` of the requests is logged with all images; always logged are predictions that are not accepted, and
those that the teacher contradicts where it was compared (`serving.engine.agreement`). The log cannot stop the service,
delay a request or fill a disk: at most `rate` rows per second are taken, a thread of low priority writes them, and the
oldest files are removed beyond `max_bytes`. What cannot be written is dropped, counted and reported.

Rows are in memory for `seconds` at most before they are written; a process that is killed loses them.
`distillery.request_log` describes the files, and how rows are erased.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from random import random
from threading import Thread
from typing import Any, NamedTuple

from distillery import DistilleryError
from distillery.files import FileError, require_writable
from distillery.machine import lower_priority
from distillery.request_log import RequestLogError
from serving.codecs.base import Codec, Prediction, Query
from serving.engine.metrics.series import (
    LOG_BYTES,
    LOG_DROPPED,
    LOG_REMOVED_BYTES,
    LOG_ROWS,
    LOG_WRITTEN_BYTES,
    Values,
)
from serving.engine.telemetry.record import Served
from serving.model.tensors import Images

_ROW_BYTES = 1024
"""Of an image, at most, once it is written."""
_MAX_IMAGES = 32_767
"""Of a request: their number and indices have two bytes."""
_MAX_ROWS = 8192
"""Of a file, and of what waits to be written."""
_CLOSING_SECONDS = 5.0
_MEASURE_SECONDS = 10.0
_REPORT_SECONDS = 60.0

_logger = logging.getLogger("distillery")


class LogSettings(NamedTuple):
    """Where the log is, and its limits."""

    folder: Path
    sample: float = 0.01
    """Share of the requests that are logged."""
    rate: int = 100
    """Rows per second and process."""
    max_bytes: int = 1 << 30
    """Of all files."""
    seconds: float = 60.0
    """After which rows are written."""


class Latest(NamedTuple):
    """The latest request of a version, until the teacher classifies its first image as well."""

    moment: float
    request_id: bytes
    client: str | None
    served: Served
    protocol: str
    images: Images
    prediction: Prediction


class _Row(NamedTuple):
    """An image of the log; the fields are the columns of `distillery.request_log.schema.REQUESTS`, in their order."""

    time: float
    id: bytes
    number: int
    images: int
    model: str
    version: str
    protocol: str
    client: str | None
    image: bytes
    digit: int
    probabilities: Any
    confidence: float | None
    accepted: bool | None
    teacher_digit: int | None
    reason: str
    rate: float


_Label = tuple[float, bytes, int, int]
"""Time, id, index and label."""


def check_log(settings: LogSettings) -> None:
    """Check at the start of the service that rows can be written; a folder that cannot be may be repaired later.

    Raises `RequestLogError` without pyarrow.
    """
    if find_spec("pyarrow") is None:
        raise RequestLogError("--request-log needs pyarrow: pip install '.[scoring]'")
    try:
        require_writable(settings.folder)
    except FileError as error:
        _logger.error("--request-log: %s", _explain(error))


class RequestLog:
    """The log of one API process, made after the fork."""

    def __init__(self, settings: LogSettings, process: int, row: Values) -> None:
        self._settings = settings
        self._process = process
        self._sample = settings.sample
        self._max_rows = min(_MAX_ROWS, max(1, settings.max_bytes // (8 * _ROW_BYTES)))
        self._room: float = settings.rate
        self._refilled = self._begun = time.monotonic()
        self._rows: dict[tuple[bytes, int], _Row] = {}
        self._labels: list[_Label] = []
        self._latest: dict[str, Latest] = {}
        self._wanted: set[str] = set()
        """The slots of the versions of which the next request is kept for the teacher."""
        self._until_sample = self._draw()
        self._compared: deque[tuple[Latest, int]] = deque()
        self._dropped = {"rate": 0, "memory": 0}
        self._numbers = {why: row.of(LOG_DROPPED, reason=why) for why in self._dropped}
        self._writer = _Writer(settings, process, row)
        self._writer.start()

    def predicted(
        self,
        request_id: bytes,
        client: str | None,
        served: Served,
        codec: Codec,
        query: Query,
        prediction: Prediction,
    ) -> bool:
        """Log a request if it is sampled, or what of it is not accepted; return whether an image is logged."""
        self._until_sample -= 1
        sampled = self._until_sample <= 0
        unaccepted = prediction.accepted is not None and False in prediction.accepted
        wanted = self._wanted and served.slot in self._wanted
        if not (sampled or unaccepted or wanted):
            return False
        if self._room < 1 and not wanted:  # the usual case of traffic that is rarely accepted
            self._dropped["rate"] += len(prediction.digits) if sampled else 1
            if sampled:
                self._until_sample = self._draw()
            return False
        images = query.images[:_MAX_IMAGES]
        latest = Latest(time.time(), request_id, client, served, codec.name, images, prediction)
        if wanted:
            self._wanted.remove(served.slot)
            self._latest[served.slot] = latest
        chosen: Sequence[int] = range(len(images))
        if sampled:
            self._until_sample = self._draw()
        elif unaccepted and prediction.accepted is not None:
            accepted = prediction.accepted
            chosen = [index for index in chosen if not accepted[index]]
        else:
            return False
        logged = False
        for index in chosen:
            unaccepted = prediction.accepted is not None and not prediction.accepted[index]
            reason, rate = ("unaccepted", 1.0) if unaccepted else ("sample", self._sample)
            logged |= self._add(latest, index, reason, rate)
        return logged

    def _draw(self) -> float:
        """Return after how many requests the next one is sampled: cheaper than a random number for each."""
        if self._sample in {0.0, 1.0}:
            return 1.0 if self._sample else math.inf
        return 1 + math.log(1 - random()) // math.log1p(-self._sample)  # noqa: S311

    def _add(
        self, latest: Latest, index: int, reason: str, rate: float, teacher_digit: int | None = None
    ) -> bool:
        if self._room < 1:
            self._dropped["rate"] += 1
            return False
        if len(self._rows) >= 2 * self._max_rows:  # the writer is behind
            self._dropped["memory"] += 1
            return False
        self._room -= 1
        served, prediction = latest.served, latest.prediction
        self._rows[latest.request_id, index] = _Row(
            latest.moment,
            latest.request_id,
            index,
            len(latest.images),
            served.name,
            served.version,
            latest.protocol,
            latest.client,
            latest.images[index].tobytes(),
            prediction.digits[index],
            prediction.probabilities[index].tolist(),
            None if prediction.confidence is None else prediction.confidence[index],
            None if prediction.accepted is None else prediction.accepted[index],
            teacher_digit,
            reason,
            rate,
        )
        return True

    def labelled(self, request_id: bytes, index: int, label: int) -> None:
        """Log the true digit of an image that is in the log."""
        if len(self._labels) < self._max_rows:
            self._labels.append((time.time(), request_id, index, label))
        else:
            self._dropped["memory"] += 1

    def take_latest(self, slot: str) -> Latest | None:
        """Return a request of a version since the last call; without one, the next one is kept."""
        latest = self._latest.pop(slot, None)
        if latest is None:
            self._wanted.add(slot)
        return latest

    def compared(self, latest: Latest, teacher_digit: int) -> None:
        """Log what the teacher says of the first image of a request; called on another thread."""
        self._compared.append((latest, teacher_digit))

    def _add_compared(self) -> None:
        while self._compared:
            latest, teacher_digit = self._compared.popleft()
            key = latest.request_id, 0
            if row := self._rows.get(key):
                self._rows[key] = row._replace(teacher_digit=teacher_digit)
            elif teacher_digit != latest.prediction.digits[0]:
                self._add(latest, 0, "disagreement", 1.0, teacher_digit)

    def publish(self) -> None:
        """Let rows be written that are due; called ten times a second."""
        now = time.monotonic()
        rate = self._settings.rate
        self._room, self._refilled = min(rate, self._room + (now - self._refilled) * rate), now
        self._add_compared()
        for why, count in self._dropped.items():
            self._numbers[why] += count
            self._dropped[why] = 0
        waiting = max(len(self._rows), len(self._labels))
        if not waiting:
            self._begun = now
        elif self._writer.idle and (waiting >= self._max_rows or now - self._begun >= self._settings.seconds):
            self._write()

    def _write(self) -> None:
        rows, labels = list(self._rows.values()), self._labels
        self._rows, self._labels = {}, []
        self._begun = time.monotonic()
        self._writer.write(rows, labels)

    def close(self) -> None:
        """Write what is left."""
        self.publish()
        self._write()
        self._writer.close()


class _Writer(Thread):
    """Writes files, so that a slow disk or a long erasure holds up nothing else."""

    def __init__(self, settings: LogSettings, process: int, row: Values) -> None:
        from distillery.request_log import files  # noqa: PLC0415 - pyarrow is imported after the fork
        from distillery.request_log.arrow import pa  # noqa: PLC0415

        super().__init__(name="request log", daemon=True)
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        self._pa, self._files = pa, files
        self._settings, self._process, self._row = settings, process, row
        self._waiting: SimpleQueue[tuple[list[_Row], list[_Label]] | None] = SimpleQueue()
        self._reported = 0.0
        self.idle = True

    def write(self, rows: list[_Row], labels: list[_Label]) -> None:
        self.idle = False
        self._waiting.put((rows, labels))

    def close(self) -> None:
        self._waiting.put(None)
        self.join(_CLOSING_SECONDS)

    def run(self) -> None:
        lower_priority()
        while True:
            try:
                batch = self._waiting.get(timeout=_MEASURE_SECONDS)
            except Empty:
                self._measure()
                continue
            if batch is None:
                return
            rows, labels = batch
            if rows:
                self._add("requests", self._requests(rows))
            if labels:
                self._add("feedback", self._feedback(labels))
            self.idle = True

    def _add(self, kind: Any, table: Any) -> None:
        settings = self._settings
        try:
            added = self._files.add_file(
                settings.folder, kind, table, process=self._process, max_bytes=settings.max_bytes
            )
        except (DistilleryError, OSError) as error:
            dropped = self._row.of(LOG_DROPPED, reason="disk")
            dropped += table.num_rows
            self._report(error)
            return
        for name, labels, growth in (
            (LOG_ROWS, {"kind": kind}, added.rows),
            (LOG_WRITTEN_BYTES, {}, added.size),
            (LOG_REMOVED_BYTES, {}, added.removed),
        ):
            numbers = self._row.of(name, **labels)
            numbers += growth
        self._row.of(LOG_BYTES)[...] = added.total

    def _measure(self) -> None:
        """Publish the size of the folder, which other processes change as well."""
        with suppress(OSError):
            self._row.of(LOG_BYTES)[...] = self._files.size_of(self._settings.folder)

    def _report(self, error: DistilleryError | OSError) -> None:
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS or not self._reported:
            self._reported = now
            _logger.error("--request-log: %s", _explain(error))

    def _requests(self, rows: list[_Row]) -> Any:
        from distillery.request_log.schema import REQUESTS  # noqa: PLC0415

        columns = dict(zip(REQUESTS.names, map(list, zip(*rows, strict=True)), strict=True))
        columns["time"] = [int(moment * 1e6) for moment in columns["time"]]
        columns["id"] = [request_id.decode() for request_id in columns["id"]]
        return self._pa.Table.from_pydict(columns, REQUESTS)

    def _feedback(self, labels: list[_Label]) -> Any:
        from distillery.request_log.schema import FEEDBACK  # noqa: PLC0415

        moments, ids, indices, digits = zip(*labels, strict=True)
        columns = {
            "time": [int(moment * 1e6) for moment in moments],
            "id": [request_id.decode() for request_id in ids],
            "index": indices,
            "label": digits,
        }
        return self._pa.Table.from_pydict(columns, FEEDBACK)


def _explain(error: DistilleryError | OSError) -> str:
    """Return the message of an error that the service outlasts."""
    why = error.reason if isinstance(error, FileError) else str(error)
    fix = (
        "make space there, make it writable, or restart with another folder"
        if isinstance(error, FileError)
        else ""
    )
    return "; ".join(filter(None, (why, fix, "rows are dropped until then, and serving continues")))
