"""Request logs for tests: the files that a service writes, from images and labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillery.request_log.arrow import pa
from distillery.request_log.files import add_file
from distillery.request_log.schema import FEEDBACK, REQUESTS

START_US = 1_800_000_000_000_000
"""Time of the first image, microseconds since 1970."""
Images = NDArray[np.uint8]


def write_log(
    folder: Path,
    images: Images,
    labels: Sequence[int] | None = None,
    *,
    per_request: int = 1,
    interval: float = 0.01,
    rate: float = 1,
    model: str = "student",
    protocol: str = "rest",
    predicted: Sequence[int] | None = None,
    first_id: int = 0,
) -> None:
    """Add a file of requests, every `interval` seconds one, and a file of the labels that are not negative."""
    count = len(images)
    numbers = np.arange(count)
    ids = [f"request-{first_id + number // per_request}" for number in numbers]
    times = START_US + ((first_id + numbers // per_request) * interval * 1e6).astype(np.int64)
    index = numbers % per_request
    of_request = np.minimum(per_request, count - numbers // per_request * per_request)
    columns = {
        "time": times,
        "id": ids,
        "index": index,
        "images": of_request,
        "model": [model] * count,
        "version": ["1"] * count,
        "protocol": [protocol] * count,
        "client": [None] * count,
        "image": [image.tobytes() for image in images],
        "digit": np.zeros(count, int) if predicted is None else predicted,
        "probabilities": [[0.1] * 10] * count,
        "confidence": [0.1] * count,
        "accepted": [False] * count,
        "teacher_digit": [None] * count,
        "reason": ["sample"] * count,
        "rate": [rate] * count,
    }
    _add(folder, "requests", columns, REQUESTS)
    known = [(i, label) for i, label in enumerate(labels or []) if label >= 0]
    if known:
        rows = [row for row, _ in known]
        columns = {
            "time": times[rows] + 1_000_000,
            "id": [ids[row] for row in rows],
            "index": index[rows],
            "label": [label for _, label in known],
        }
        _add(folder, "feedback", columns, FEEDBACK)


def _add(folder: Path, kind: str, columns: dict[str, object], schema: object) -> None:
    table = pa.table(
        {field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema
    )
    add_file(folder, kind, table, process=0, max_bytes=10**9)
