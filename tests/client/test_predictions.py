"""The clients against a real service: predictions, errors, and their imports."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import prometheus_client
import pytest

from serving.client import AsyncClient, Client, Predictions
from serving.client.errors import ClientError, FailedError, MalformedAnswerError, RefusedError
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.requests.clients import BOTH, Kind, png, predict
from tests.support.service import API_KEY, ROOT, Service, free_port, let_it_read
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()


@pytest.fixture
def url(service: Service) -> str:
    return service.url


@pytest.fixture
def strict_url(strict_service: Service) -> str:
    return strict_service.url


@pytest.fixture(scope="module")
def expected(model_repository: Path) -> dict[str, Any]:
    """The probabilities of every sample digit by model, from onnxruntime alone."""
    return {
        name: Session(entry.path).run(DIGITS).probabilities
        for name, entry in load_repository(model_repository).items()
    }


@BOTH
def test_predictions_equal_those_of_the_session_in_one_request_or_several(
    kind: Kind, url: str, expected: dict[str, Any]
) -> None:
    for model, scores in expected.items():
        for images in (64, 200):
            (answer,) = predict(kind, url, [DIGITS], model, max_images=images)
            assert np.abs(answer.probabilities - scores).max() < 1e-5
            assert answer.digits.tolist() == scores.argmax(axis=1).tolist()
            assert (answer.model, answer.version, len(answer)) == (model, "1", len(DIGITS))
            assert 0 < answer.timing.inference_ms < answer.timing.total_ms
    (one,) = predict(kind, url, [DIGITS[0]])
    assert one.model == "student-int8"  # the service's default
    assert one.probabilities.shape == (1, 10)


def test_pictures_get_the_predictions_of_their_pixels(url: str, expected: dict[str, Any]) -> None:
    files = [png(digit) for digit in DIGITS[:5]]

    async def predict_all() -> Predictions:
        async with AsyncClient(url, model="teacher") as client:
            return await client.predict_pictures(files)

    with Client(url) as client:
        answers = [client.predict_pictures(files, "teacher"), asyncio.run(predict_all())]
        for answer in answers:
            assert np.abs(answer.probabilities - expected["teacher"][:5]).max() < 1e-5
            assert answer.model == "teacher"
        assert client.predict_pictures(files[:1]).model == "student-int8"


def test_models_and_readiness(url: str, model_repository: Path) -> None:
    manifests = {name: entry.manifest for name, entry in load_repository(model_repository).items()}
    nowhere = f"http://127.0.0.1:{free_port()}"

    async def predict_all() -> tuple[Any, bool, bool]:
        async with AsyncClient(url) as client, AsyncClient(nowhere) as lost:
            return await client.models(), await client.ready(), await lost.ready()

    with Client(url) as client, Client(nowhere) as lost:
        for models, ready, lost_ready in [
            (client.models(), client.ready(), lost.ready()),
            asyncio.run(predict_all()),
        ]:
            assert list(models) == [
                "student-int8",
                "student",
                "student-alone",
                "teacher",
            ]  # the default first
            assert models == {name: one.model_dump(mode="json") for name, one in manifests.items()}
            assert (ready, lost_ready) == (True, False)


# Errors


@BOTH
def test_an_error_status_is_not_retried(kind: Kind, url: str) -> None:
    label = 'distillery_requests_total{model="teacher",protocol="v2",status="400",version="1"}'

    def rejected() -> float:
        time.sleep(0.3)  # counts are published a few times a second
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(label))

    before = rejected()
    with pytest.raises(RefusedError, match="the limit is 200 images") as caught:
        predict(kind, url, [np.concatenate([DIGITS, DIGITS[:1]])], "teacher")
    assert caught.value.status == 400
    assert rejected() - before == 1
    with pytest.raises(RefusedError, match="there is no model 'no/body'") as caught:
        predict(kind, url, [DIGITS[0]], "no/body")
    assert caught.value.status == 404


@BOTH
def test_an_overloaded_service_is_retried_after_the_time_it_names(kind: Kind, strict_url: str) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: {API_KEY}\r\n"
    address = (urlsplit(strict_url).hostname, urlsplit(strict_url).port)
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        for holder in (first, second):  # the two requests that there is room for, until their bodies are late
            holder.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        let_it_read(strict_url)
        with pytest.raises(FailedError, match="2 requests are in flight") as caught:
            predict(kind, strict_url, [DIGITS[0]], "student", api_key=API_KEY, retries=0)
        assert caught.value.status == 503
        before = time.monotonic()
        predict(kind, strict_url, [DIGITS[0]], "student", api_key=API_KEY)
        assert 1 <= time.monotonic() - before < 3


@BOTH
def test_a_missing_key_is_reported(kind: Kind, strict_url: str) -> None:
    with pytest.raises(RefusedError, match="X-API-Key is missing or wrong") as caught:
        predict(kind, strict_url, [DIGITS[0]])
    assert caught.value.status == 401


@BOTH
def test_another_service_at_the_url_is_reported(kind: Kind) -> None:
    server, thread = prometheus_client.start_http_server(
        0, "127.0.0.1"
    )  # responds to anything with its metrics
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(MalformedAnswerError, match="is not a response of this service"):
            predict(kind, url, [DIGITS[0]])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@BOTH
def test_invalid_settings_are_rejected_at_once(kind: Kind) -> None:
    for url in ("127.0.0.1:8000", "ftp://host", "http://", "http://host:port"):
        with pytest.raises(ClientError, match="is not the URL of a service"):
            kind(url)
    with pytest.raises(ClientError, match="printable ASCII"):
        kind("http://127.0.0.1", api_key="a\r\nb")


# Imports


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_nothing_is_imported_that_only_the_service_needs() -> None:
    heavy = (
        "onnxruntime",
        "litserve",
        "fastapi",
        "uvicorn",
        "prometheus_client",
        "PIL",
        "grpc",
        "torch",
    )
    code = f"import sys, serving.client; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code) == "[]\n"


def test_without_httpx_the_command_that_installs_it_is_named() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "try: import serving.client\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert run_python(code) == "serving.client needs httpx: pip install '.[client]'\n"
