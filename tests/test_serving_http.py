"""The HTTP interface of a real service: right answers, and clear words for wrong questions."""

import asyncio
import base64
import http.client
import io
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import openapi_spec_validator
import pytest
from PIL import Image
from samples import sample_test

from benchmarks.servers import ROOT, running_service
from serving.repository import load_repository
from serving.schemas import ErrorAnswer, ManyImages, ModelList, OneImage, PredictAnswer
from serving.session import Session

DIGITS = sample_test().images.numpy()
ONE = {"image": DIGITS[0].tolist()}
MODELS = ("student", "student-alone", "student-int8", "teacher")
KEY = "correct horse"


@pytest.fixture(scope="module")
def service(model_repository: Path) -> Iterator[str]:
    with running_service(model_repository, "--api-servers", "2", "--max-images", "200") as url:
        yield url


@pytest.fixture(scope="module")
def strict_service(model_repository: Path) -> Iterator[str]:
    """A service with a key, and so impatient that its limits can be met in a test."""
    flags = ("--api-servers", "1", "--api-key", KEY, "--request-timeout", "0.6", "--max-in-flight", "2")
    with running_service(model_repository, *flags, "--max-body-bytes", "20000") as url:
        yield url


@pytest.fixture
def client(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=10) as client:
        yield client


def png(digit: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(digit).save(buffer, "PNG")
    return buffer.getvalue()


def raw_request(
    body: bytes, headers: str = "", *, length: int | None = None, path: str = "/predict"
) -> bytes:
    length = len(body) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    )
    return (head + headers + "\r\n").encode() + body


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return (
        answer.status,
        {name.lower(): value for name, value in answer.getheaders()},
        json.loads(answer.read()),
    )


# Right answers


@pytest.mark.parametrize("model", MODELS)
def test_every_model_answers_what_its_session_says(
    client: httpx.Client, model_repository: Path, model: str
) -> None:
    expected = Session(load_repository(model_repository)[model].path).run(DIGITS)[1]
    answer = client.post(f"/predict/{model}", json={"images": DIGITS.tolist()})
    assert answer.status_code == 200
    predictions = PredictAnswer.model_validate_json(answer.content, strict=True).predictions
    assert [prediction.digit for prediction in predictions] == expected.argmax(axis=1).tolist()
    found = np.array([prediction.probabilities for prediction in predictions])
    assert np.abs(found - expected).max() < 1e-5  # a batch of another size may round differently
    assert [prediction.probability for prediction in predictions] == found.max(axis=1).tolist()


def test_every_kind_of_body_gets_the_same_answer(client: httpx.Client) -> None:
    text = base64.b64encode(png(DIGITS[0])).decode()
    answers = [
        client.post("/predict", json=ONE),
        client.post("/predict", json={"images": [DIGITS[0].ravel().tolist()]}),
        client.post("/predict", json={"image": text}),
        client.post("/predict", content=png(DIGITS[0]), headers={"Content-Type": "image/png"}),
        client.post("/predict", files={"digit": png(DIGITS[0])}),
        client.post("/predict", content=iter([b'{"image": ', json.dumps(ONE["image"]).encode(), b"}"]),
                    headers={"Content-Type": "application/json"}),
    ]  # fmt: skip
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == answers[0].json()["predictions"]


def test_several_files_get_several_predictions(client: httpx.Client) -> None:
    answer = client.post("/predict", files=[("file", png(digit)) for digit in DIGITS[:3]])
    expected = client.post("/predict", json={"images": DIGITS[:3].tolist()})
    assert answer.json()["predictions"] == expected.json()["predictions"]


def test_the_answer_says_which_model_and_where_the_time_went(client: httpx.Client) -> None:
    answer = client.post("/predict", json=ONE)
    document = PredictAnswer.model_validate_json(answer.content, strict=True)
    assert (document.model, document.version) == ("student-int8", "1")
    timing = document.timing
    assert 0 <= timing.decode_ms + timing.queue_ms + timing.inference_ms <= timing.total_ms
    header = dict(entry.split(";dur=") for entry in answer.headers["Server-Timing"].split(", "))
    assert header == {name.removesuffix("_ms"): f"{value:g}" for name, value in timing.model_dump().items()}


