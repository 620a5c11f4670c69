"""Errors over gRPC: status and message of invalid calls, API key and limits."""

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support.requests.grpc_calls import INFER, error_of, image_input, message
from tests.support.service import API_KEY, Service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.grpc) as client:
        yield client


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"model_name": "nobody"}, grpc.StatusCode.NOT_FOUND, "there is no model 'nobody'"),
        ({"model_version": "2"}, grpc.StatusCode.NOT_FOUND, "'2'"),
        ({"inputs": []}, INVALID, "the inputs are []; expected one, image"),
        ({"inputs": [{"name": "image"}] * 2}, INVALID, "['image', 'image']"),
        ({"input": {"name": "picture"}}, INVALID, "['picture']"),
        ({"input": {"datatype": "FP32"}}, INVALID, "the datatype of image is 'FP32'; expected UINT8"),
        ({"input": {"shape": [1, 784]}}, INVALID, "the shape of image is [1, 784]"),
        ({"input": {"shape": []}}, INVALID, "the shape of image is []"),
        ({"input": {"shape": [0, 28, 28]}, "raw_input_contents": [b""]}, INVALID, "[0, 28, 28]"),
        ({"input": {"shape": [-1, 28, 28]}}, INVALID, "[-1, 28, 28]"),
        ({"input": {"shape": [201, 28, 28]}}, INVALID, "image has 201 images; the limit is 200"),
        ({"input": {"shape": [2, 28, 28]}}, INVALID, "has 784 bytes; shape [2, 28, 28] takes 1,568"),
        ({"raw_input_contents": [bytes(785)]}, INVALID, "has 785 bytes"),
        ({"raw_input_contents": [bytes(784)] * 2}, INVALID, "one entry in raw_input_contents"),
        ({"raw_input_contents": []}, INVALID, "uint_contents has 0 values; expected 784"),
        ({"input": {"contents": {"uint_contents": [1]}}}, INVALID, "not both"),
        ({"input": {"contents": {"int_contents": [1]}}, "raw_input_contents": []}, INVALID, "are in int_contents"),
        ({"input": {"contents": {"uint_contents": [256] * 784}}, "raw_input_contents": []}, INVALID, "has 256"),
        ({"outputs": [{"name": "digit"}]}, INVALID, "'digit'; the model has logits, prob"),
        ({"outputs": [{"name": "logits"}] * 2}, INVALID, "has 'logits' twice"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": {"int64_param": 1}}}]}, INVALID,
         "'classification'"),
        ({"input": {"parameters": {"shared_memory_region": {"string_param": "x"}}}}, INVALID,
         "'shared_memory_region'"),
        ({"parameters": {"sequence_id": {"int64_param": 1}}}, INVALID, "'sequence_id'"),
        ({"raw_input_contents": [bytes(16 * 1024 * 1024)]}, grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ],
)  # fmt: skip
def test_an_invalid_request_is_rejected_with_status_and_reason(
    service: Service, changes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    found, details = error_of(service.grpc, message(**changes))
    assert found == code
    assert reason in details


def test_invalid_or_missing_messages_are_rejected(service: Service) -> None:
    assert error_of(service.grpc, iter([b"\xff\xff"])) == (INVALID, "the message is not a ModelInferRequest")
    assert error_of(service.grpc, iter([]))[0] == INVALID


def test_a_message_that_decompresses_beyond_the_limit_is_rejected(
    client: triton.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException, match="larger than max") as caught:
        client.infer(
            "student", [image_input(np.zeros((22_000, 28, 28), np.uint8))], compression_algorithm="gzip"
        )
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_unknown_methods_and_models_are_rejected(client: triton.InferenceServerClient) -> None:
    for call, code in (
        (client.get_cuda_shared_memory_status, "UNIMPLEMENTED"),
        (lambda: client.is_model_ready("nobody"), "NOT_FOUND"),
        (lambda: client.get_model_metadata("student", "2"), "NOT_FOUND"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == f"StatusCode.{code}"


def test_without_the_api_key_only_health_is_available(strict_service: Service) -> None:
    with triton.InferenceServerClient(strict_service.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in ({}, {"x-api-key": "wrong"}):
            for call in (
                lambda headers: client.infer("student", [image_input(DIGITS[:1])], headers=headers),
                lambda headers: client.get_model_metadata("student", headers=headers),
                lambda headers: client.is_model_ready("student", headers=headers),
                lambda headers: client.get_server_metadata(headers=headers),
            ):
                with pytest.raises(InferenceServerException, match="X-API-Key") as caught:
                    call(headers)
                assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        assert client.get_model_metadata("student", headers={"x-api-key": API_KEY}).name == "student"


def unsent(seconds: float) -> Iterator[bytes]:
    """Send no message for a while."""
    time.sleep(seconds)
    yield from ()


def test_deadline_and_requests_in_flight_are_limited_as_over_http(strict_service: Service) -> None:
    started = time.monotonic()
    assert error_of(strict_service.grpc, unsent(3), API_KEY)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.5 < time.monotonic() - started < 2
    with grpc.insecure_channel(strict_service.grpc) as channel:
        infer = channel.stream_unary(INFER)
        waiting = [infer.future(unsent(3), metadata=(("x-api-key", API_KEY),)) for _ in range(2)]
        time.sleep(0.2)  # a client cannot observe that its call has begun
        code, details = error_of(strict_service.grpc, message(), API_KEY)
        assert (code, details[:10]) == (grpc.StatusCode.UNAVAILABLE, "2 requests")
        assert {call.code() for call in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}
