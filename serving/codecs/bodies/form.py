"""The files of a multipart form (RFC 7578)."""

import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.codecs.errors import InvalidInput, MalformedBody, TooManyImages
from serving.codecs.pictures.file_types import BASE64, PICTURES, recognise

_MAX_FIELDS = 100  # text fields next to the files
_FIRST_LINE = re.compile(rb"--([^\r\n]{1,70})\r\n")


class _Part:
    """One part of a form: a file, or a text field."""

    def __init__(self) -> None:
        self.disposition = b""
        self.content = b""

    def options(self) -> dict[bytes, bytes]:
        """Return the parameters of Content-Disposition."""
        return parse_options_header(self.disposition)[1]

    def is_file(self) -> bool:
        """Return whether the part has a file name, or is a picture whatever its headers say."""
        kind = recognise(self.content)
        return bool(self.options().get(b"filename")) or (
            kind is not None and kind.name in {*PICTURES, BASE64}
        )


class _Parts(list[_Part]):
    """All parts of a form, collected by the callbacks of the parser, which gets the whole form in one call."""

    def __init__(self, max_parts: int) -> None:
        self.ended = False
        self._max_parts = max_parts
        self._header = b""
        self._chunks: list[memoryview] = []

    def on_part_begin(self) -> None:
        if len(self) == self._max_parts:
            raise TooManyImages(f"the form has more than {self._max_parts} files and text fields")
        self.append(_Part())

    def on_header_field(self, data: bytes, start: int, stop: int) -> None:
        self._header = data[start:stop].lower()

    def on_header_value(self, data: bytes, start: int, stop: int) -> None:
        if self._header == b"content-disposition":
            self[-1].disposition = data[start:stop]

    def on_part_data(self, data: bytes, start: int, stop: int) -> None:
        self._chunks.append(memoryview(data)[start:stop])

    def on_part_end(self) -> None:
        self[-1].content = b"".join(self._chunks)
        self._chunks.clear()

    def on_end(self) -> None:
        self.ended = True


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary in the header of a form; empty without one."""
    return parse_options_header(content_type)[1].get(b"boundary", b"")


def form_files(boundary: bytes, content: bytes, max_files: int) -> list[tuple[str, bytes]]:
    """Return the files of a form, at least one, whatever their field names and media types; ignore its text fields.

    Clients that set Content-Type themselves omit the boundary; it is read from the first line then.
    Raises `MalformedBody`, `TooManyImages`, `InvalidInput` for a form without files.
    """
    first_line = _FIRST_LINE.match(content)
    boundary = boundary or (first_line[1] if first_line else b"")
    if not boundary:
        raise MalformedBody(
            "Content-Type multipart/form-data has no boundary, and the body does not begin with one; "
            "let the HTTP client set this header"
        )
    parts = _Parts(max_files + _MAX_FIELDS)
    try:
        MultipartParser(
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_part_data": parts.on_part_data,
                "on_part_end": parts.on_part_end,
                "on_end": parts.on_end,
            },
        ).write(content)
    except FormParserError as error:
        raise MalformedBody(f"the body is not multipart/form-data: {error}") from None
    if not parts.ended:
        raise MalformedBody("the multipart form is truncated: its closing boundary is missing")
    files = [part.content for part in parts if part.is_file()]
    if not files:
        fields = ", ".join(
            part.options().get(b"name", b"?")[:40].decode(errors="replace") for part in parts[:5]
        )
        found = f"only text fields ({fields})" if parts else "no parts"
        raise InvalidInput(f"the form has {found}; send the picture as a file, with curl: -F file=@seven.png")
    if len(files) > max_files:
        raise TooManyImages(f"the form has {len(files)} files; one request may carry {max_files}")
    return [(f"file {index + 1}", file) for index, file in enumerate(files)]