def test_head_and_body_of_an_answer_come_in_one_piece(service: str) -> None:
    with connect(service) as connection:
        connection.sendall(raw_request(json.dumps(ONE).encode()))
        # A connection's first request is answered by uvicorn, maybe in two pieces.
        first = HTTPResponse(connection)
        first.begin()
        first.read()
        connection.sendall(raw_request(json.dumps(ONE).encode()))
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(body)["model"] == "student-int8"


def test_clients_at_once_all_get_their_own_answers_whatever_others_send(service: str) -> None:
    good = [{"image": digit.tolist()} for digit in DIGITS[:40]]
    bad: list[Any] = [{"image": [[256] * 28] * 28}, {"image": "nonsense"}, [1], {"images": []}]

    async def ask() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with httpx.AsyncClient(base_url=service, timeout=20) as client:
            answers = await asyncio.gather(
                *(
                    client.post("/predict/teacher", json=document)
                    for pair in zip(good, bad * 10, strict=True)
                    for document in pair
                )
            )
            return answers[::2], answers[1::2]

    right, wrong = asyncio.run(ask())
    with httpx.Client(base_url=service) as client:
        expected = client.post("/predict/teacher", json={"images": DIGITS[:40].tolist()}).json()[
            "predictions"
        ]
    assert [answer.json()["predictions"][0]["digit"] for answer in right] == [
        one["digit"] for one in expected
    ]
    assert {answer.status_code for answer in wrong} == {422}


