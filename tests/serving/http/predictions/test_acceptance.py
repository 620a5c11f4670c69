"""Every prediction carries `confidence` and `accepted`, over every protocol; rejections are counted, or are errors."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from serving.client import Client
from serving.client.errors import RefusedError
from serving.codecs.schemas import PredictAnswer
from serving.model.repository import Acceptance, file_sha256, load_repository
from serving.model.session import Session
from tests.support.requests.clients import png
from tests.support.requests.grpc_calls import image_input
from tests.support.requests.tensors import binary, outputs, split, tensor
from tests.support.service import Service, eventually, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
BLANK = np.zeros((28, 28), np.uint8)
MODEL = "student"


@pytest.fixture(scope="module")
def expected(model_repository: Path) -> dict[str, Any]:
    return outputs(Session(load_repository(model_repository)[MODEL].path).run(DIGITS))


@pytest.fixture(scope="module")
def rule(model_repository: Path) -> Acceptance:
    found = load_repository(model_repository)[MODEL].manifest.acceptance
    assert found
    return found


@pytest.fixture(scope="module")
def rejecting(one_model: Path) -> Iterator[Service]:
    """A service that rejects what is not accepted."""
    with running_service(
        one_model, "--api-servers", "1", "--reject-unaccepted", "--grpc-port", "0"
    ) as service:
        yield service


@pytest.fixture(scope="module")
def older(one_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of a model without an acceptance rule, as version 0.1.0 exported it."""
    repository = tmp_path_factory.mktemp("older")
    shutil.copytree(one_model / MODEL, repository / MODEL)
    folder = repository / MODEL / "1"
    model = onnx.load(folder / "model.onnx")
    kept = list(model.graph.output)[:2]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    del model.metadata_props[:]
    onnx.save(model, folder / "model.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["acceptance"]
    manifest["outputs"] = manifest["outputs"][:2]
    manifest["sha256"] = file_sha256(folder / "model.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with running_service(repository, "--api-servers", "1", "--grpc-port", "0") as service:
        yield service


def test_predictions_carry_what_the_session_computes(
    service: Service, expected: dict[str, Any], rule: Acceptance
) -> None:
    answer = httpx.post(f"{service.url}/predict/{MODEL}", json={"images": DIGITS.tolist()})
    predictions = PredictAnswer.model_validate_json(answer.content, strict=True).predictions
    assert [one.confidence for one in predictions] == pytest.approx(expected["confidence"][:, 0], abs=1e-4)
    for one in predictions:
        assert one.confidence is not None
        assert one.accepted == (one.confidence >= rule.threshold)
    assert {one.accepted for one in predictions} == {True, False}


def test_both_executors_agree(workers_service: Service, expected: dict[str, Any]) -> None:
    answer = httpx.post(f"{workers_service.url}/predict/{MODEL}", json={"images": DIGITS.tolist()}).json()
    assert [one["accepted"] for one in answer["predictions"]] == expected["accepted"][:, 0].tolist()


def test_v2_outputs_carry_the_number_of_accepted_images(service: Service, expected: dict[str, Any]) -> None:
    url = f"{service.url}/v2/models/{MODEL}/infer"
    accepted = int(expected["accepted"].sum())
    requested = [{"name": "probabilities"}, {"name": "accepted"}]
    document: dict[str, Any] = {"inputs": [tensor(DIGITS, data=DIGITS.tolist())], "outputs": requested}
    found = httpx.post(url, json=document).json()["outputs"]
    assert [one["name"] for one in found] == ["probabilities", "accepted"]
    assert [one["parameters"] for one in found] == [{"accepted": accepted}] * 2
    assert (found[1]["datatype"], found[1]["shape"]) == ("BOOL", [len(DIGITS), 1])
    assert found[1]["data"] == expected["accepted"][:, 0].tolist()
    headers, body = binary(DIGITS, outputs=[{"name": "confidence", "parameters": {"binary_data": True}}])
    reply, blobs = split(httpx.post(url, content=body, headers=headers))
    assert reply["outputs"][0]["parameters"] == {"accepted": accepted, "binary_data_size": 4 * len(DIGITS)}
    assert np.frombuffer(blobs["confidence"], "<f4") == pytest.approx(expected["confidence"][:, 0], abs=1e-4)


def test_the_client_returns_confidence_and_accepted(service: Service, expected: dict[str, Any]) -> None:
    with Client(service.url) as client:
        files = [png(digit) for digit in DIGITS[:3]]
        for found in (client.predict(DIGITS[:3], MODEL), client.predict_pictures(files, MODEL)):
            assert found.confidence is not None
            assert found.confidence == pytest.approx(expected["confidence"][:3, 0], abs=1e-4)
            assert found.accepted is not None
            assert found.accepted.tolist() == expected["accepted"][:3, 0].tolist()
    with Client(service.url, max_images=64) as client:
        joined = client.predict(DIGITS, MODEL)
        assert joined.accepted is not None
        assert joined.accepted.tolist() == expected["accepted"][:, 0].tolist()


def test_rejections_are_counted(service: Service, expected: dict[str, Any]) -> None:
    def rejected() -> float:
        (family,) = (
            family
            for family in text_string_to_metric_families(httpx.get(f"{service.url}/metrics").text)
            if family.name == "distillery_rejected_predictions"
        )
        values = {sample.labels["model"]: sample.value for sample in family.samples}
        assert set(values) == {
            "student",
            "student-alone",
            "student-int8",
            "teacher",
        }  # also those without requests
        return values[MODEL]

    before = rejected()
    httpx.post(f"{service.url}/predict/{MODEL}", json={"images": DIGITS.tolist()})
    growth = len(DIGITS) - int(expected["accepted"].sum())
    eventually(lambda: rejected() >= before + growth)


def test_a_rejection_names_confidence_and_threshold(
    rejecting: Service, expected: dict[str, Any], rule: Acceptance
) -> None:
    best, worst = (DIGITS[find(expected["confidence"])] for find in (np.argmax, np.argmin))
    url = f"{rejecting.url}/predict"
    assert httpx.post(url, json={"image": best.tolist()}).status_code == 200
    answer = httpx.post(url, json={"images": [best.tolist(), worst.tolist()]})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "not_accepted"
    assert error["message"].startswith("image 2 of 2 is not accepted: its confidence is 0.")
    assert f"the threshold of {MODEL} is {rule.threshold:.4f}" in error["message"]
    headers, body = binary(worst[None])
    answer = httpx.post(f"{rejecting.url}/v2/models/{MODEL}/infer", content=body, headers=headers)
    assert (answer.status_code, "is not accepted" in answer.json()["error"]) == (400, True)
    with triton.InferenceServerClient(rejecting.grpc) as client:
        with pytest.raises(InferenceServerException, match="is not accepted") as caught:
            client.infer(MODEL, [image_input(worst[None])])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with Client(rejecting.url) as client, pytest.raises(RefusedError, match="is not accepted"):
        client.predict(worst, MODEL)


def test_a_model_of_an_older_export_has_neither(older: Service, expected: dict[str, Any]) -> None:
    answer = httpx.post(f"{older.url}/predict", json={"image": DIGITS[0].tolist()}).json()
    prediction = PredictAnswer.model_validate(answer).predictions[0]
    assert (prediction.confidence, prediction.accepted) == (None, None)
    url = f"{older.url}/v2/models/{MODEL}/infer"
    headers, body = binary(DIGITS)
    document, _ = split(httpx.post(url, content=body, headers=headers))
    assert [one["name"] for one in document["outputs"]] == ["logits", "probabilities"]
    assert all("parameters" not in one for one in document["outputs"])
    headers, body = binary(DIGITS, outputs=[{"name": "accepted"}])
    answer = httpx.post(url, content=body, headers=headers)
    assert answer.status_code == 400
    assert "no output 'accepted': export it again" in answer.json()["error"]
    with triton.InferenceServerClient(older.grpc) as client:
        found = client.infer(MODEL, [image_input(DIGITS)])
        assert np.allclose(found.as_numpy("logits"), expected["logits"], atol=1e-4)
        assert found.as_numpy("accepted") is None
    with Client(older.url) as client:
        predictions = client.predict(DIGITS, MODEL)
        assert (predictions.confidence, predictions.accepted) == (None, None)
