"""A strict reader of protobuf's wire format, for files that are not trusted.

Protobuf's own parsers skip fields they do not know, merge a message that occurs twice and follow any nesting. This
reader rejects all of that: a message has the fields of its schema, each at most once unless it is repeated, and
nothing else. Bytes are not copied, and the number of fields is bounded, so reading takes little memory and time.

Specification: https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MAX_FIELDS = 100_000
"""Fields of a whole file; a student has about 150, a large ensemble a few thousand."""

_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
_WIRE_TYPES = {"integer": _VARINT, "text": _LENGTH, "bytes": _LENGTH, "float": _FIXED32}


class WireFormatError(ValueError):
    """Content that is not a message of the schema. The message names the place and what was found there."""


@dataclass(frozen=True)
class Field:
    """A field of a message; `kind` is the schema of an embedded message."""

    name: str
    kind: "Literal['integer', 'float', 'text', 'bytes'] | Schema"
    repeated: bool = False


Schema = Mapping[int, "Field | str"]
"""The fields of a message by number; a string is the description of a field that is rejected."""
Message = dict[str, Any]
"""The values by field name: repeated fields are lists, maybe empty, others are absent if not set.

Integers are signed, of 64 bits; text is `str`, bytes are a `memoryview`.
"""


def read_message(content: bytes, schema: Schema, name: str) -> Message:
    """Read a whole message; `name` is how errors call it. Raises `WireFormatError`."""
    return _Reader().message(memoryview(content), schema, name)


class _Reader:
    def __init__(self) -> None:
        self._fields = 0

    def message(self, content: memoryview, schema: Schema, place: str) -> Message:
        values: Message = {
            field.name: [] for field in schema.values() if isinstance(field, Field) and field.repeated
        }
        position = 0
        while position < len(content):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise WireFormatError(f"the file has more than {MAX_FIELDS:,} fields")
            key, position = _varint(content, position, place)
            field, wire_type = schema.get(key >> 3), key & 7
            if not isinstance(field, Field):
                raise WireFormatError(f"{place} has {field or f'the unknown field {key >> 3}'}")
            expected = _WIRE_TYPES[field.kind] if isinstance(field.kind, str) else _LENGTH
            if wire_type != expected:
                raise WireFormatError(f"{place}.{field.name} has wire type {wire_type}, expected {expected}")
            if not field.repeated and field.name in values:
                raise WireFormatError(f"{place}.{field.name} occurs twice")
            inner = (
                f"{place}.{field.name}[{len(values[field.name])}]"
                if field.repeated
                else f"{place}.{field.name}"
            )
            value, position = self._value(content, position, field, inner)
            if field.repeated:
                values[field.name].append(value)
            else:
                values[field.name] = value
        return values

    def _value(self, content: memoryview, position: int, field: Field, place: str) -> tuple[Any, int]:
        """Return the value at `position` and the position after it."""
        if field.kind == "integer":
            value, end = _varint(content, position, place)
            return value - (1 << 64) if value >> 63 else value, end
        if field.kind == "float":
            return struct.unpack("<f", _part(content, position, 4, place))[0], position + 4
        length, position = _varint(content, position, place)
        part = _part(content, position, length, place)
        if field.kind == "bytes":
            return part, position + length
        if field.kind == "text":
            try:
                return str(part, "utf-8"), position + length
            except UnicodeDecodeError:
                raise WireFormatError(f"{place} is not UTF-8") from None
        return self.message(part, field.kind, place), position + length


def _part(content: memoryview, position: int, length: int, place: str) -> memoryview:
    if length > len(content) - position:
        raise WireFormatError(f"{place} is cut off")
    return content[position : position + length]


def _varint(content: memoryview, position: int, place: str) -> tuple[int, int]:
    """Return the unsigned integer at `position` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            raise WireFormatError(f"{place} is cut off")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise WireFormatError(f"{place} has an integer of more than 64 bits")