# Wrong questions


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code", "message"),
    [
        ("POST", "/predict", b"{", {}, 400, "malformed_body", "not JSON"),
        ("POST", "/predict", b'{"image": [1]}', {}, 422, "invalid_shape", "image has 1 values"),
        ("POST", "/predict", b"[]", {"Content-Type": "text/csv"}, 415, "unsupported_media_type", "text/csv"),
        ("POST", "/predict", b"{}", {"Content-Encoding": "br"}, 415, "unsupported_encoding", "gzip and deflate"),
        ("POST", "/predict", b"{}", {"Content-Encoding": "gzip"}, 400, "malformed_body", "says gzip, but the body"),
        ("POST", "/predict", b"GIF89a", {"Content-Type": "image/png"}, 422, "invalid_picture", "not a PNG or JPEG"),
        ("POST", "/predict/nobody", b"{}", {}, 404, "unknown_model", ", ".join(MODELS)),
        ("POST", "/predict/", b"{}", {}, 404, "unknown_model", "there is no model ''"),
        ("POST", "/predict/teacher/x", b"{}", {}, 404, "unknown_model", "'teacher/x'"),
        ("GET", "/predict", b"", {}, 405, "method_not_allowed", "found GET"),
        ("DELETE", "/predict/teacher", b"", {}, 405, "method_not_allowed", "found DELETE"),
        ("GET", "/models/nobody", b"", {}, 404, "unknown_model", ", ".join(MODELS)),
        ("GET", "/nothing", b"", {}, 404, "not_found", "GET /nothing"),
        ("POST", "/models", b"", {}, 405, "method_not_allowed", "POST /models"),
        ("POST", "/predictions", b"{}", {}, 404, "not_found", "POST /predictions"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_the_one_error_body(
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
        assert answer.headers["Allow"] in {"POST", "GET"}


def test_a_picture_of_too_many_pixels_is_refused_at_once(client: httpx.Client) -> None:
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


def test_without_the_key_nothing_is_told_but_health_and_metrics(strict_service: str) -> None:
    with httpx.Client(base_url=strict_service) as client:
        for headers in ({}, {"X-API-Key": b"wrong"}, {"X-API-Key": b"\xe9"}):
            refused = [
                client.post("/predict", json=ONE, headers=headers),
                client.post("/predict/nobody", json=ONE, headers=headers),
                client.get("/models", headers=headers),
                client.get("/models/teacher", headers=headers),
                client.get("/models/teacher/card", headers=headers),
            ]
            assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [
                (401, "unauthorized")
            ] * 5
        for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        headers = {"X-API-Key": KEY}
        assert client.post("/predict", json=ONE, headers=headers).status_code == 200
        assert client.get("/models/teacher", headers=headers).json()["name"] == "teacher"
        operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
        assert operation["security"] == [{"APIKeyHeader": []}]


AUTHORISED = f"X-API-Key: {KEY}\r\n"


def test_a_body_over_the_limit_is_refused_before_it_is_read(strict_service: str) -> None:
    with connect(strict_service) as connection:
        connection.sendall(raw_request(b"", AUTHORISED, length=20_001))
        status, _, document = read_answer(connection)
        assert (status, document["error"]["code"]) == (413, "body_too_large")
        assert "20,001" in document["error"]["message"]
    chunked = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{AUTHORISED}"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    with connect(strict_service) as connection:
        connection.sendall(chunked + b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        assert read_answer(connection)[0] == 413


def test_a_body_that_does_not_come_is_not_waited_for(strict_service: str) -> None:
    for sent in (b"", b'{"image": ['):
        with connect(strict_service) as connection:
            started = time.monotonic()
            connection.sendall(raw_request(sent, AUTHORISED, length=1000))
            status, headers, document = read_answer(connection)
            assert (status, document["error"]["code"], headers["connection"]) == (408, "slow_body", "close")
            assert 0.5 < time.monotonic() - started < 3


def test_more_requests_than_the_service_holds_are_sent_away(strict_service: str) -> None:
    with (
        connect(strict_service) as first,
        connect(strict_service) as second,
        connect(strict_service) as third,
    ):
        for unfinished in (first, second):
            unfinished.sendall(raw_request(b"{", AUTHORISED, length=1000))
        time.sleep(0.1)  # nothing tells a client that its headers were read
        third.sendall(raw_request(json.dumps(ONE).encode(), AUTHORISED))
        status, headers, document = read_answer(third)
        assert (status, document["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
        assert read_answer(first)[0] == read_answer(second)[0] == 408
    with httpx.Client(base_url=strict_service) as client:
        assert client.post("/predict", json=ONE, headers={"X-API-Key": KEY}).status_code == 200


def test_clients_that_hang_up_leave_nothing_behind(strict_service: str) -> None:
    for _ in range(10):
        with connect(strict_service) as connection:
            connection.sendall(raw_request(b"{", AUTHORISED, length=1000))
    with httpx.Client(base_url=strict_service) as client:
        assert client.post("/predict", json=ONE, headers={"X-API-Key": KEY}).status_code == 200


# Everything else that is served


def test_models_are_what_their_manifests_say(client: httpx.Client, model_repository: Path) -> None:
    listed = ModelList.model_validate_json(client.get("/models").content)
    manifests = [entry.manifest for entry in load_repository(model_repository).values()]
    assert (listed.default, listed.models) == ("student-int8", manifests)
    assert client.get("/models/teacher").json() == manifests[MODELS.index("teacher")].model_dump(mode="json")


def test_health_and_documentation(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
    assert client.get("/").headers["Location"] == "docs"
    assert "swagger" in client.get("/docs").text


def test_the_openapi_document_is_valid_and_right(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    openapi_spec_validator.validate(document)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    assert set(document["paths"]) == {
        "/predict", "/predict/{model}", "/models", "/models/{model}", "/models/{model}/card",
        "/health/live", "/health/ready", "/metrics",
        "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index",
        "/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload",
        *(f"{one}{path}" for one in (model, version) for path in ("", "/ready", "/config", "/stats", "/infer")),
    }  # fmt: skip
    operation = document["paths"]["/predict/{model}"]["post"]
    assert operation["parameters"][0]["schema"]["enum"] == list(MODELS)
    assert set(operation["responses"]) == {
        "200",
        "400",
        "404",
        "405",
        "408",
        "413",
        "415",
        "422",
        "500",
        "503",
        "504",
    }
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/predict/teacher", json=example).status_code == 200
    assert "422" not in document["paths"]["/models/{model}"]["get"]["responses"]


def test_the_documented_bodies_are_those_that_are_read(client: httpx.Client) -> None:
    text = base64.b64encode(png(DIGITS[0])).decode()
    for image in (DIGITS[0].tolist(), DIGITS[0].ravel().tolist(), text):
        assert client.post("/predict", json=OneImage(image=image).model_dump()).status_code == 200
        assert client.post("/predict", json=ManyImages(images=[image]).model_dump()).status_code == 200


def test_serving_never_imports_the_training_stack() -> None:
    code = (
        "import sys, serving.service; "
        "print([name for name in ('torch', 'torchvision', 'onnx', 'training', 'export') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
