"""The head that opens the short way: which requests have the one that is remembered, and which never open it."""

from typing import Any

import pytest

from serving.http.fast_path import Head
from tests.support.fast_path_server import request

ROUTE: Any = object()  # a head only carries it


def head_of(data: bytes) -> Head | None:
    return Head.of(data, {b"host": b"x"}, ROUTE)


def test_a_head_is_recognised_whatever_the_length_of_the_body() -> None:
    head = head_of(request(None, body=b"x" * 9))
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
def test_anything_but_one_whole_request_with_that_head_is_not_recognised(other: bytes) -> None:
    head = head_of(request(None, body=b"x" * 9))
    assert head
    assert head.body_of(other) is None


@pytest.mark.parametrize(
    "headers",
    [
        {b"connection": b"close"},
        {b"transfer-encoding": b"chunked"},
        {b"expect": b"100-continue"},
        {b"upgrade": b"h2c"},
    ],
)
def test_a_head_that_changes_the_way_is_not_remembered(headers: dict[bytes, bytes]) -> None:
    assert Head.of(request(None, body=b"x"), headers, ROUTE) is None
    assert Head.of(request(None, body=b"x"), {b"connection": b"Keep-Alive"}, ROUTE)


def test_a_second_length_or_another_amount_of_body_is_not_remembered() -> None:
    assert head_of(request(None, "Content-Length: 1", body=b"x")) is None
    assert head_of(request(None, body=b"x") + b"y") is None
    assert head_of(request(None, body=b"xy")[:-1]) is None
