"""Errors over HTTP: the error body, the API key and the limits."""

import json
import struct
import time
import zlib
from collections.abc import Iterator

import httpx
import pytest

from serving.codecs.schemas import ErrorAnswer
from tests.support.requests.connections import connect, post, read_answer
from tests.support.service import API_KEY, Service, let_it_read
from tests.support.training.samples import sample_test

ONE = {"image": sample_test().images[0].tolist()}
MODELS = ("student", "student-alone", "student-int8", "teacher")
AUTHORISED = f"X-API-Key: {API_KEY}"


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=10) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code", "message"),
    [
        ("POST", "/predict", b"{", {}, 400, "malformed_body", "not JSON"),
        ("POST", "/predict", b'{"image": [1]}', {}, 422, "invalid_shape", "image has 1 values"),
        ("POST", "/predict", b"[]", {"Content-Type": "text/csv"}, 415, "unsupported_media_type", "text/csv"),
        ("POST", "/predict", b"{}", {"Content-Encoding": "br"}, 415, "unsupported_encoding", "gzip or deflate"),
        ("POST", "/predict", b"{}", {"Content-Encoding": "gzip"}, 400, "malformed_body", "not valid gzip"),
        ("POST", "/predict", b"hello", {"Content-Type": "image/png"}, 422, "invalid_picture", "not a picture"),
        ("POST", "/predict/nobody", b"{}", {}, 404, "unknown_model", ", ".join(MODELS)),
        ("POST", "/predict//x", b"{}", {}, 404, "unknown_model", "there is no model '/x'"),
        ("POST", "/predict/teacher/x", b"{}", {}, 404, "unknown_model", "'teacher/x'"),
        ("GET", "/predict", b"", {}, 405, "method_not_allowed", "found GET"),
        ("DELETE", "/predict/teacher", b"", {}, 405, "method_not_allowed", "found DELETE"),
        ("GET", "/models/nobody", b"", {}, 404, "unknown_model", ", ".join(MODELS)),
        ("GET", "/nothing", b"", {}, 404, "not_found", "GET /nothing"),
        ("POST", "/models", b"", {}, 405, "method_not_allowed", "POST /models"),
        ("POST", "/predictions", b"{}", {}, 404, "not_found", "POST /predictions"),
    ],
)  # fmt: skip
def test_an_invalid_request_is_reported_in_the_error_body(
    client: httpx.Client,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    message: str,
) -> None:  # fmt: skip
    answer = client.request(
        method, path, content=body, headers={"Content-Type": "application/json"} | headers
    )
    assert answer.status_code == status
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert (error.code, answer.headers["Content-Type"]) == (code, "application/json")
    assert message in error.message
    if status == 405:
        assert answer.headers["Allow"] in {"POST", "GET, HEAD"}


def test_a_picture_of_too_many_pixels_is_rejected_at_once(client: httpx.Client) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b""))
    )
    started = time.monotonic()
    answer = client.post(
        "/predict", content=b"\x89PNG\r\n\x1a\n" + chunks, headers={"Content-Type": "image/png"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_pixels")
    assert time.monotonic() - started < 1


def test_without_the_key_only_health_metrics_and_documentation_are_available(strict_service: Service) -> None:
    with httpx.Client(base_url=strict_service.url) as client:
        for headers in ({}, {"X-API-Key": b"wrong"}, {"X-API-Key": b"\xe9"}):
            rejected = [
                client.post("/predict", json=ONE, headers=headers),
                client.post("/predict/nobody", json=ONE, headers=headers),
                client.get("/models", headers=headers),
                client.get("/models/teacher", headers=headers),
                client.get("/models/teacher/card", headers=headers),
            ]
            assert [(answer.status_code, answer.json()["error"]["code"]) for answer in rejected] == [
                (401, "unauthorized")
            ] * 5
        for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        headers = {"X-API-Key": API_KEY}
        assert client.post("/predict", json=ONE, headers=headers).status_code == 200
        assert client.get("/models/teacher", headers=headers).json()["name"] == "teacher"
        operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
        assert operation["security"] == [{"APIKeyHeader": []}]


def test_a_body_over_the_limit_is_rejected_before_it_is_read(strict_service: Service) -> None:
    with connect(strict_service.url) as connection:
        connection.sendall(post("/predict", b"", AUTHORISED, length=20_001))
        status, _, document = read_answer(connection)
        assert (status, document["error"]["code"]) == (413, "body_too_large")
        assert "20,001" in document["error"]["message"]
    chunked = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{AUTHORISED}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    with connect(strict_service.url) as connection:
        connection.sendall(chunked + b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        assert read_answer(connection)[0] == 413


def test_an_incomplete_body_times_out(strict_service: Service) -> None:
    for sent in (b"", b'{"image": ['):
        with connect(strict_service.url) as connection:
            started = time.monotonic()
            connection.sendall(post("/predict", sent, AUTHORISED, length=1000))
            status, headers, document = read_answer(connection)
            assert (status, document["error"]["code"], headers["connection"]) == (408, "slow_body", "close")
            assert 0.5 < time.monotonic() - started < 3


def test_requests_over_the_limit_in_flight_are_rejected(strict_service: Service) -> None:
    with (
        connect(strict_service.url) as first,
        connect(strict_service.url) as second,
        connect(strict_service.url) as third,
    ):
        for unfinished in (first, second):
            unfinished.sendall(post("/predict", b"{", AUTHORISED, length=1000))
        let_it_read(strict_service.url)
        third.sendall(post("/predict", json.dumps(ONE).encode(), AUTHORISED))
        status, headers, document = read_answer(third)
        assert (status, document["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
        assert read_answer(first)[0] == read_answer(second)[0] == 408
    with httpx.Client(base_url=strict_service.url) as client:
        assert client.post("/predict", json=ONE, headers={"X-API-Key": API_KEY}).status_code == 200


def test_clients_that_disconnect_free_their_place(strict_service: Service) -> None:
    for _ in range(10):
        with connect(strict_service.url) as connection:
            connection.sendall(post("/predict", b"{", AUTHORISED, length=1000))
    let_it_read(strict_service.url)
    with httpx.Client(base_url=strict_service.url) as client:
        assert client.post("/predict", json=ONE, headers={"X-API-Key": API_KEY}).status_code == 200
