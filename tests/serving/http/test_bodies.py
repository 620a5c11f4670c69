"""Bodies of the routes that are no predictions: limits on their size and on the time that they take."""

import time

import pytest

from tests.support.requests.connections import connect, post, read_answer
from tests.support.service import API_KEY, Service

AUTHORISED = f"X-API-Key: {API_KEY}"
ROUTES = {
    "feedback": ("POST", "/feedback"),
    "release": ("PUT", "/release"),
    "load": ("POST", "/v2/repository/models/teacher/load"),
    "unload": ("POST", "/v2/repository/models/teacher/unload"),
    "index": ("POST", "/v2/repository/index"),
}
every_route = pytest.mark.parametrize(("method", "path"), ROUTES.values(), ids=ROUTES)


def message(document: object) -> str:
    """Return the message of an error, below /v2 or not."""
    assert isinstance(document, dict)
    error = document["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def request(method: str, path: str, body: bytes, *headers: str, length: int) -> bytes:
    return post(path, body, *headers, length=length).replace(b"POST", method.encode(), 1)


@every_route
def test_a_slow_body_is_a_408_and_closes_the_connection(
    strict_service: Service, method: str, path: str
) -> None:
    with connect(strict_service.url) as connection:
        started = time.monotonic()
        connection.sendall(request(method, path, b'{"', AUTHORISED, length=1000))
        status, headers, document = read_answer(connection)
        assert (status, headers["connection"]) == (408, "close")
        assert message(document) == "the body did not arrive within 0.6 s; send it faster"
        assert 0.3 < time.monotonic() - started < 5
        assert connection.recv(1) == b""


@every_route
def test_a_large_body_is_a_413_that_names_the_limit(strict_service: Service, method: str, path: str) -> None:
    limit = 64 * 1024 if path == "/feedback" else 16 * 1024
    with connect(strict_service.url) as connection:
        connection.sendall(request(method, path, b" " * (limit + 1), AUTHORISED, length=10 * limit))
        status, _, document = read_answer(connection)
        assert status == 413
        assert message(document).startswith(f"the body has more than {limit:,} bytes; send ")


@every_route
def test_a_body_without_a_key_is_not_waited_for(strict_service: Service, method: str, path: str) -> None:
    with connect(strict_service.url) as connection:
        connection.sendall(request(method, path, b"", length=1000))
        assert read_answer(connection)[0] == 401
