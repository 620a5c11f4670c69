"""The HTTP API of a real service: predictions for every kind of body, models, health and documentation."""

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openapi_spec_validator
import pytest
from PIL import Image

from serving.codecs.schemas import ManyImages, ModelList, OneImage, PredictAnswer
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.requests.connections import connect, post
from tests.support.service import ROOT, Service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
ONE = {"image": DIGITS[0].tolist()}
MODELS = ("student", "student-alone", "student-int8", "teacher")


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=10) as client:
        yield client


def png(digit: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(digit).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("model", MODELS)
def test_predictions_are_those_of_the_session(
    client: httpx.Client, model_repository: Path, model: str
) -> None:
    expected = Session(load_repository(model_repository)[model].path).run(DIGITS).probabilities
    answer = client.post(f"/predict/{model}", json={"images": DIGITS.tolist()})
    assert answer.status_code == 200
    predictions = PredictAnswer.model_validate_json(answer.content, strict=True).predictions
    assert [prediction.digit for prediction in predictions] == expected.argmax(axis=1).tolist()
    found = np.array([prediction.probabilities for prediction in predictions])
    assert np.abs(found - expected).max() < 1e-5  # a batch of another size may round differently
    assert [prediction.probability for prediction in predictions] == found.max(axis=1).tolist()


def test_every_kind_of_body_gets_the_same_predictions(client: httpx.Client) -> None:
    text = base64.b64encode(png(DIGITS[0])).decode()
    answers = [
        client.post("/predict", json=ONE),
        client.post("/predict", json={"images": [DIGITS[0].ravel().tolist()]}),
        client.post("/predict", json={"image": text}),
        client.post("/predict", content=png(DIGITS[0]), headers={"Content-Type": "image/png"}),
        client.post("/predict", content=png(DIGITS[0]), headers={"Content-Type": "image/x-png"}),
        client.post("/predict", content=png(DIGITS[0])),  # without Content-Type
        client.post("/predict", content=DIGITS[0].tobytes(), headers={"Content-Type": "application/octet-stream"}),
        client.post("/predict", json={"image": base64.encodebytes(png(DIGITS[0])).decode()}),
        client.post("/predict", content=b"\xef\xbb\xbf" + json.dumps(ONE).encode(),
                    headers={"Content-Type": "application/json; charset=utf-8"}),
        client.post("/predict", files={"digit": png(DIGITS[0])}),
        client.post("/predict", data={"model": "student"}, files={"digit": png(DIGITS[0])}),
        client.post("/predict", content=iter([b'{"image": ', json.dumps(ONE["image"]).encode(), b"}"]),
                    headers={"Content-Type": "application/json"}),
    ]  # fmt: skip
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == answers[0].json()["predictions"]


def test_a_photo_of_a_phone_is_classified_within_the_default_limits(client: httpx.Client) -> None:
    digit = Image.fromarray(255 - DIGITS[0]).resize((3024, 3024)).convert("RGB")
    photo = Image.new("RGB", (4032, 3024), "white")
    photo.paste(digit, (500, 0))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=95, comment=b"")
    content = buffer.getvalue().ljust(8_000_000, b"\0")  # as large as a detailed one
    expected = client.post("/predict", json=ONE).json()["predictions"][0]["digit"]
    for answer in (
        client.post("/predict", content=content, headers={"Content-Type": "image/jpeg"}),
        client.post("/predict", json={"image": base64.b64encode(content).decode()}),
        client.post("/predict", files={"photo": content}),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0]["digit"] == expected


def test_several_files_get_several_predictions(client: httpx.Client) -> None:
    answer = client.post("/predict", files=[("file", png(digit)) for digit in DIGITS[:3]])
    expected = client.post("/predict", json={"images": DIGITS[:3].tolist()})
    assert answer.json()["predictions"] == expected.json()["predictions"]


