"""Changes of the models over gRPC and REST: parameters of Triton's model repository extension."""

from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2 as theirs

from tests.support.service import API_KEY, Service, running_service

KEY = {"x-api-key": API_KEY}
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def change(service: Service, verb: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    """Return code and details of a change that is rejected."""
    request = getattr(theirs, f"RepositoryModel{verb}Request")(model_name="teacher", **fields)
    path = f"/inference.GRPCInferenceService/RepositoryModel{verb}"
    with grpc.insecure_channel(service.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path, type(request).SerializeToString)(
            request, metadata=tuple(KEY.items()), timeout=20
        )
    return caught.value.code(), caught.value.details()


def is_served(service: Service) -> bool:
    url = f"{service.url}/v2/models/teacher/ready"
    return httpx.get(url, headers=KEY).status_code == 200


@pytest.mark.parametrize(
    ("verb", "name", "value", "found"),
    [
        ("Load", "config", {"string_param": '{"max_batch_size": 8}'}, "the string '{\"max_batch_size\": 8}'"),
        ("Load", "file:1/model.onnx", {"bytes_param": bytes(2000)}, "2,000 bytes"),
        ("Load", "unload_dependents", {"bool_param": False}, "false"),
        ("Load", "priority", {}, "null"),
        ("Unload", "unload_dependents", {"bool_param": True}, "true"),
        ("Unload", "unload_dependents", {"int64_param": 0}, "the number 0"),
        ("Unload", "force", {"bool_param": False}, "false"),
        ("Unload", "x" * 5000, {"string_param": "y" * 5000}, f"the string '{'y' * 40}'"),
    ],
)
def test_a_parameter_that_would_have_no_effect_is_rejected(
    strict_service: Service, verb: str, name: str, value: dict[str, Any], found: str
) -> None:
    code, details = change(strict_service, verb, parameters={name: theirs.ModelRepositoryParameter(**value)})
    assert code == INVALID
    assert details.startswith(f"the parameter {name[:80]!r} is not supported (found {found}); send ")
    assert is_served(strict_service)


@pytest.mark.parametrize(
    ("verb", "parameters"),
    [
        ("load", {"unload_dependents": False}),
        ("unload", {"force": False}),
        ("unload", {"unload_dependents": 0}),
    ],
)
def test_rest_rejects_the_same_parameters(
    strict_service: Service, verb: str, parameters: dict[str, Any]
) -> None:
    url = f"{strict_service.url}/v2/repository/models/teacher/{verb}"
    answer = httpx.post(url, json={"parameters": parameters}, headers=KEY)
    assert answer.status_code == 400
    [name] = parameters
    assert f"the parameter {name!r} is not supported (found " in answer.json()["error"]
    assert is_served(strict_service)


def test_a_repository_name_is_rejected(strict_service: Service) -> None:
    for verb in ("Load", "Unload"):
        code, details = change(strict_service, verb, repository_name="other")
        assert code == INVALID
        assert details == "repository_name is 'other'; leave it empty: there is one repository"


def test_tritons_clients_send_the_parameter_that_is_accepted(two_models: Path) -> None:
    flags = ("--api-servers", "1", "--api-key", API_KEY, "--grpc-port", "0")
    with (
        running_service(two_models, *flags) as service,
        triton.InferenceServerClient(service.grpc) as over_grpc,
        triton_http.InferenceServerClient(service.url.removeprefix("http://")) as over_http,
    ):
        for client in (over_grpc, over_http):
            client.unload_model("teacher", headers=KEY)  # unload_dependents is false
            assert not is_served(service)
            client.load_model("teacher", headers=KEY)
            assert is_served(service)
