"""The Open Inference Protocol over gRPC with Triton's client: responses, metrics, cancellation and shutdown."""

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
from tests.support.requests.grpc_calls import INFER, counts, error_of, image_input, message, settled_counts
from tests.support.requests.tensors import outputs
from tests.support.service import Service, eventually, failed_start, free_port, starting_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model_repository: Path) -> dict[str, dict[str, Any]]:
    """The outputs for every digit by model, computed by onnxruntime alone."""
    entries = load_repository(model_repository)
    return {name: outputs(Session(entries[name].path).run(DIGITS)) for name in ("student", "teacher")}


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
            {"name": "confidence", "datatype": "FP32", "shape": ["-1", "1"]},
            {"name": "accepted", "datatype": "BOOL", "shape": ["-1", "1"]},
        ],
    }


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_all_outputs_equal_those_of_the_session(
    client: triton.InferenceServerClient, expected: dict[str, dict[str, Any]], model: str
) -> None:
    answer = client.infer(model, [image_input(DIGITS)], request_id="seven", compression_algorithm="gzip")
    for name, values in expected[model].items():
        assert np.allclose(answer.as_numpy(name), values, atol=1e-4)
    response = answer.get_response()
    accepted = int(answer.as_numpy("accepted").sum())
    assert {output.parameters["accepted"].int64_param for output in response.outputs} == {accepted}
    assert (response.model_name, response.model_version, response.id) == (model, "1", "seven")


def test_the_response_has_the_requested_outputs_in_order(client: triton.InferenceServerClient) -> None:
    for names in (["probabilities"], ["probabilities", "logits"]):
        requested = [triton.InferRequestedOutput(name) for name in names]
        response = client.infer("student", [image_input(DIGITS[:2])], outputs=requested).get_response()
        assert [output.name for output in response.outputs] == names
        assert [len(raw) for raw in response.raw_output_contents] == [2 * 10 * 4] * len(names)


def test_single_values_and_raw_bytes_get_the_same_response(service: Service) -> None:
    raw = message(input={"shape": [3, 28, 28]}, raw_input_contents=[DIGITS[:3].tobytes()])
    single = {"shape": [3, 28, 28], "contents": {"uint_contents": DIGITS[:3].ravel().tolist()}}
    with grpc.insecure_channel(service.grpc) as channel:
        infer = channel.unary_unary(
            INFER, lambda m: m.SerializeToString(), theirs.ModelInferResponse.FromString
        )
        responses = [infer(raw), infer(message(input=single, raw_input_contents=[]))]
        _, call = infer.with_call(raw)
    assert np.allclose(*(np.frombuffer(a.raw_output_contents[0], np.float32) for a in responses), atol=1e-4)
    timing = dict(call.trailing_metadata())["server-timing"]
    assert [part.split(";")[0].strip() for part in timing.split(",")] == [
        "decode",
        "queue",
        "inference",
        "total",
    ]


@pytest.mark.parametrize("executor", ["service", "workers_service"])
@pytest.mark.slow
def test_concurrent_calls_get_their_own_responses(
    request: pytest.FixtureRequest, executor: str, expected: dict[str, tuple[Any, Any]]
) -> None:
    address = request.getfixturevalue(executor).grpc
    calls = asyncio.Semaphore(64)

    async def difference(client: triton_aio.InferenceServerClient, model: str, index: int) -> float:
        async with calls:
            response = await client.infer(model, [image_input(DIGITS[index : index + 1])])
        return float(np.abs(response.as_numpy("logits") - expected[model]["logits"][index]).max())

    async def differences() -> list[float]:
        async with triton_aio.InferenceServerClient(address) as client:
            return await asyncio.gather(
                *(difference(client, model, index) for index in range(len(DIGITS)) for model in expected)
            )

    assert max(asyncio.run(differences())) < 1e-4


def test_calls_are_counted_by_model_and_status(
    service: Service, client: triton.InferenceServerClient
) -> None:
    before = settled_counts(service.url)
    for _ in range(3):
        client.infer("teacher", [image_input(DIGITS[:2])])
        error_of(service.grpc, message(model_name="nobody"))
        error_of(service.grpc, message(model_name="teacher", raw_input_contents=[b""]))

    def added(model: str, status: int) -> float:
        key = (model, str(status))
        return counts(service.url).get(key, 0) - before.get(key, 0)

    eventually(lambda: added("teacher", 200) == added("teacher", 422) == added("", 404) == 3)


@pytest.mark.slow
def test_a_cancelled_call_is_not_computed_and_shutdown_waits_for_the_others(one_model: Path) -> None:
    port = free_port()
    flags = ("--executor", "workers", "--api-servers", "1", "--max-batch", "1", "--grpc-port", str(port))
    with (
        starting_service(one_model, *flags) as running,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        url = running.wait_until_ready()
        worker = running.children()[0]  # started before the API processes
        infer = channel.unary_unary(
            INFER, lambda m: m.SerializeToString(), theirs.ModelInferResponse.FromString
        )

        def metrics_contain(line: str) -> bool:
            return line in httpx.get(f"{url}/metrics").text

        os.kill(worker, signal.SIGSTOP)
        first = infer.future(message(model_name="student"))
        eventually(lambda: metrics_contain('in_flight{model="student",version="1"} 1.0'))
        others = [infer.future(message(model_name="student")) for _ in range(4)]
        eventually(lambda: metrics_contain('in_flight{model="student",version="1"} 5.0'))
        for call in others:
            call.cancel()
        eventually(lambda: counts(url).get(("student", "499")) == 4)
        os.kill(worker, signal.SIGCONT)
        assert first.result(timeout=10).model_name == "student"
        eventually(lambda: metrics_contain('batch_size_images_sum{model="student",version="1"} 1.0'))

        os.kill(worker, signal.SIGSTOP)
        last = infer.future(message(model_name="student"))
        eventually(lambda: metrics_contain('in_flight{model="student",version="1"} 1.0'))
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        os.kill(worker, signal.SIGCONT)
        assert last.result(timeout=10).model_name == "student"
        assert running.wait() == ("", "")
        assert running.process.returncode == 0


@pytest.mark.slow
def test_the_ready_line_has_the_address_and_the_port_is_released_at_shutdown(one_model: Path) -> None:
    port = 0
    for _ in range(2):
        with starting_service(one_model, "--api-servers", "2", "--grpc-port", str(port)) as running:
            line = running.read_line()
            address = line.split(" · ")[1].removeprefix("gRPC at ")
            port = int(address.rsplit(":")[-1])
            clients = [triton.InferenceServerClient(address) for _ in range(4)]
            assert all(client.is_server_live() for client in clients)
            assert running.end() == ("", "")
            assert running.process.returncode == 0
            for client in clients:
                client.close()


@pytest.mark.slow
def test_a_port_in_use_is_reported_in_one_line(one_model: Path, service: Service) -> None:
    port = int(service.grpc.rsplit(":")[-1])
    assert f"port {port}: Address already in use; choose another --grpc-port" in failed_start(
        one_model, "--grpc-port", str(port)
    )
    port = free_port()
    assert "choose another --port" in failed_start(one_model, "--grpc-port", str(port), port=port)
