"""The heads of the fast path: which requests match the one remembered, and which are never remembered."""

from typing import Any

import pytest

from serving.codecs.predict import PredictCodec
from serving.http.fast_path import RawHead
from serving.http.prediction_routes import Route
from tests.support.fast_path_server import request

ENDPOINT: Any = object()  # a head only carries it
ROUTE = Route(PredictCodec(), ENDPOINT)
HEADERS = {b"host": b"x", b"content-type": b"application/json"}


def raw_head(data: bytes) -> RawHead | None:
    return RawHead.of(data, HEADERS, b"", ROUTE)


def test_a_head_matches_whatever_the_length_of_the_body() -> None:
    head = raw_head(request(None, body=b"x" * 9))
    assert head
    for length in (0, 9, 10, 1234):
        assert head.body_of(request(None, body=b"y" * length)) == b"y" * length


@pytest.mark.parametrize(
    "other",
    [
        request(None, "Accept: */*", body=b"x"),
        request(None, body=b"x", path="/predict/teacher"),
        request(None, body=b"x").lower(),
        request(None, body=b"x") + b"more",
        request(None, body=b"xyz")[:-1],
        request(None, body=b"x") * 2,
        request(None, body=b"x").replace(b"Length: 1", b"Length: +1"),
        request(None, body=b"x").replace(b"Length: 1", b"Length: "),
        request(None, body=b"x").replace(b"Length: 1", b"Length: 99999999999999999999"),
        request(None, body=b"x").replace(b"\r\n", b"\n"),
        b"",
    ],
)
def test_anything_but_one_complete_request_with_that_head_does_not_match(other: bytes) -> None:
    head = raw_head(request(None, body=b"x" * 9))
    assert head
    assert head.body_of(other) is None


@pytest.mark.parametrize(
    "headers",
    [
        {b"transfer-encoding": b"chunked"},
        {b"expect": b"100-continue"},
        {b"content-encoding": b"br"},
    ],
)
def test_a_head_that_the_fast_path_cannot_serve_is_not_remembered(headers: dict[bytes, bytes]) -> None:
    assert RawHead.of(request(None, body=b"x"), HEADERS | headers, b"", ROUTE) is None
    assert RawHead.of(request(None, body=b"x"), HEADERS, b"", ROUTE)


VARYING = "X-Request-ID: {}", "traceparent: 00-{:032x}-{:016x}-00"


def varying(number: int, body: bytes = b"x") -> bytes:
    return request(None, *(header.format(number, number) for header in VARYING), body=body)


def with_headers(data: bytes) -> RawHead | None:
    fields = dict(line.split(b": ", 1) for line in data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:])
    headers = {name.lower(): value for name, value in fields.items()}
    return RawHead.of(data, headers, b"", ROUTE)


def test_a_head_matches_whatever_the_request_id_and_the_trace_context() -> None:
    head = with_headers(varying(1))
    assert head
    for number in (1, 2, 10**19):
        start, length, correlation = head.find_body(varying(number, b"y" * 1000)) or (0, 0, None)
        assert varying(number, b"y" * 1000)[start:] == b"y" * length
        assert correlation == (b"%d" % number, b"00-%032x-%016x-00" % (number, number), b"")


@pytest.mark.parametrize(
    "other",
    [
        varying(2).replace(b"X-Request-ID: 2", b"X-Request-ID: "),
        varying(2).replace(b"X-Request-ID: 2", b"X-Request-ID: a b"),
        varying(2).replace(b"X-Request-ID: 2", b"X-Request-ID: 2\nX-API-Key: k"),
        varying(2).replace(b"X-Request-ID: 2", b"X-Request-ID: 2\r\nX-API-Key: k"),
        varying(2).replace(b"X-Request-ID: 2", b"X-Request-ID: " + b"x" * 129),
        varying(2).replace(b"X-Request-ID: 2", b"X-Request-ID: " + b"x" * 100_000),
        varying(2).replace(b"X-Request-ID: 2\r\n", b""),
        varying(2).replace(b"-00\r\n", b"-0\r\n"),
        varying(2).replace(b"-00\r\n", b"-0G\r\n"),
    ],
)
def test_an_invalid_value_does_not_match(other: bytes) -> None:
    head = with_headers(varying(1))
    assert head
    assert head.body_of(other) is None


def test_two_headers_of_one_name_are_not_remembered() -> None:
    for second in ("X-Request-ID: 3", "X-Request-ID: a b"):
        assert with_headers(request(None, "X-Request-ID: 2", second, body=b"x")) is None


def test_a_second_length_or_a_body_of_another_length_is_not_remembered() -> None:
    assert raw_head(request(None, "Content-Length: 1", body=b"x")) is None
    assert raw_head(request(None, body=b"x") + b"y") is None
    assert raw_head(request(None, body=b"xy")[:-1]) is None
