"""The folder of results: one file of predictions per part, complete or absent, and one of what was set aside.

    OUT/run.json                                  model, settings and inputs; a run with others is refused
    OUT/predictions/NAME-HASH-NUMBER.parquet      of one part: its presence means that the part is done
    OUT/rejected/NAME-HASH-NUMBER.parquet         items of the part without a prediction, if any

A part's rejected items are written before its predictions, so a part that was interrupted between them is scored again,
and both files are replaced by the same.
"""

import fcntl
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distillery import DistilleryError
from distillery.files import file_errors, make_folder, sha256, write_atomically
from serving.scoring.inputs.base import Input, Part
from serving.scoring.score import Scored

RUN_FILE = "run.json"
_LOCK = ".lock"
_KEY = b"distillery"
"""Of the part's description in the metadata of its file."""
_REPEATED = ["source", "model", "version", "code"]


class OutputError(DistilleryError):
    """A folder of results that another run has written, or is writing."""


class Done(NamedTuple):
    """What a finished part contains."""

    part: Part
    predicted: int
    rejected: int
    unreadable: str | None


@dataclass(frozen=True)
class Output:
    """The results of one run; `settings` are those that decide them, such as the model's name and hash."""

    folder: Path
    settings: Mapping[str, Any]

    def begin(self, inputs: Iterable[Input]) -> None:
        """Create the folder, or check that its run has the same settings and inputs.

        Raises `OutputError`, `FileError`.
        """
        with file_errors(self.folder):
            make_folder(self.folder)
            path = self.folder / RUN_FILE
            if not path.exists() and any(each.name[0] != "." for each in self.folder.iterdir()):
                raise OutputError(
                    f"{self.folder} has files, but no {RUN_FILE} of an earlier run; choose a new folder"
                )
        found = _read_run(path)
        stamps = {str(each.path): list(each.stamp) for each in inputs}
        self._check(found, stamps)
        document = {**self.settings, "inputs": {**found.get("inputs", {}), **stamps}}
        write_atomically(path, json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")

    def _check(self, found: Mapping[str, Any], stamps: Mapping[str, list[int]]) -> None:
        for name, value in self.settings.items() if found else ():
            if found.get(name) != value:
                raise OutputError(
                    f"{self.folder} has results with {name} {found.get(name)}, this run has {value}; "
                    "choose another folder"
                )
        for path, stamp in stamps.items():
            if found.get("inputs", {}).get(path, stamp) != stamp:
                raise OutputError(f"{path} has changed since {self.folder} was begun; choose another folder")

    def done(self, part: Part) -> Done | None:
        """Return what a finished part contains, None if it is not finished.

        Raises `OutputError` for a file of another run.
        """
        path = self._path("predictions", part)
        try:
            metadata = pq.read_schema(path).metadata
            found = json.loads(metadata[_KEY])
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            raise OutputError(f"{path} was not written by this program; remove it") from None
        expected = self._description(part)
        for name, value in expected.items():
            if found.get(name) != value:
                raise OutputError(
                    f"{path} has {name} {found.get(name)}, expected {value}: it is of another run; remove it"
                )
        return Done(part, found["predicted"], found["rejected"], found["unreadable"])

    def write(self, part: Part, scored: Scored) -> Done:
        """Write the results of a part. Raises `FileError`."""
        done = Done(part, len(scored.predictions), len(scored.rejected), scored.unreadable)
        counts = {"predicted": done.predicted, "rejected": done.rejected, "unreadable": done.unreadable}
        metadata = {_KEY: json.dumps(self._description(part) | counts, sort_keys=True).encode()}
        if done.rejected:
            write_atomically(self._path("rejected", part), _encode(scored.rejected, metadata))
        write_atomically(self._path("predictions", part), _encode(scored.predictions, metadata))
        return done

    def _description(self, part: Part) -> dict[str, Any]:
        return {**self.settings, "source": str(part.input.path), "first": part.first, "stop": part.stop}

    def _path(self, kind: str, part: Part) -> Path:
        source = part.input.path
        stem = re.sub(r"[^\w.-]", "_", source.name)[:80] or "root"
        return self.folder / kind / f"{stem}-{sha256(str(source).encode())[:8]}-{part.number:06}.parquet"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other commands from the folder, which is created. Raises `OutputError`, `FileError`."""
        with file_errors(self.folder):
            make_folder(self.folder)
            file = (self.folder / _LOCK).open("ab")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"another command is writing to {self.folder}; wait for it, or choose another folder"
                ) from None
            except OSError:
                pass  # no locks on this file system
            yield


def _read_run(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {error}; choose another folder") from None
    return found


def _encode(table: Any, metadata: Mapping[bytes, bytes]) -> Any:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="none",
        use_dictionary=[name for name in _REPEATED if name in table.column_names],
        write_statistics=False,
        write_batch_size=table.num_rows or None,  # lists take a quarter less time in one batch
    )
    return sink.getvalue()
