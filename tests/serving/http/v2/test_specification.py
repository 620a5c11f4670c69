"""The Open Inference Protocol against its specification: its examples, all other routes, the API key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.codecs.open_inference.schemas import InferError, InferRequest, InferResponse
from tests.support.requests.tensors import INFER, LENGTH, binary, split, tensor
from tests.support.service import Service, eventually
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
EXAMPLES = json.loads((Path(__file__).parents[3] / "data" / "v2_examples.json").read_text(encoding="utf-8"))


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=10) as client:
        yield client


@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
def test_the_examples_of_the_specification_are_accepted(client: httpx.Client, form: str) -> None:
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
    for output in document["outputs"]:  # ours alone; the specification allows any parameter
        assert 0 <= output["parameters"].pop("accepted") <= len(images)
        if not output["parameters"]:
            del output["parameters"]
    assert structure(document) == structure(response)
    # The unchanged example is for another model, and is rejected with that reason.
    words = json.dumps(request).encode()
    answer = client.post(INFER, content=words + bytes(19), headers={LENGTH: str(len(words))})
    assert answer.json() == {"error": "inputs[0].name is the string 'input0'; expected 'image'"}


def structure(value: Any) -> Any:
    """Field names and types, without values and lengths."""
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
        names = [output["name"] for output in found["outputs"]]
        assert names == ["logits", "probabilities", "confidence", "accepted"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/student/versions/1/ready").json() == {"name": "student", "ready": True}


def test_the_configuration_is_valid_for_triton(client: httpx.Client, model_repository: Path) -> None:
    answer = client.get("/v2/models/student/config").json()
    found = json_format.ParseDict(answer, ModelConfig())
    written = text_format.Parse((model_repository / "student" / "config.pbtxt").read_text(), ModelConfig())
    for field in ("name", "backend", "default_model_filename", "dynamic_batching", "input"):
        assert getattr(found, field) == getattr(written, field)
    # The service computes confidence and accepted from the outlier logit, which Triton returns.
    assert found.output[:2] == written.output[:2]
    assert [output.name for output in found.output[2:]] == ["confidence", "accepted"]
    assert [output.name for output in written.output[2:]] == ["outlier"]
    assert found.max_batch_size == 200  # what this service takes in one request


def test_the_repository_is_listed_and_changed_by_administrators_only(client: httpx.Client) -> None:
    listed = client.post("/v2/repository/index", content=b'{"ready": true}').json()
    assert [one["name"] for one in listed] == ["student", "student-alone", "student-int8", "teacher"]
    assert {(one["version"], one["state"]) for one in listed} == {("1", "READY")}
    for verb in ("load", "unload"):
        answer = client.post(f"/v2/repository/models/student/{verb}")
        assert answer.status_code == 403
        assert "an API key of the scope admin" in answer.json()["error"]


def test_the_documented_requests_are_accepted(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v2/models/{model}/versions/{version}/infer"]["post"]
    assert set(operation["responses"]) == {
        "200", "400", "404", "405", "408", "413", "415", "500", "503", "504",
    }  # fmt: skip
    assert [one["name"] for one in operation["parameters"]][:3] == ["model", "version", LENGTH]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    ours = InferRequest.model_validate(example).model_dump(exclude_none=True)
    for request in (example, ours):
        assert client.post(INFER, json=request).status_code == 200


def test_all_routes_are_documented_with_their_tag_and_security(
    strict_service: Service,
) -> None:
    paths = httpx.get(f"{strict_service.url}/openapi.json").json()["paths"]
    operations = {
        path: operation for path in paths if path.startswith("/v2") for operation in paths[path].values()
    }
    assert {tag for operation in operations.values() for tag in operation["tags"]} == {
        "Open Inference Protocol"
    }
    for path, operation in operations.items():
        guarded = not path.startswith("/v2/health/")
        assert ("401" in operation["responses"], "security" in operation) == (guarded, guarded), path


def test_without_the_key_only_health_is_available(strict_service: Service) -> None:
    headers, body = binary(DIGITS[:1])
    with httpx.Client(base_url=strict_service.url) as client:
        rejected = [
            client.post(INFER, content=body, headers=headers),
            client.post("/v2/models/nobody/infer"),
            client.get("/v2"),
            client.get("/v2/models/student"),
            client.get("/v2/models/student/config"),
            client.post("/v2/repository/index"),
            client.post("/v2/repository/models/student/load"),
        ]
        for answer in rejected:
            assert answer.status_code == 401
            assert InferError.model_validate_json(answer.content, strict=True).error.startswith("the header")
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200


def test_requests_are_counted_with_their_protocol(client: httpx.Client) -> None:
    series = 'distillery_requests_total{model="",protocol="v2",status="404",version=""} '

    def count() -> float:
        (line,) = (line for line in client.get("/metrics").text.splitlines() if line.startswith(series))
        return float(line.removeprefix(series))

    before = count()
    client.post("/v2/models/nobody/infer")
    eventually(lambda: count() > before)
