"""Parquet files with a column of pictures or of pixels.

Pictures are bytes, also as Hugging Face's datasets have them: a structure with `bytes` and `path`. Pixels are lists of
784 integers, or 28 of 28. A file declares how much it holds; what it declares is checked before it is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distillery import DistilleryError, unknown
from serving.codecs.bodies.pixels import explain_image, image_bytes
from serving.codecs.errors import RequestError
from serving.model.tensors import PIXELS, SIDE, Images
from serving.scoring.inputs.base import (
    BATCH,
    IMAGES,
    PICTURES,
    Block,
    Input,
    InputError,
    Item,
    Part,
    Rejected,
    Unreadable,
    even_parts,
    file_stamp,
    open_unchanged,
    too_large,
)

_PICTURES = 16
"""In memory at a time."""
_MOST_VALUES = 4 * PIXELS
"""Per row, on average: fewer than a hostile file may declare in a few bytes."""
_METADATA = 64 * 1024 * 1024
"""Bytes of a string in the file's metadata, and number of items in a list there."""


@dataclass(frozen=True)
class ParquetFile(Input):
    """The rows of one column."""

    rows: int
    column: str
    pictures: bool

    @property
    def part_items(self) -> int:
        return PICTURES if self.pictures else IMAGES

    def parts(self, items: int) -> Iterator[Part]:
        return even_parts(self, self.rows, items)

    def read(self, part: Part, max_bytes: int) -> Iterator[Block]:
        first = part.first
        with _errors():
            for batch in _rows(self).read(part.first, part.stop):
                block = self._block(batch.column(0), max_bytes)
                yield block
                first += len(block)
        if first != part.stop:
            raise Unreadable(f"it ends at row {first:,}; its metadata says {self.rows:,} rows")

    def _block(self, values: Any, max_bytes: int) -> Block:
        if self.pictures:
            return [_picture(value, max_bytes) for value in values]
        if (images := _images(values)) is not None:
            return images
        return [Item(None, _pixels(value)) for value in values]


class _Rows:
    """Reads the rows of one column from anywhere; those of a row group have to be read from its first one on."""

    def __init__(self, source: ParquetFile) -> None:
        open_unchanged(source).close()
        self._file = _open(str(source.path), source.column if source.pictures else None)
        self._column, self._pictures = source.column, source.pictures
        groups = range(self._file.num_row_groups)
        self._starts = np.cumsum([0, *(self._file.metadata.row_group(group).num_rows for group in groups)])
        self._group = self._position = 0
        self._batches: Iterator[Any] | None = None
        self._rest: Any = None

    def read(self, first: int, stop: int) -> Iterator[Any]:
        """Yield the rows from `first` to `stop` − 1, the column alone."""
        group, end = (int(np.searchsorted(self._starts, row, "right")) - 1 for row in (first, stop - 1))
        if not self._pictures:
            _check_declared(self._file, range(group, end + 1), self._column)
        if self._batches is None or not self._starts[group] <= self._position <= first:
            self._seek(group)
        try:
            while self._position < stop and (batch := self._next()) is not None:
                skipped = min(first - min(self._position, first), len(batch))
                rows = batch.slice(skipped, stop - self._position - skipped)
                taken = skipped + len(rows)
                self._position += taken
                self._rest = batch.slice(taken) if taken < len(batch) else None
                if len(rows):
                    yield rows
        except BaseException:
            self._batches = None
            raise

    def _seek(self, group: int) -> None:
        """Go to the first row of a row group."""
        size = _PICTURES if self._pictures else BATCH
        self._group, self._position, self._rest = group, int(self._starts[group]), None
        self._batches = self._file.iter_batches(size, [group], [self._column], use_threads=False)

    def _next(self) -> Any:
        """Return the next rows, None at the end of the file."""
        if self._rest is not None:
            return self._rest
        while self._batches is not None:
            if (batch := next(self._batches, None)) is not None:
                return batch
            if self._position < self._starts[self._group + 1]:
                raise ValueError(f"row group {self._group} ends at row {self._position:,}")
            if self._group + 1 == self._file.num_row_groups:
                break
            self._seek(self._group + 1)
        return None


