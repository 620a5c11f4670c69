"""The Open Inference Protocol over gRPC, asked by Triton's own client: right answers, and how calls and ports end."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as theirs

from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.grpc_service import (
    FLAGS,
    INFER,
    KEY,
    STRICT_FLAGS,
    Addresses,
    counts,
    image_input,
    message,
    refusal,
    running_grpc,
    settled_counts,
)
from tests.support.samples import sample_test
from tests.support.service import eventually, free_port
from tests.support.service import failed_start as failing
from tests.support.service import starting_service as started

DIGITS = sample_test().images.numpy()


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


@pytest.fixture(scope="module")
def expected(two_models: Path) -> dict[str, tuple[Any, Any]]:
    """Logits and probabilities of every digit, by model, as onnxruntime alone gives them."""
    return {name: Session(entry.path).run(DIGITS) for name, entry in load_repository(two_models).items()}


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("teacher")
    assert client.is_model_ready("teacher", "1")
    assert client.get_server_metadata().name == "distillery"
    model = client.get_model_metadata("teacher", as_json=True)
    assert model == {
        "name": "teacher",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": ["-1", "28", "28"]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]},
            {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "10"]},
        ],
    }


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_both_outputs_are_those_of_the_session(
    client: triton.InferenceServerClient, expected: dict[str, tuple[Any, Any]], model: str
) -> None:
    answer = client.infer(model, [image_input(DIGITS)], request_id="seven", compression_algorithm="gzip")
    for name, scores in zip(("logits", "probabilities"), expected[model], strict=True):
        assert np.allclose(answer.as_numpy(name), scores, atol=1e-4)
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == (model, "1", "seven")


def test_only_the_outputs_asked_for_are_given_in_their_order(client: triton.InferenceServerClient) -> None:
    for names in (["probabilities"], ["probabilities", "logits"]):
        wanted = [triton.InferRequestedOutput(name) for name in names]
        response = client.infer("student", [image_input(DIGITS[:2])], outputs=wanted).get_response()
        assert [output.name for output in response.outputs] == names
        assert [len(raw) for raw in response.raw_output_contents] == [2 * 10 * 4] * len(names)


def test_values_one_by_one_get_the_answer_of_raw_bytes(service: Addresses) -> None:
    raw = message(input={"shape": [3, 28, 28]}, raw_input_contents=[DIGITS[:3].tobytes()])
    single = {"shape": [3, 28, 28], "contents": {"uint_contents": DIGITS[:3].ravel().tolist()}}
    with grpc.insecure_channel(service.grpc) as channel:
        ask = channel.unary_unary(
            INFER, lambda m: m.SerializeToString(), theirs.ModelInferResponse.FromString
        )
        answers = [ask(raw), ask(message(input=single, raw_input_contents=[]))]
        _, call = ask.with_call(raw)
    assert np.allclose(*(np.frombuffer(a.raw_output_contents[0], np.float32) for a in answers), atol=1e-4)
    timing = dict(call.trailing_metadata())["server-timing"]
    assert [part.split(";")[0].strip() for part in timing.split(",")] == [
        "decode",
        "queue",
        "inference",
        "total",
    ]


@pytest.mark.parametrize("executor", ["service", "strict_service"])
@pytest.mark.slow
def test_under_concurrency_every_answer_belongs_to_its_request(
    request: pytest.FixtureRequest, executor: str, expected: dict[str, tuple[Any, Any]]
) -> None:
    address = request.getfixturevalue(executor).grpc
    few = executor == "strict_service"  # which holds two calls at once
    room = asyncio.Semaphore(2 if few else 64)

    async def ask(client: triton_aio.InferenceServerClient, model: str, index: int) -> float:
        async with room:
            answer = await client.infer(
                model, [image_input(DIGITS[index : index + 1])], headers={"x-api-key": KEY}
            )
        return float(np.abs(answer.as_numpy("logits") - expected[model][0][index]).max())

    async def ask_all() -> list[float]:
        async with triton_aio.InferenceServerClient(address) as client:
            return await asyncio.gather(
                *(
                    ask(client, model, index)
                    for index in range(0, len(DIGITS), 4 if few else 1)
                    for model in expected
                )
            )

    assert max(asyncio.run(ask_all())) < 1e-4


def test_calls_are_counted_with_their_protocol(
    service: Addresses, client: triton.InferenceServerClient
) -> None:
    before = settled_counts(service.http)
    for _ in range(3):
        client.infer("teacher", [image_input(DIGITS[:2])])
        refusal(service.grpc, message(model_name="nobody"))
        refusal(service.grpc, message(model_name="teacher", raw_input_contents=[b""]))

    def added(model: str, status: int) -> float:
        key = (model, str(status))
        return counts(service.http).get(key, 0) - before.get(key, 0)

    eventually(lambda: added("teacher", 200) == added("teacher", 422) == added("", 404) == 3)


# Its processes


@pytest.mark.slow
def test_a_cancelled_call_is_never_computed_and_the_end_waits_for_the_others(one_model: Path) -> None:
    port = free_port()
    flags = ("--executor", "workers", "--api-servers", "1", "--max-batch", "1", "--grpc-port", str(port))
    with started(one_model, *flags) as running, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        url = running.wait_until_ready()
        worker = running.children()[0]  # started before the API processes
        ask = channel.unary_unary(
            INFER, lambda m: m.SerializeToString(), theirs.ModelInferResponse.FromString
        )

        def metrics_say(line: str) -> bool:
            return line in httpx.get(f"{url}/metrics").text

        os.kill(worker, signal.SIGSTOP)
        first = ask.future(message(model_name="student"))
        eventually(lambda: metrics_say('in_flight{model="student"} 1.0'))
        others = [ask.future(message(model_name="student")) for _ in range(4)]
        eventually(lambda: metrics_say('in_flight{model="student"} 5.0'))
        for call in others:
            call.cancel()
        eventually(lambda: counts(url).get(("student", "499")) == 4)
        os.kill(worker, signal.SIGCONT)
        assert first.result(timeout=10).model_name == "student"
        eventually(lambda: metrics_say('batch_size_images_sum{model="student"} 1.0'))

        os.kill(worker, signal.SIGSTOP)
        last = ask.future(message(model_name="student"))
        eventually(lambda: metrics_say('in_flight{model="student"} 1.0'))
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        os.kill(worker, signal.SIGCONT)
        assert last.result(timeout=10).model_name == "student"
        assert running.wait() == ("", "")
        assert running.process.returncode == 0


@pytest.mark.slow
def test_the_ready_line_says_where_and_the_port_is_free_again_at_once(one_model: Path) -> None:
    port = 0
    for _ in range(2):
        with started(one_model, "--api-servers", "2", "--grpc-port", str(port)) as running:
            line = running.process.stdout.readline()  # type: ignore[union-attr]
            address = line.split(" · ")[1].removeprefix("gRPC at ")
            port = int(address.rsplit(":")[-1])
            clients = [triton.InferenceServerClient(address) for _ in range(4)]
            assert all(client.is_server_live() for client in clients)
            assert running.end() == ("", "")
            assert running.process.returncode == 0
            for client in clients:
                client.close()


@pytest.mark.slow
def test_what_stands_in_the_way_is_one_clear_line(one_model: Path, service: Addresses) -> None:
    port = int(service.grpc.rsplit(":")[-1])
    assert f"port {port}: Address already in use; choose another --grpc-port" in failing(
        one_model, "--grpc-port", str(port)
    )
    port = free_port()
    assert "choose another --port" in failing(one_model, "--grpc-port", str(port), port=port)