def test_the_response_names_the_model_and_the_timing(client: httpx.Client) -> None:
    answer = client.post("/predict", json=ONE)
    document = PredictAnswer.model_validate_json(answer.content, strict=True)
    assert (document.model, document.version) == ("student-int8", "1")
    timing = document.timing
    assert 0 <= timing.decode_ms + timing.queue_ms + timing.inference_ms <= timing.total_ms
    header = dict(entry.split(";dur=") for entry in answer.headers["Server-Timing"].split(", "))
    assert header == {name.removesuffix("_ms"): f"{value:g}" for name, value in timing.model_dump().items()}


def test_head_and_body_of_a_response_arrive_in_one_piece(service: Service) -> None:
    with connect(service.url) as connection:
        connection.sendall(post("/predict", json.dumps(ONE).encode()))
        # uvicorn responds to the first request of a connection, possibly in two pieces.
        first = HTTPResponse(connection)
        first.begin()
        first.read()
        connection.sendall(post("/predict", json.dumps(ONE).encode()))
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(body)["model"] == "student-int8"


def test_concurrent_clients_get_their_own_responses_among_invalid_requests(service: Service) -> None:
    good = [{"image": digit.tolist()} for digit in DIGITS[:40]]
    bad: list[Any] = [{"image": [[256] * 28] * 28}, {"image": "nonsense"}, [1], {"images": []}]

    async def ask() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            answers = await asyncio.gather(
                *(
                    client.post("/predict/teacher", json=document)
                    for pair in zip(good, bad * 10, strict=True)
                    for document in pair
                )
            )
            return answers[::2], answers[1::2]

    right, wrong = asyncio.run(ask())
    with httpx.Client(base_url=service.url) as client:
        expected = client.post("/predict/teacher", json={"images": DIGITS[:40].tolist()}).json()[
            "predictions"
        ]
    assert [answer.json()["predictions"][0]["digit"] for answer in right] == [
        one["digit"] for one in expected
    ]
    assert {answer.status_code for answer in wrong} == {422}


# Models, health, documentation


def test_models_are_described_by_their_manifests(client: httpx.Client, model_repository: Path) -> None:
    listed = ModelList.model_validate_json(client.get("/models").content)
    manifests = [entry.manifest for entry in load_repository(model_repository).values()]
    assert (listed.default, listed.models) == ("student-int8", manifests)
    assert client.get("/models/teacher").json() == manifests[MODELS.index("teacher")].model_dump(mode="json")


def test_health_and_documentation(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
    assert "swagger" in client.get("/docs").text


def test_the_openapi_document_is_valid_and_complete(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    openapi_spec_validator.validate(document)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    assert set(document["paths"]) == {
        "/predict", "/predict/{model}", "/read", "/read/{model}", "/models",
        *(f"/models/{{model}}{of}{path}" for of in ("", "/versions/{version}") for path in ("", "/card")),
        "/predict/{model}/versions/{version}", "/read/{model}/versions/{version}",
        "/feedback", "/release", "/release/promote", "/release/rollback", "/health/live", "/health/ready", "/metrics",
        "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index",
        "/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload",
        *(f"{one}{path}" for one in (model, version) for path in ("", "/ready", "/config", "/stats", "/infer")),
    }  # fmt: skip
    operation = document["paths"]["/predict/{model}"]["post"]
    assert operation["parameters"][0]["schema"]["enum"] == [*MODELS, "stable"]
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


def test_the_documented_bodies_are_accepted(client: httpx.Client) -> None:
    text = base64.b64encode(png(DIGITS[0])).decode()
    for image in (DIGITS[0].tolist(), DIGITS[0].ravel().tolist(), text):
        assert client.post("/predict", json=OneImage(image=image).model_dump()).status_code == 200
        assert client.post("/predict", json=ManyImages(images=[image]).model_dump()).status_code == 200


def test_serving_never_imports_the_training_stack_nor_what_only_signed_models_need() -> None:
    unwanted = ("torch", "torchvision", "onnx", "training", "export", "cryptography")
    code = f"import sys, serving.service; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
