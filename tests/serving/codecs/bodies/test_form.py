"""The files of multipart forms, as browsers, curl and HTTP libraries send them."""

import base64
from typing import NamedTuple

import httpx
import pytest

from serving.codecs.bodies.body import media_type
from serving.codecs.bodies.form import form_files
from serving.codecs.errors import RequestError

PNG = b"\x89PNG\r\n\x1a\n..".ljust(50, b"\n")
JPEG = b"\xff\xd8\xff\xe0..\r\n--"


class Field(NamedTuple):
    """A part of a form; without `filename`, a text field."""

    content: bytes
    filename: str | None = None
    headers: bytes = b""


def form(*fields: Field, end: bytes = b"--", boundary: bytes = b"xyz") -> bytes:
    return (
        b"".join(
            b'--%s\r\nContent-Disposition: form-data; name="field%d"%s\r\n%s\r\n%s\r\n'
            % (
                boundary,
                index,
                b"" if field.filename is None else b'; filename="%s"' % field.filename.encode(),
                field.headers,
                field.content,
            )
            for index, field in enumerate(fields)
        )
        + b"--"
        + boundary
        + end
        + b"\r\n"
    )


def files(*fields: Field) -> list[bytes]:
    return [content for _, content in form_files(b"xyz", form(*fields), 8)]


def test_files_are_found_next_to_text_fields_whatever_their_names_and_types() -> None:
    octets = b"Content-Type: application/octet-stream\r\nX-Other: 1\r\n"
    assert files(
        Field(b"student"), Field(PNG, "seven.png", octets), Field(b"7"), Field(JPEG, "C:\\7.jpg")
    ) == [
        PNG,
        JPEG,
    ]


def test_a_part_without_file_name_is_a_file_if_it_is_a_picture() -> None:
    text = b"data:image/png;base64," + base64.b64encode(PNG)
    assert files(Field(b"student"), Field(PNG), Field(text)) == [PNG, text]


def test_an_empty_file_input_is_ignored_but_an_empty_file_is_not() -> None:
    assert files(Field(b"", ""), Field(PNG, "a.png")) == [PNG]
    assert files(Field(b"", "a.png")) == [b""]


def test_files_are_numbered_in_the_order_of_the_form() -> None:
    named = form_files(b"xyz", form(Field(b"text"), Field(PNG, "a"), Field(JPEG, "b")), 8)
    assert [name for name, _ in named] == ["file 1", "file 2"]


def test_a_form_of_an_http_library_is_read() -> None:
    request = httpx.Request(
        "POST", "http://x", data={"model": "student"}, files=[("f", ("ü.png", PNG)), ("g", PNG)]
    )
    _, boundary = media_type(request.headers["Content-Type"].encode())
    assert [file for _, file in form_files(boundary, request.read(), 8)] == [PNG, PNG]


def test_a_boundary_missing_in_the_header_is_read_from_the_body() -> None:
    assert [file for _, file in form_files(b"", form(Field(PNG, "a.png")), 8)] == [PNG]


@pytest.mark.parametrize(
    ("boundary", "content", "status", "message"),
    [
        (b"xyz", form(), 422, "the form has no parts; send the picture as a file"),
        (b"xyz", form(Field(b"seven.png"), Field(b"7")), 422, r"only text fields \(field0, field1\); .* file=@seven"),
        (b"xyz", form(Field(b"", "")), 422, r"only text fields \(field0\)"),
        (b"xyz", form(*[Field(PNG, "a")] * 9), 422, "the form has 9 files; one request may carry 8"),
        (b"xyz", form(*[Field(b"")] * 109), 422, "more than 108 files and text fields"),
        (b"xyz", form(Field(PNG, "a"), end=b""), 400, "truncated"),
        (b"", b"", 400, "has no boundary, .* let the HTTP client set this header"),
        (b"xyz", b"hello", 400, "not multipart/form-data"),
        (b"x" * 300, form(Field(PNG, "a")), 400, "not multipart/form-data"),
    ],
)  # fmt: skip
def test_an_invalid_form_is_rejected_with_the_fix(
    boundary: bytes, content: bytes, status: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        form_files(boundary, content, 8)
    assert caught.value.status == status
