"""Wrong questions over gRPC: the status, the words, the key and the limits."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support.grpc_service import (
    FLAGS,
    INFER,
    KEY,
    STRICT_FLAGS,
    Addresses,
    image_input,
    message,
    refusal,
    running_grpc,
)
from tests.support.samples import sample_test

DIGITS = sample_test().images.numpy()
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def service(two_models: Path) -> Iterator[Addresses]:
    with running_grpc(two_models, *FLAGS) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def strict_service(two_models: Path) -> Iterator[Addresses]:
    with running_grpc(two_models, *STRICT_FLAGS) as addresses:
        yield addresses


@pytest.fixture
def client(service: Addresses) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.grpc) as client:
        yield client


@pytest.mark.parametrize(
    ("changes", "code", "words"),
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
        ({"outputs": [{"name": "digit"}]}, INVALID, "'digit'; the model has logits, probabilities"),
        ({"outputs": [{"name": "logits"}] * 2}, INVALID, "has 'logits' twice"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": {"int64_param": 1}}}]}, INVALID,
         "'classification'"),
        ({"input": {"parameters": {"shared_memory_region": {"string_param": "x"}}}}, INVALID,
         "'shared_memory_region'"),
        ({"parameters": {"sequence_id": {"int64_param": 1}}}, INVALID, "'sequence_id'"),
        ({"raw_input_contents": [bytes(200_000)]}, grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(
    service: Addresses, changes: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    found, said = refusal(service.grpc, message(**changes))
    assert found == code
    assert words in said


def test_what_is_no_message_is_refused(service: Addresses) -> None:
    assert refusal(service.grpc, iter([b"\xff\xff"])) == (INVALID, "the message is not a ModelInferRequest")
    assert refusal(service.grpc, iter([]))[0] == INVALID


def test_a_message_that_unpacks_beyond_the_limit_is_refused(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="larger than max") as caught:
        client.infer(
            "student", [image_input(np.zeros((300, 28, 28), np.uint8))], compression_algorithm="gzip"
        )
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_methods_and_models_that_are_not_there(client: triton.InferenceServerClient) -> None:
    for ask, code in (
        (client.get_cuda_shared_memory_status, "UNIMPLEMENTED"),
        (lambda: client.is_model_ready("nobody"), "NOT_FOUND"),
        (lambda: client.get_model_metadata("student", "2"), "NOT_FOUND"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.status() == f"StatusCode.{code}"


def test_without_the_key_nothing_is_told_but_health(strict_service: Addresses) -> None:
    with triton.InferenceServerClient(strict_service.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in ({}, {"x-api-key": "wrong"}):
            for ask in (
                lambda headers: client.infer("student", [image_input(DIGITS[:1])], headers=headers),
                lambda headers: client.get_model_metadata("student", headers=headers),
                lambda headers: client.is_model_ready("student", headers=headers),
                lambda headers: client.get_server_metadata(headers=headers),
            ):
                with pytest.raises(InferenceServerException, match="X-API-Key") as caught:
                    ask(headers)
                assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        assert client.get_model_metadata("student", headers={"x-api-key": KEY}).name == "student"


def unsent(seconds: float) -> Iterator[bytes]:
    """A message that never comes."""
    time.sleep(seconds)
    yield from ()


def test_limits_are_those_of_http(strict_service: Addresses) -> None:
    started = time.monotonic()
    assert refusal(strict_service.grpc, unsent(3), KEY)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.5 < time.monotonic() - started < 2
    with grpc.insecure_channel(strict_service.grpc) as channel:
        ask = channel.stream_unary(INFER)
        waiting = [ask.future(unsent(3), metadata=(("x-api-key", KEY),)) for _ in range(2)]
        time.sleep(0.2)  # nothing tells a client that its call was begun
        code, words = refusal(strict_service.grpc, message(), KEY)
        assert (code, words[:10]) == (grpc.StatusCode.UNAVAILABLE, "2 requests")
        assert {call.code() for call in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}
