"""Triton's clients, synchronous and asynchronous, work with both executors."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.requests.tensors import outputs
from tests.support.service import Service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
OUTPUTS = ("logits", "probabilities", "confidence", "accepted")


@pytest.fixture(scope="module")
def expected(model_repository: Path) -> dict[str, Any]:
    session = Session(load_repository(model_repository)["student"].path)
    return outputs(session.run(DIGITS))


@pytest.fixture(params=["service", "workers_service"])
def address(request: pytest.FixtureRequest) -> str:
    service: Service = request.getfixturevalue(request.param)
    return service.url.removeprefix("http://")


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address, concurrency=8) as client:
        yield client


def image(digits: Any, *, binary: bool = True) -> Any:
    tensor = triton.InferInput("image", list(digits.shape), "UINT8")
    tensor.set_data_from_numpy(digits, binary_data=binary)
    return tensor


def check(result: Any, expected: dict[str, Any], part: slice = slice(None)) -> None:
    for name in OUTPUTS:
        found = result.as_numpy(name)
        assert found.shape == expected[name][part].shape
        assert np.allclose(
            found, expected[name][part], atol=1e-4
        )  # batches of another size round differently


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_the_scores_are_those_of_the_session(
    client: Any, expected: dict[str, Any], binary_in: bool, binary_out: bool | None
) -> None:
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in reversed(OUTPUTS)]
    result = client.infer("student", [image(DIGITS, binary=binary_in)], outputs=outputs, request_id="a 7")
    for name in OUTPUTS:
        assert np.array_equal(result.as_numpy(name), expected[name])
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("a 7", "student", "1")
    if outputs:
        assert [output["name"] for output in response["outputs"]] == list(reversed(OUTPUTS))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_bodies_are_decoded(client: Any, expected: dict[str, Any], algorithm: str) -> None:
    for binary in (True, False):
        result = client.infer(
            "student",
            [image(DIGITS[:9], binary=binary)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        check(result, expected, slice(9))


def test_every_concurrent_request_gets_its_own_response(client: Any, expected: dict[str, Any]) -> None:
    waiting = [client.async_infer("student", [image(DIGITS[start : start + 2])]) for start in range(0, 80, 2)]
    for start, one in zip(range(0, 80, 2), waiting, strict=True):
        check(one.get_result(timeout=20), expected, slice(start, start + 2))


def test_classification_returns_the_most_probable_digit(client: Any, expected: dict[str, Any]) -> None:
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=1)]
        named = client.infer("student", [image(DIGITS[:20])], outputs=outputs).as_numpy("probabilities")
        texts = [text.decode() if isinstance(text, bytes) else text for text in named.ravel()]
        digits = [int(text.split(":")[1]) for text in texts]
        assert digits == expected["probabilities"][:20].argmax(axis=1).tolist()


def test_server_and_model_metadata_are_available(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("student")
    assert client.is_model_ready("student", "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("student", "2")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("student", "1")["inputs"][0]["shape"] == [-1, 28, 28]
    assert client.get_model_config("student")["max_batch_size"] == 200
    student = {"name": "student", "version": "1", "state": "READY", "reason": ""}
    assert student in client.get_model_repository_index()


@pytest.mark.parametrize(
    ("model", "version", "shape", "status", "message"),
    [
        ("nobody", "", (1, 28, 28), 404, "there is no model 'nobody'; this service has student"),
        ("student", "2", (1, 28, 28), 404, "no version '2'"),
        ("student", "", (1, 28, 27), 400, "expected [N,28,28]"),
        ("student", "", (28, 28), 400, "expected [N,28,28]"),
        ("student", "", (201, 28, 28), 400, "the limit is 200 images"),
    ],
)
def test_errors_become_the_exceptions_of_the_client(
    client: Any, model: str, version: str, shape: tuple[int, ...], status: int, message: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [image(np.zeros(shape, np.uint8))], model_version=version)
    assert caught.value.status() == str(status)
    assert message in caught.value.message()


def test_unsupported_features_are_rejected(client: Any) -> None:
    for wish in (
        {"sequence_id": 7},
        {"outputs": [triton.InferRequestedOutput("digit")]},
        {"inputs": [triton.InferInput("image", [1, 28, 28], "FP32")]},
    ):
        if tensors := wish.pop("inputs", None):
            tensors[0].set_data_from_numpy(np.zeros((1, 28, 28), np.float32))
        with pytest.raises(InferenceServerException) as caught:
            client.infer("student", tensors or [image(DIGITS[:1])], **wish)
        assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="scope admin"):
        client.load_model("student")


def test_the_asynchronous_client_gets_the_same_scores(address: str, expected: dict[str, Any]) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("student")
            assert (await client.get_model_metadata("student"))["name"] == "student"
            results = await asyncio.gather(
                *(
                    client.infer("student", [image(DIGITS[index : index + 1], binary=index % 2 == 0)])
                    for index in range(100)
                ),
                client.infer("student", [image(DIGITS)], request_compression_algorithm="gzip"),
            )
            for index, result in enumerate(results[:-1]):
                check(result, expected, slice(index, index + 1))
            check(results[-1], expected)
            with pytest.raises(InferenceServerException, match="no version '2'"):
                await client.infer("student", [image(DIGITS[:1])], model_version="2")

    asyncio.run(ask())
