"""gRPC's standard services, health and reflection, and what Triton's clients read besides predictions."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

from tests.support.requests.grpc_calls import image_input
from tests.support.service import API_KEY, Service, eventually, running_service
from tests.support.training.samples import sample_test

SERVICE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
PING_S = 1.1
"""The service accepts a ping per second; clients are usually configured to send one every 10 to 30 s."""


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.grpc) as client:
        yield client


def test_the_server_its_service_and_every_model_are_healthy(service: Service) -> None:
    with grpc.insecure_channel(service.grpc) as channel:
        stub = HealthStub(channel)
        for name in ("", SERVICE, "teacher", "student", "student-int8", "student-alone"):
            assert stub.Check(HealthCheckRequest(service=name)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(HealthCheckRequest(service="nobody"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert "there is no service 'nobody'; known: inference." in caught.value.details()
        watch = stub.Watch(HealthCheckRequest(service="nobody"))
        assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


def test_health_needs_no_key_and_models_do(strict_service: Service) -> None:
    with grpc.insecure_channel(strict_service.grpc) as channel:
        assert HealthStub(channel).Check(HealthCheckRequest()).status == SERVING
    with triton.InferenceServerClient(strict_service.grpc) as client:
        for call in (client.get_model_config, client.get_inference_statistics):
            with pytest.raises(InferenceServerException, match="X-API-Key"):
                call("student")
            call("student", headers={"x-api-key": API_KEY})


def test_pings_are_accepted_and_watches_end_at_shutdown(one_model: Path) -> None:
    options = (
        ("grpc.keepalive_time_ms", round(PING_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    states: list[grpc.ChannelConnectivity] = []
    flags = ("--api-servers", "1", "--grpc-port", "0", "--request-timeout", "30", "--shutdown-delay", "1")
    with running_service(one_model, *flags) as service:
        with grpc.insecure_channel(service.grpc, options) as channel:
            channel.subscribe(states.append, try_to_connect=True)
            stub = HealthStub(channel)
            watches = [stub.Watch(HealthCheckRequest(service=name)) for name in ("", "student")]
            assert [next(watch).status for watch in watches] == [SERVING, SERVING]
            eventually(lambda: states[-1:] == [grpc.ChannelConnectivity.READY])
            connected = len(states)
            time.sleep(4 * PING_S)  # gRPC's default would close the connection at the third ping
            assert states[connected - 1 :] == [grpc.ChannelConnectivity.READY]
            service.process.send_signal(signal.SIGTERM)
            ended = time.monotonic()
            assert [next(watch).status for watch in watches] == [NOT_SERVING, NOT_SERVING]
            assert stub.Check(HealthCheckRequest()).status == NOT_SERVING  # it still serves, for a second
            assert [list(watch) for watch in watches] == [[], []]
        service.process.wait(10)
        assert time.monotonic() - ended < 10  # the grace period is 30 s


def test_configuration_statistics_and_index_equal_those_of_rest(
    service: Service, client: triton.InferenceServerClient
) -> None:
    client.infer("student", [image_input(sample_test().images.numpy()[:3])])
    config = client.get_model_config("student", as_json=True)["config"]
    assert (config["name"], config["max_batch_size"], config["backend"]) == ("student", 200, "onnxruntime")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["28", "28"]}]
    rest = httpx.get(f"{service.url}/v2/models/student/config").json()
    assert set(config) == set(rest)
    assert [output["name"] for output in config["output"]] == [output["name"] for output in rest["output"]]
    assert {model["name"] for model in client.get_model_repository_index(as_json=True)["models"]} == {
        model["name"] for model in httpx.post(f"{service.url}/v2/repository/index").json()
    }

    def statistics() -> tuple[object, object]:
        (ours,) = client.get_inference_statistics("student", "1", as_json=True)["model_stats"]
        (theirs,) = httpx.get(f"{service.url}/v2/models/student/stats").json()["model_stats"]
        return ours.get("inference_count"), str(theirs["inference_count"])  # JSON leaves out a count of 0

    eventually(lambda: len(set(statistics())) == 1)
    assert len(client.get_inference_statistics().model_stats) == 4
    with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
        client.get_inference_statistics("nobody")
    assert set(client.get_server_metadata().extensions) == {
        "model_configuration",
        "model_repository",
        "statistics",
    }


def test_a_client_that_knows_no_message_can_call_the_service_by_reflection(service: Service) -> None:
    with grpc.insecure_channel(service.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        pool = DescriptorPool(database)
        for method in pool.FindServiceByName(SERVICE).methods:
            assert method.input_type.full_name == f"inference.{method.name}Request"
        method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelMetadata")
        call = channel.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        assert call(GetMessageClass(method.input_type)(name="student")).versions == ["1"]
