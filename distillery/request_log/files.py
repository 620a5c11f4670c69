"""The files of a request log: written once, rewritten to erase ids, removed when the folder is full.

Whoever changes the folder holds its lock, which the kernel releases when a process dies. A file is added under the
lock and without the ids in `erased.json`, so that erased rows cannot return from the memory of a running service.
"""

import fcntl
import json
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from distillery.files import file_errors, make_folder, sha256, write_atomically
from distillery.request_log import RequestLogError
from distillery.request_log.arrow import pa, pc, pq
from distillery.request_log.schema import REPEATED, SCHEMAS, Kind

ERASED_SECONDS = 24 * 3600.0
"""How long an erased id is remembered, as a hash: longer than a service holds rows in memory or accepts labels."""
_LOCK = ".lock"
_ERASED = "erased.json"


class Added(NamedTuple):
    """The result of adding a file."""

    rows: int
    size: int
    """Bytes of the file; 0 if it has no rows."""
    removed: int
    """Bytes of old files removed to make room."""
    total: int
    """Bytes of all files."""


class Erased(NamedTuple):
    """The result of erasing ids."""

    requests: Mapping[str, int]
    """Rows of images by id."""
    labels: Mapping[str, int]
    """Rows of labels by id."""


def log_files(folder: Path, kind: Kind) -> list[Path]:
    """Return the files of one kind, oldest first, without those that are being written."""
    return sorted(folder.glob(f"{kind}-*.parquet"), key=_age)


def size_of(folder: Path) -> int:
    """Return the bytes of all files."""
    return sum(_sizes(folder).values())


def add_file(folder: Path, kind: Kind, rows: Any, *, process: int, max_bytes: int) -> Added:
    """Write a table as a new file, then remove the oldest files until the folder has at most `max_bytes`.

    Raises `FileError`.
    """
    with _locked(folder):
        rows = _without(rows, kind, _read_erased(folder))
        size = 0
        if rows.num_rows:
            moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
            path = folder / f"{kind}-{moment}-{process}-{secrets.token_hex(4)}.parquet"
            content = encode(rows, kind)
            write_atomically(path, content)
            size = len(content)
        total, removed = _make_room(folder, max_bytes)
    return Added(rows.num_rows, size, removed, total)


def erase(folder: Path, ids: Collection[str]) -> Erased:
    """Remove all rows with these ids from all files, and from what running services hold in memory.

    Raises `RequestLogError`, `FileError`.
    """
    if not folder.is_dir():
        raise RequestLogError(f"there is no request log {folder}; name the folder of --request-log")
    found: dict[Kind, Counter[str]] = {"requests": Counter(), "feedback": Counter()}
    wanted = pa.array(sorted(set(ids)), pa.string())
    with _locked(folder):
        _remember_erased(folder, ids)
        for kind, counts in found.items():
            for path in log_files(folder, kind):
                column = read_file(path, kind, ["id"])["id"]
                matches = column.filter(pc.is_in(column, wanted)).to_pylist()
                if not matches:
                    continue
                counts.update(matches)
                rows = read_file(path, kind)
                rows = rows.filter(pc.invert(pc.is_in(rows["id"], wanted)))
                if rows.num_rows:
                    write_atomically(path, encode(rows, kind))
                else:
                    with file_errors(folder):
                        path.unlink()
    return Erased(found["requests"], found["feedback"])


def encode(rows: Any, kind: Kind) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    repeated = [name for name in REPEATED if name in rows.column_names]
    pq.write_table(
        rows.cast(SCHEMAS[kind]), sink, compression="zstd", use_dictionary=repeated, write_statistics=False
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_file(path: Path, kind: Kind, columns: Collection[str] | None = None) -> Any:
    """Return the rows of a file, or some columns of them. Raises `RequestLogError`."""
    expected = SCHEMAS[kind]
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            for field in expected:
                if field.name not in found.names or found.field(field.name).type != field.type:
                    kind_found = found.field(field.name).type if field.name in found.names else "missing"
                    raise RequestLogError(
                        f"{path}: column {field.name} is {kind_found}, expected {field.type}; "
                        "it is no file of a request log: remove it from the folder"
                    )
            return file.read(list(columns or expected.names))
    except (pa.ArrowException, OSError) as error:
        line = str(error).partition("\n")[0][:200]
        raise RequestLogError(f"{path} cannot be read: {line}; remove it from the folder") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude other processes from changing the folder, which is created. Raises `FileError`."""
    with file_errors(folder):
        make_folder(folder)
        lock = (folder / _LOCK).open("ab")
    with lock:
        with suppress(OSError):  # no locks on this file system: erase while the service is stopped
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _age(path: Path) -> tuple[str, str]:
    """Return the time in a file's name, which rewriting does not change."""
    _, _, rest = path.name.partition("-")
    return rest, path.name


def _make_room(folder: Path, max_bytes: int) -> tuple[int, int]:
    """Remove the oldest files; return the bytes of those left, and of those removed."""
    sizes = _sizes(folder)
    total, removed = sum(sizes.values()), 0
    for path, size in sizes.items():
        if total <= max_bytes:
            break
        with file_errors(folder):
            path.unlink(missing_ok=True)
        total -= size
        removed += size
    return total, removed


def _sizes(folder: Path) -> dict[Path, int]:
    """Return the bytes of all files, oldest first."""
    sizes = {}
    for path in sorted((*log_files(folder, "requests"), *log_files(folder, "feedback")), key=_age):
        with suppress(FileNotFoundError):
            sizes[path] = path.stat().st_size
    return sizes


def _hash(request_id: str) -> str:
    return sha256(request_id.encode())


def _read_erased(folder: Path) -> dict[str, float]:
    """Return the hashes of erased ids, and when each was erased."""
    try:
        document = json.loads((folder / _ERASED).read_bytes())
        return {str(key): float(moment) for key, moment in document.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        raise RequestLogError(f"{folder / _ERASED} is damaged: remove it, then erase the ids again") from None


def _remember_erased(folder: Path, ids: Collection[str]) -> None:
    now = time.time()
    kept = {key: moment for key, moment in _read_erased(folder).items() if now - moment < ERASED_SECONDS}
    document = kept | dict.fromkeys(map(_hash, ids), now)
    write_atomically(folder / _ERASED, json.dumps(document).encode())


def _without(rows: Any, kind: Kind, erased: Mapping[str, float]) -> Any:
    """Return the rows that are not of erased ids; a request made after its id was erased remains."""
    if not erased:
        return rows
    ids = rows["id"].to_pylist()
    moments = rows["time"].cast(pa.int64()).to_pylist()
    kept = [
        _hash(request_id) not in erased or (kind == "requests" and moment / 1e6 > erased[_hash(request_id)])
        for request_id, moment in zip(ids, moments, strict=True)
    ]
    return rows.filter(pa.array(kept, pa.bool_()))
