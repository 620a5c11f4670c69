"""The Open Inference Protocol over gRPC, asked by Triton's own client."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from prometheus_client.parser import text_string_to_metric_families
from samples import sample_test
from test_serving_processes import failing
from test_serving_processes import service as started
from tritonclient.grpc import service_pb2 as theirs
from tritonclient.utils import InferenceServerException

from benchmarks.servers import ROOT, free_port, running_service
from serving.repository import load_repository
from serving.rpc import open_inference_pb2 as ours
from serving.session import Session

DIGITS = sample_test().images.numpy()
KEY = "correct horse"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Addresses(NamedTuple):
    http: str
    grpc: str


@pytest.fixture(scope="module")
def service(two_models: Path) -> Iterator[Addresses]:
    port = free_port()
    flags = ("--api-servers", "2", "--max-images", "200", "--max-body-bytes", "200000")
    with running_service(two_models, *flags, "--grpc-port", str(port)) as url:
        yield Addresses(url, f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def strict_service(two_models: Path) -> Iterator[Addresses]:
    """A service with a key, so impatient that its limits can be met in a test, and with workers."""
    port = free_port()
    flags = ("--api-servers", "1", "--api-key", KEY, "--request-timeout", "0.6", "--max-in-flight", "2")
    with running_service(two_models, *flags, "--executor", "workers", "--grpc-port", str(port)) as url:
        yield Addresses(url, f"127.0.0.1:{port}")


@pytest.fixture
def client(service: Addresses) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def expected(two_models: Path) -> dict[str, tuple[Any, Any]]:
    """Logits and probabilities of every digit, by model, as onnxruntime alone gives them."""
    return {name: Session(entry.path).run(DIGITS) for name, entry in load_repository(two_models).items()}


def image_input(images: Any, name: str = "image") -> Any:
    tensor = triton.InferInput(name, images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def message(**changes: Any) -> Any:
    """A good request for one image in Triton's own message, but for `changes`."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]} | changes.pop("input", {})
    fields = {"model_name": "student", "inputs": [tensor], "raw_input_contents": [bytes(784)]}
    return theirs.ModelInferRequest(**(fields | changes))


def refusal(address: str, content: Any, key: str | None = None) -> tuple[grpc.StatusCode, str]:
    """Code and words with which a call is refused; `content` is a message or an iterator of bytes."""
    with grpc.insecure_channel(address) as channel:
        metadata = (("x-api-key", key),) if key else ()
        pieces = content if isinstance(content, Iterator) else iter([content.SerializeToString()])
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(INFER)(pieces, metadata=metadata, timeout=20)
        return caught.value.code(), caught.value.details()


def counts(url: str) -> dict[tuple[str, str], float]:
    """Answered gRPC requests by model and status."""
    return {
        (sample.labels["model"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
        for sample in family.samples
        if sample.name == "distillery_requests_total" and sample.labels["protocol"] == "grpc"
    }


def settled_counts(url: str) -> dict[tuple[str, str], float]:
    """The same when all processes have published what earlier tests asked them."""
    found = None
    while found != (found := counts(url)):
        time.sleep(1)
    return found


def eventually(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


# Right answers


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


# Wrong questions

INVALID = grpc.StatusCode.INVALID_ARGUMENT


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
        ({"input": {"shape": [201, 28, 28]}}, INVALID, "image holds 201 images; one request may carry 200"),
        ({"input": {"shape": [2, 28, 28]}}, INVALID, "has 784 bytes; shape [2, 28, 28] takes 1,568"),
        ({"raw_input_contents": [bytes(785)]}, INVALID, "has 785 bytes"),
        ({"raw_input_contents": [bytes(784)] * 2}, INVALID, "one entry in raw_input_contents"),
        ({"raw_input_contents": []}, INVALID, "uint_contents has 0 values; expected 784"),
        ({"input": {"contents": {"uint_contents": [1]}}}, INVALID, "never both"),
        ({"input": {"contents": {"int_contents": [1]}}, "raw_input_contents": []}, INVALID, "are in int_contents"),
        ({"input": {"contents": {"uint_contents": [256] * 784}}, "raw_input_contents": []}, INVALID, "holds 256"),
        ({"outputs": [{"name": "digit"}]}, INVALID, "'digit'; the model has logits, probabilities"),
        ({"outputs": [{"name": "logits"}] * 2}, INVALID, "asks for 'logits' twice"),
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
    assert refusal(service.grpc, iter([b"\xff\xff"])) == (INVALID, "the message is no ModelInferRequest")
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
        assert running.process.communicate(timeout=20) == ("", "")
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


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_without_grpcio_the_flag_says_how_to_install_it(two_models: Path) -> None:
    code = "import sys; sys.modules['grpc'] = None; from serving.__main__ import run; run()"
    done = run_python(code, "--models-dir", str(two_models), "--grpc-port", "0")
    assert (done.returncode, done.stderr) == (
        1,
        "distillery-serve: --grpc-port needs grpcio: pip install '.[serving,grpc]'\n",
    )


@pytest.mark.slow
def test_grpc_is_not_imported_before_the_fork() -> None:
    assert run_python("import sys, serving.service; print('grpc' in sys.modules)").stdout == "False\n"


# Its messages


def test_the_messages_are_those_of_the_protocol() -> None:
    """Triton's client carries the whole protocol; ours are a part of it, field for field."""

    def fields(message: Any) -> dict[str, tuple[object, ...]]:
        return {
            field.name: (
                field.number,
                field.type,
                field.is_repeated,
                field.message_type and field.message_type.name,
            )
            for field in message.fields
        }

    def compare(mine: Any, other: Any) -> None:
        assert fields(mine) == fields(other)
        for nested in mine.nested_types:
            compare(nested, other.nested_types_by_name[nested.name])

    messages = dict(ours.DESCRIPTOR.message_types_by_name)
    target = messages.pop("ModelInferTarget")
    assert fields(target).items() <= fields(messages["ModelInferRequest"]).items()
    for name, message in messages.items():
        compare(message, theirs.DESCRIPTOR.message_types_by_name[name])


def test_the_generated_messages_are_up_to_date(tmp_path: Path) -> None:
    arguments = ("--proto_path=.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments, "serving/rpc/open_inference.proto"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("open_inference_pb2.py", "open_inference_pb2.pyi"):
        committed = (ROOT / "serving/rpc" / name).read_text()
        assert (tmp_path / "serving/rpc" / name).read_text() == committed, "run `make proto`"
