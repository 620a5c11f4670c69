"""The Open Inference Protocol of a real service: right answers in every form, and the specification's examples."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from google.protobuf import json_format, text_format
from samples import sample_test
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.servers import running_service
from serving.open_inference.schemas import InferError, InferRequest, InferResponse
from serving.repository import load_repository
from serving.session import Session

DIGITS = sample_test().images.numpy()
EXAMPLES = json.loads((Path(__file__).parent / "v2_examples.json").read_text(encoding="utf-8"))
KEY = "correct horse"
LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/student/infer"


@pytest.fixture(scope="module")
def service(model_repository: Path) -> Iterator[str]:
    flags = ("--api-servers", "1", "--max-images", "200", "--api-key", KEY)
    with running_service(model_repository, *flags) as url:
        yield url


@pytest.fixture
def client(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=10, headers={"X-API-Key": KEY}) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model_repository: Path) -> dict[str, Any]:
    logits, probabilities = Session(load_repository(model_repository)["student"].path).run(DIGITS)
    return {"logits": logits, "probabilities": probabilities}


def tensor(images: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", **fields}


def binary(images: Any, **fields: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request with its images as bytes."""
    document = {"inputs": [tensor(images, parameters={"binary_data_size": images.nbytes})], **fields}
    text = json.dumps(document).encode()
    return {LENGTH: str(len(text))}, text + images.tobytes()


