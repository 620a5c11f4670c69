"""Parquet files with a column of pictures or of pixels.

Pictures are bytes, also as Hugging Face's datasets have them: a structure with `bytes` and `path`. Pixels are lists of
784 integers, or 28 of 28. A file declares how much it holds; what it declares is checked before it is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distillery import unknown
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
        for batch in self._batches(part):
            with _errors():
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

    def _batches(self, part: Part) -> Iterator[Any]:
        """Yield the rows of a part, the column alone."""
        size = _PICTURES if self.pictures else BATCH
        with (
            open_unchanged(self) as source,
            _errors(),
            _open(source, self.column if self.pictures else None) as file,
        ):
            groups, before = _row_groups(file, part)
            if not self.pictures:
                _check_declared(file, groups, self.column)
            skip = part.first - before
            left = part.stop - part.first
            for batch in file.iter_batches(size, groups, [self.column], use_threads=False):
                rows = batch.slice(min(skip, len(batch)), left)
                skip -= min(skip, len(batch))
                left -= len(rows)
                if len(rows):
                    yield rows
                if not left:
                    return


def _row_groups(file: Any, part: Part) -> tuple[list[int], int]:
    """Return the row groups with the rows of a part, and the number of rows before the first of them."""
    groups: list[int] = []
    before = end = 0
    for number in range(file.num_row_groups):
        start, end = end, end + file.metadata.row_group(number).num_rows
        if start < part.stop and end > part.first:
            before = before if groups else start
            groups.append(number)
    return groups, before


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the errors of pyarrow into `Unreadable`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
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
        return ParquetFile(path, stamp, file.metadata.num_rows, leaf, pictures)


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


def _check_declared(file: Any, groups: list[int], column: str) -> None:
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