@lru_cache(maxsize=1)
def _rows(source: ParquetFile) -> _Rows:
    """Open a file, or return it open: the next part is usually in the same row group."""
    return _Rows(source)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the errors of pyarrow into `Unreadable`."""
    try:
        yield
    except (DistilleryError, Unreadable):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a file says about itself may be wrong
        line = str(error).partition("\n")[0][:200]
        raise Unreadable(f"it is not a Parquet file, or damaged: {line or type(error).__name__}") from None


def _open(source: Any, dictionary: str | None) -> Any:
    """Open a file; one value that many rows of the column `dictionary` have is held once."""
    return pq.ParquetFile(
        source,
        read_dictionary=[dictionary] if dictionary else None,
        buffer_size=64 * 1024,
        pre_buffer=False,
        thrift_string_size_limit=_METADATA,
        thrift_container_size_limit=_METADATA,
    )


def parquet_file(path: Path, column: str | None) -> ParquetFile:
    """Find the column. Raises `InputError` for one that is missing, `Unreadable`, `OSError`."""
    stamp = file_stamp(path)
    with path.open("rb") as source, _errors(), _open(source, None) as file:
        name = column or _only_column(path, file.schema_arrow)
        if name not in file.schema_arrow.names:
            raise InputError(f"{path}: {unknown('column', name, file.schema_arrow.names)}")
        kind = file.schema_arrow.field(name).type
        if not _is_suitable(kind):
            raise InputError(
                f"{path}: column {name} is {kind}; expected bytes of pictures, or lists of 784 integers"
            )
        pictures = not _is_list(kind)
        leaf = f"{name}.bytes" if pa.types.is_struct(kind) else name
        if (rows := file.metadata.num_rows) < 0:
            raise Unreadable(f"its metadata says {rows:,} rows")
        return ParquetFile(path, stamp, rows, leaf, pictures)


def _only_column(path: Path, schema: Any) -> str:
    suitable = [field.name for field in schema if _is_suitable(field.type)]
    if len(suitable) != 1:
        found = ", ".join(suitable) or "none"
        raise InputError(
            f"{path} has these columns of pictures or of lists of integers: {found}; name one with --column"
        )
    return str(suitable[0])


def _is_suitable(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    while _is_list(kind):
        kind = kind.value_type
        if pa.types.is_integer(kind):
            return True
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in kinds)


def _check_declared(file: Any, groups: range, column: str) -> None:
    """Check how many values row groups declare. Raises `Unreadable`.

    Only in a process that may die: this property of pyarrow ends the process where a file contradicts itself.
    """
    for number in groups:
        group = file.metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if (
                f"{chunk.path_in_schema}.".startswith(f"{column}.")
                and chunk.num_values > _MOST_VALUES * group.num_rows
            ):
                raise Unreadable(
                    f"column {column} has {chunk.num_values:,} values in {group.num_rows:,} rows; expected 784 in each"
                )


def _images(values: Any) -> Images | None:
    """Return pixels as `uint8 [N, 28, 28]`; None unless all of them are valid."""
    rows = len(values)
    length = PIXELS if not _is_list(values.type.value_type) else SIDE
    while _is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values))
        if values.null_count or lengths.to_pylist() != [length]:
            return None
        values, length = values.flatten(), SIDE
    if values.null_count or len(values) != rows * PIXELS:
        return None
    pixels = values.to_numpy(zero_copy_only=False)
    if pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > 255:
            return None
        pixels = pixels.astype(np.uint8)
    return np.ascontiguousarray(pixels).reshape(rows, SIDE, SIDE)


def _pixels(value: Any) -> Images | Rejected:
    """Return one image, or the service's reason against it."""
    found = value.as_py()
    try:
        if content := image_bytes(found):
            return np.frombuffer(content, np.uint8).reshape(SIDE, SIDE)
        explain_image("image", found)
    except RequestError as error:
        return Rejected.by(error)
    raise AssertionError(found)


def _picture(value: Any, max_bytes: int) -> Item:
    """Return one picture; its size is known before its bytes are copied."""
    if pa.types.is_struct(value.type):
        value = value["bytes"] if value.is_valid else value
    if not value.is_valid:
        return Item(None, Rejected("invalid_type", "it is null; expected the bytes of a picture"))
    if pa.types.is_dictionary(value.type):
        value = value.value
    size = value.as_buffer().size
    return Item(None, too_large(size, max_bytes) if size > max_bytes else value.as_py())
