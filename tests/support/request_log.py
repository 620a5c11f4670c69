"""Request logs with real digits, as a service writes them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillery.request_log.arrow import pa
from distillery.request_log.files import add_file
from distillery.request_log.schema import FEEDBACK, REQUESTS
from tests.support.training.samples import sample_test

MAX_BYTES = 1 << 30


def request_rows(first: int, stop: int, *, moment: float | None = None, **values: Any) -> Any:
    """Return a table of the sample's test digits `first` to `stop` − 1, each predicted right, with ids `r<number>`."""
    digits = sample_test()
    microseconds = int((time.time() if moment is None else moment) * 1e6)
    row = {
        "index": 0,
        "images": 1,
        "model": "student",
        "version": "1",
        "protocol": "rest",
        "client": None,
        "confidence": 0.99,
        "accepted": True,
        "teacher_digit": None,
        "reason": "sample",
        "rate": 0.01,
        "probabilities": [0.1] * 10,
    }
    rows = [
        row
        | {
            "time": microseconds + number,
            "id": f"r{number}",
            "image": bytes(digits.images[number].numpy().tobytes()),
            "digit": int(digits.labels[number]),
        }
        | values
        for number in range(first, stop)
    ]
    return pa.Table.from_pylist(rows, REQUESTS)


def add_requests(folder: Path, first: int, stop: int, *, process: int = 0, **values: Any) -> None:
    """Add a file with these rows to a log."""
    add_file(folder, "requests", request_rows(first, stop, **values), process=process, max_bytes=MAX_BYTES)


def add_labels(
    folder: Path, labels: Mapping[str, int], *, index: int = 0, moment: float | None = None
) -> None:
    """Add a file with labels, by request id."""
    microseconds = int((time.time() if moment is None else moment) * 1e6)
    rows = [
        {"time": microseconds, "id": request_id, "index": index, "label": label}
        for request_id, label in labels.items()
    ]
    table = pa.Table.from_pylist(rows, FEEDBACK)
    add_file(folder, "feedback", table, process=0, max_bytes=MAX_BYTES)
