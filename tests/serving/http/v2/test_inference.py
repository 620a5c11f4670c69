"""Inference by the Open Inference Protocol on a real service: all forms of requests and responses."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.requests.tensors import INFER, LENGTH, NUMPY, binary, outputs, split, tensor
from tests.support.service import Service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
ALL = ["logits", "probabilities", "confidence", "accepted"]


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model_repository: Path) -> dict[str, Any]:
    return outputs(Session(load_repository(model_repository)["student"].path).run(DIGITS))


def values(answer: httpx.Response) -> dict[str, Any]:
    """Every output in its shape."""
    assert answer.status_code == 200, answer.text
    document, blobs = split(answer)
    return {
        output["name"]: (
            np.frombuffer(blobs[output["name"]], NUMPY[output["datatype"]])
            if output["name"] in blobs
            else np.array(output["data"], NUMPY[output["datatype"]])
        ).reshape(output["shape"])
        for output in document["outputs"]
    }


def test_every_form_of_request_returns_the_scores_of_the_session(
    client: httpx.Client, expected: dict[str, Any]
) -> None:
    headers, body = binary(DIGITS)
    answers = [
        client.post(INFER, json={"inputs": [tensor(DIGITS, data=DIGITS.tolist())]}),
        client.post(INFER, json={"inputs": [tensor(DIGITS, data=DIGITS.ravel().tolist())]}),
        client.post(INFER, json={"inputs": [tensor(DIGITS, data=DIGITS.reshape(-1, 784).tolist())]}),
        client.post(INFER, content=body, headers=headers),
        client.post(INFER, content=body, headers=headers | {"Content-Type": "text/plain"}),
        client.post(INFER, content=gzip.compress(body), headers=headers | {"Content-Encoding": "gzip"}),
        client.post(INFER, content=zlib.compress(body), headers=headers | {"Content-Encoding": "Deflate"}),
        client.post(INFER, content=body, headers=headers | {"Content-Encoding": "identity"}),
        client.post(INFER, content=DIGITS.tobytes(), headers={LENGTH: "0"}),
        client.post("/v2/models/student/versions/1/infer", content=body, headers=headers),
    ]
    for answer in answers:
        found = values(answer)
        assert list(found) == ALL
        for name, scores in found.items():
            assert np.array_equal(scores, expected[name])


def test_compressed_bodies_of_predict_are_decoded(client: httpx.Client) -> None:
    content = json.dumps({"image": DIGITS[0].tolist()}).encode()
    headers = {"Content-Type": "application/json"}
    plain = client.post("/predict/student", content=content, headers=headers)
    packed = client.post(
        "/predict/student", content=gzip.compress(content), headers=headers | {"Content-Encoding": "gzip"}
    )
    assert packed.json()["predictions"] == plain.json()["predictions"]


def test_a_connection_stays_usable_after_errors(client: httpx.Client, expected: dict[str, Any]) -> None:
    for index in range(20):
        headers, body = binary(DIGITS[index : index + 1])
        found = values(client.post(INFER, content=body, headers=headers))
        assert np.abs(found["logits"] - expected["logits"][[index]]).max() < 1e-4
        wrong = client.post(INFER, content=body.replace(b"UINT8", b"UINT9"), headers=headers)
        assert (wrong.status_code, "'UINT9'; expected 'UINT8'" in wrong.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("asked", "everywhere", "names", "in_binary"),
    [
        (None, None, ALL, []),
        ([], None, ALL, []),
        (None, True, ALL, ALL),
        ([("probabilities", None)], None, ["probabilities"], []),
        ([("probabilities", True), ("logits", False)], None, ["probabilities", "logits"], ["probabilities"]),
        ([("probabilities", False), ("logits", None)], True, ["probabilities", "logits"], ["logits"]),
    ],
)
def test_outputs_have_the_requested_order_and_form(
    client: httpx.Client,
    expected: dict[str, Any],
    asked: list[tuple[str, bool | None]] | None,
    everywhere: bool | None,
    names: list[str],
    in_binary: list[str],
) -> None:
    document: dict[str, Any] = {"inputs": [tensor(DIGITS[:3], data=DIGITS[:3].tolist())]}
    if asked is not None:
        document["outputs"] = [
            {"name": name} | ({} if wanted is None else {"parameters": {"binary_data": wanted}})
            for name, wanted in asked
        ]
    if everywhere is not None:
        document["parameters"] = {"binary_data_output": everywhere}
    answer = client.post(INFER, json=document)
    found = values(answer)
    assert list(found) == names
    assert list(split(answer)[1]) == in_binary
    assert (LENGTH in answer.headers) == bool(in_binary)
    kind = "application/octet-stream" if in_binary else "application/json"
    assert answer.headers["Content-Type"] == kind
    for name, scores in found.items():
        assert np.allclose(scores, expected[name][:3], atol=1e-4)


def test_classification_returns_the_most_probable_digits_as_strings(
    client: httpx.Client, expected: dict[str, Any]
) -> None:
    def ask(wanted: int, **parameters: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        output = {"name": "logits", "parameters": {"classification": wanted, **parameters}}
        document = {"inputs": [tensor(DIGITS[:5], data=DIGITS[:5].tolist())], "outputs": [output]}
        return split(client.post(INFER, json=document))

    ((output,), _) = ask(3)[0]["outputs"], None
    assert (output["datatype"], output["shape"], len(output["data"])) == ("BYTES", [5, 3], 15)
    best = np.argsort(-expected["logits"][:5], axis=1)[:, :3]
    for text, row, digit in zip(output["data"], np.repeat(range(5), 3), best.ravel(), strict=True):
        score, found = text.split(":")
        assert int(found) == digit
        assert abs(float(score) - expected["logits"][row, digit]) < 1e-4
    assert ask(99)[0]["outputs"][0]["shape"] == [5, 10]
    blob = ask(3, binary_data=True)[1]["logits"]
    first = int.from_bytes(blob[:4], "little")
    assert blob[4 : 4 + first].decode() == output["data"][0]


def test_the_id_is_returned_and_unknown_parameters_are_ignored(client: httpx.Client) -> None:
    one = tensor(DIGITS[:1], data=DIGITS[0].tolist())
    one["data"] = [one["data"]]
    one["parameters"] = {"content_type": "np"}
    parameters = {"mine": 42, "priority": 1, "timeout": 1, "sequence_id": 0, "sequence_start": False}
    for number in ("", "a \"quoted\" 'né'", "x" * 1000):
        answer = client.post(INFER, json={"id": number, "inputs": [one], "parameters": parameters, "new": []})
        assert answer.json()["id"] == number
    assert "id" not in client.post(INFER, json={"inputs": [one]}).json()
