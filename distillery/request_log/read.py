"""Read a request log: the images, what was predicted for them, and the labels that feedback provides."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillery.files import sha256
from distillery.request_log import RequestLogError
from distillery.request_log.arrow import pa, pc
from distillery.request_log.files import log_files, read_file
from distillery.request_log.schema import DIGITS, FEEDBACK, PIXELS, SIDE

NO_LABEL = -1
_KEY = ["id", "index"]


@dataclass(frozen=True)
class RequestLog:
    """N images of a request log, oldest first."""

    folder: Path
    table: Any
    """The columns of `schema.REQUESTS`, and `label`, int8 and null for an image without feedback (a pyarrow table)."""

    def __len__(self) -> int:
        rows: int = self.table.num_rows
        return rows

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """Return the images, `uint8 [N, 28, 28]`."""
        column = self.table["image"].combine_chunks()
        if not len(column):
            return np.empty((0, SIDE, SIDE), np.uint8)
        start = column.offset * PIXELS
        pixels = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * PIXELS]
        return pixels.reshape(-1, SIDE, SIDE)

    @cached_property
    def labels(self) -> NDArray[np.int8]:
        """Return the true digits, `int8 [N]`, and `NO_LABEL` for an image without feedback."""
        labels: NDArray[np.int8] = pc.fill_null(self.table["label"], NO_LABEL).to_numpy().astype(np.int8)
        return labels

    @cached_property
    def digits(self) -> NDArray[np.int8]:
        """Return the predicted digits, `int8 [N]`."""
        digits: NDArray[np.int8] = self.table["digit"].to_numpy().astype(np.int8)
        return digits

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """Return when the predictions were made, `float64 [N]`, in seconds since 1970."""
        times: NDArray[np.float64] = self.table["time"].cast(pa.int64()).to_numpy() / 1e6
        return times

    @cached_property
    def sha256(self) -> str:
        """Return a hash of images and labels, which does not depend on how the rows are divided into files."""
        return sha256(self.images.tobytes() + self.labels.tobytes())


def read_log(folder: Path, *, newest: int | None = None) -> RequestLog:
    """Read a log, or the `newest` images of it; files that are being written are skipped.

    An image that was logged twice counts once, and of several labels of an image the last one.

    Raises `RequestLogError` for a folder without images, and for a file that is damaged or of another kind.
    """
    if not folder.is_dir():
        raise RequestLogError(f"there is no request log {folder}; name the folder of --request-log")
    tables, rows = [], 0
    for path in reversed(log_files(folder, "requests")):
        table = _valid(path, read_file(path, "requests"))
        tables.append(table)
        rows += table.num_rows
        if newest is not None and rows >= newest:
            break
    if not rows:
        raise RequestLogError(
            f"{folder} has no images (requests-*.parquet); a service writes them with --request-log, after "
            "--request-log-seconds at the latest"
        )
    found = _last_of_each(pa.concat_tables(tables)).sort_by(
        [("time", "ascending"), *((k, "ascending") for k in _KEY)]
    )
    if newest is not None:
        found = found.slice(max(0, found.num_rows - newest))
    return RequestLog(folder, _with_labels(found, _labels(folder)))


def _labels(folder: Path) -> Any:
    tables = []
    for path in log_files(folder, "feedback"):
        table = read_file(path, "feedback")
        _check(path, "label", table["label"])
        tables.append(table)
    return _last_of_each(pa.concat_tables(tables) if tables else FEEDBACK.empty_table())


def _with_labels(found: Any, labels: Any) -> Any:
    """Return the images with the column `label`, in the same order."""
    order = pa.array(np.arange(found.num_rows))
    joined = (
        found.select(_KEY)
        .append_column("order", order)
        .join(labels.select([*_KEY, "label"]), _KEY, join_type="left outer")
    )
    return found.append_column("label", joined.sort_by("order")["label"])


def _last_of_each(rows: Any) -> Any:
    """Return the last row of each image."""
    ordered = rows.sort_by([("time", "ascending")])
    numbered = ordered.select(_KEY).append_column("row", pa.array(np.arange(ordered.num_rows)))
    last = numbered.group_by(_KEY).aggregate([("row", "max")])["row_max"]
    return ordered.take(last)


def _valid(path: Path, rows: Any) -> Any:
    _check(path, "digit", rows["digit"])
    nulls = [name for name in ("time", "id", "index", "image", "digit") if rows[name].null_count]
    if nulls:
        raise RequestLogError(f"{path}: column {nulls[0]} has empty values; remove the file from the folder")
    return rows


def _check(path: Path, name: str, digits: Any) -> None:
    limits = pc.min_max(digits).as_py()
    for found in (limits["min"], limits["max"]):
        if found is not None and not 0 <= found < DIGITS:
            raise RequestLogError(
                f"{path}: {name} is {found}, expected 0 to 9; remove the file from the folder"
            )