def split(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of an answer, and the bytes behind it by output."""
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    document = json.loads(answer.content[:length])
    blobs, start = {}, length
    for output in document["outputs"]:
        if size := output.get("parameters", {}).get("binary_data_size"):
            blobs[output["name"]] = answer.content[start : start + size]
            start += size
    assert start == len(answer.content)
    return document, blobs


def values(answer: httpx.Response) -> dict[str, Any]:
    """Every output as float32 in its shape."""
    assert answer.status_code == 200, answer.text
    document, blobs = split(answer)
    return {
        output["name"]: (
            np.frombuffer(blobs[output["name"]], "<f4")
            if output["name"] in blobs
            else np.array(output["data"], np.float32)
        ).reshape(output["shape"])
        for output in document["outputs"]
    }


def test_every_form_of_the_images_gets_what_the_session_says(
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
        assert list(found) == ["logits", "probabilities"]
        for name, scores in found.items():
            assert np.array_equal(scores, expected[name])


def test_pictures_may_come_compressed_too(client: httpx.Client) -> None:
    content = json.dumps({"image": DIGITS[0].tolist()}).encode()
    headers = {"Content-Type": "application/json"}
    plain = client.post("/predict/student", content=content, headers=headers)
    packed = client.post(
        "/predict/student", content=gzip.compress(content), headers=headers | {"Content-Encoding": "gzip"}
    )
    assert packed.json()["predictions"] == plain.json()["predictions"]


def test_a_connection_gets_right_answers_whatever_was_wrong_before(
    client: httpx.Client, expected: dict[str, Any]
) -> None:
    for index in range(20):
        headers, body = binary(DIGITS[index : index + 1])
        found = values(client.post(INFER, content=body, headers=headers))
        assert np.abs(found["logits"] - expected["logits"][[index]]).max() < 1e-4
        wrong = client.post(INFER, content=body.replace(b"UINT8", b"UINT9"), headers=headers)
        assert (wrong.status_code, "'UINT9'; expected 'UINT8'" in wrong.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("asked", "everywhere", "names", "in_binary"),
    [
        (None, None, ["logits", "probabilities"], []),
        ([], None, ["logits", "probabilities"], []),
        (None, True, ["logits", "probabilities"], ["logits", "probabilities"]),
        ([("probabilities", None)], None, ["probabilities"], []),
        ([("probabilities", True), ("logits", False)], None, ["probabilities", "logits"], ["probabilities"]),
        ([("probabilities", False), ("logits", None)], True, ["probabilities", "logits"], ["logits"]),
    ],
)
def test_outputs_come_as_they_are_asked_for(
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
        assert np.abs(scores - expected[name][:3]).max() < 1e-4


def test_the_likeliest_digits_come_as_strings(client: httpx.Client, expected: dict[str, Any]) -> None:
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


def test_the_id_comes_back_and_unknown_parameters_do_no_harm(client: httpx.Client) -> None:
    one = tensor(DIGITS[:1], data=DIGITS[0].tolist())
    one["data"] = [one["data"]]
    one["parameters"] = {"content_type": "np"}
    parameters = {"mine": 42, "priority": 1, "timeout": 1, "sequence_id": 0, "sequence_start": False}
    for number in ("", "a \"quoted\" 'né'", "x" * 1000):
        answer = client.post(INFER, json={"id": number, "inputs": [one], "parameters": parameters, "new": []})
        assert answer.json()["id"] == number
    assert "id" not in client.post(INFER, json={"inputs": [one]}).json()


# The specification's examples


@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
def test_the_examples_of_the_specification_are_understood(client: httpx.Client, form: str) -> None:
    request, response = EXAMPLES[form]["request"], EXAMPLES[form]["response"]
    images = DIGITS[:2]
    ours = {key: value for key, value in request.items() if key != "inputs"}
    ours["outputs"] = [output | {"name": "probabilities"} for output in request["outputs"]]
    headers = {}
    if form == "binary":
        headers, content = binary(images, **ours)
    else:
        data = images.ravel() if form == "flat" else images
        content = json.dumps(ours | {"inputs": [tensor(images, data=data.tolist())]}).encode()
    answer = client.post(INFER, content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    document = split(answer)[0]
    InferResponse.model_validate(document)
    assert (document.pop("model_name"), document.pop("model_version")) == ("student", "1")
    assert structure(document) == structure(response)
    # Word for word they are another model's, and that is what is said.
    words = json.dumps(request).encode()
    answer = client.post(INFER, content=words + bytes(19), headers={LENGTH: str(len(words))})
    assert answer.json() == {"error": "inputs[0].name is the string 'input0'; this model reads 'image' alone"}


def structure(value: Any) -> Any:
    """Field names and types, without how many or which."""
    match value:
        case dict():
            return {key: structure(one) for key, one in value.items()}
        case list():
            return [structure(value[0])]
    return type(value)


def test_metadata_has_the_fields_of_the_specification(client: httpx.Client) -> None:
    assert structure(client.get("/v2").json()) == structure(EXAMPLES["server_metadata"])
    for path in ("/v2/models/student", "/v2/models/student/versions/1"):
        found = client.get(path).json()
        assert structure(found) == structure(EXAMPLES["model_metadata"])
        assert (found["name"], found["versions"]) == ("student", ["1"])
        assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
        assert [output["name"] for output in found["outputs"]] == ["logits", "probabilities"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/student/versions/1/ready").json() == {"name": "student", "ready": True}


def test_the_configuration_is_one_that_triton_reads(client: httpx.Client, model_repository: Path) -> None:
    answer = client.get("/v2/models/student/config").json()
    found = json_format.ParseDict(answer, ModelConfig())
    written = text_format.Parse((model_repository / "student" / "config.pbtxt").read_text(), ModelConfig())
    for field in ("name", "backend", "default_model_filename", "dynamic_batching", "input", "output"):
        assert getattr(found, field) == getattr(written, field)
    assert found.max_batch_size == 200  # what this service takes in one request


def test_the_repository_is_listed_but_not_changed(client: httpx.Client) -> None:
    listed = client.post("/v2/repository/index", content=b'{"ready": true}').json()
    assert [one["name"] for one in listed] == ["student", "student-alone", "student-int8", "teacher"]
    assert {(one["version"], one["state"]) for one in listed} == {("1", "READY")}
    for verb in ("load", "unload"):
        answer = client.post(f"/v2/repository/models/student/{verb}")
        assert answer.status_code == 400
        assert "start it again" in answer.json()["error"]


def test_the_documented_requests_are_those_that_are_read(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v2/models/{model}/versions/{version}/infer"]["post"]
    assert set(operation["responses"]) == {
        "200", "400", "401", "404", "405", "408", "413", "415", "500", "503", "504",
    }  # fmt: skip
    assert [one["name"] for one in operation["parameters"]][:3] == ["model", "version", LENGTH]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    ours = InferRequest.model_validate(example).model_dump(exclude_none=True)
    for request in (example, ours):
        assert client.post(INFER, json=request).status_code == 200


def test_all_routes_are_documented_together_and_say_where_the_key_is_wanted(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operations = {
        path: operation for path in paths if path.startswith("/v2") for operation in paths[path].values()
    }
    assert {tag for operation in operations.values() for tag in operation["tags"]} == {
        "Open Inference Protocol"
    }
    for path, operation in operations.items():
        guarded = not path.startswith("/v2/health/")
        assert ("401" in operation["responses"], "security" in operation) == (guarded, guarded), path


def test_without_the_key_only_health_is_told(service: str) -> None:
    headers, body = binary(DIGITS[:1])
    with httpx.Client(base_url=service) as stranger:
        refused = [
            stranger.post(INFER, content=body, headers=headers),
            stranger.post("/v2/models/nobody/infer"),
            stranger.get("/v2"),
            stranger.get("/v2/models/student"),
            stranger.get("/v2/models/student/config"),
            stranger.post("/v2/repository/index"),
            stranger.post("/v2/repository/models/student/load"),
        ]
        for answer in refused:
            assert answer.status_code == 401
            assert InferError.model_validate_json(answer.content, strict=True).error.startswith("the header")
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert stranger.get(path).status_code == 200


def test_requests_are_counted_under_the_protocols_name(client: httpx.Client) -> None:
    client.post("/v2/models/nobody/infer")
    text = client.get("/metrics").text
    assert 'distillery_requests_total{model="",protocol="v2",status="404"}' in text
