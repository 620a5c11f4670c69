"""Request ids, access log and spans of a running service, over HTTP and gRPC, with a collector that receives them."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import grpc
import httpx
import pytest

from tests.support.otlp_receiver import Receiver, attributes, receiving
from tests.support.requests.connections import connect, post, read_answer
from tests.support.requests.grpc_calls import INFER, message
from tests.support.service import API_KEY, Service, eventually, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.tolist()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEX = re.compile("[0-9a-f]{32}")


@dataclass
class Observed:
    """A service, what it writes to standard output, and what its collector receives."""

    service: Service
    collector: Receiver
    lines: list[dict[str, Any]] = field(default_factory=list)

    def line(self, request_id: str) -> dict[str, Any]:
        """Return the line of a request in the access log."""
        eventually(lambda: any(line.get("id") == request_id for line in self.lines))
        return next(line for line in self.lines if line.get("id") == request_id)

    def span(self, request_id: str) -> Any:
        eventually(lambda: self.collector.of(request_id))
        return self.collector.of(request_id)


@pytest.fixture(scope="module")
def observed(model_repository: Any) -> Iterator[Observed]:
    """A service that requires a key, logs every request and samples every trace, but those its callers do not."""
    with receiving() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_SERVICE_NAME": "digits",
        }
        flags = ("--access-log", "json", "--access-log-rate", "1000", "--tracing", "--grpc-port", "0")
        limits = ("--max-images", "3", "--client-timeout", "1", "--api-key", API_KEY, "--api-servers", "1")
        with running_service(model_repository, *flags, *limits, environment=environment) as service:
            observed = Observed(service, collector)

            def follow() -> None:
                for line in iter(service.read_line, ""):
                    observed.lines.append(json.loads(line))

            reader = Thread(target=follow, daemon=True)
            reader.start()
            yield observed


@pytest.fixture
def client(observed: Observed) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=observed.service.url, headers={"X-API-Key": API_KEY}) as client:
        yield client


def body(images: int = 1) -> dict[str, Any]:
    return {"images": DIGITS[:images]}


def test_the_line_of_a_prediction_has_its_times_and_neither_pixels_nor_keys(
    observed: Observed, client: httpx.Client
) -> None:
    answer = client.post("/predict/teacher", json=body(2), headers={"X-Request-ID": "two-digits"})
    line = observed.line("two-digits")
    timing = answer.json()["timing"]
    assert {name: line.pop(name) for name in ("decode_ms", "queue_ms", "inference_ms")} == {
        name: timing[name] for name in ("decode_ms", "queue_ms", "inference_ms")
    }
    assert line.pop("total_ms") >= timing["total_ms"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert HEX.fullmatch(line.pop("trace_id"))
    assert line == {
        "id": "two-digits",
        "protocol": "rest",
        "route": "/predict",
        "model": "teacher",
        "version": "1",
        "images": 2,
        "status": 200,
    }
    assert API_KEY not in json.dumps(observed.lines)


def test_every_response_has_the_request_id_and_a_line(observed: Observed, client: httpx.Client) -> None:
    tensor = {
        "name": "image",
        "shape": [1, 28, 28],
        "datatype": "UINT8",
        "data": [p for row in DIGITS[0] for p in row],
    }
    cases: list[tuple[str, str, dict[str, Any], int, dict[str, Any]]] = [
        ("POST", "/predict", {"json": body()}, 200, {"model": "student-int8", "images": 1}),
        ("POST", "/predict", {"content": b'{"image":'}, 400, {"error": "malformed_body", "images": None}),
        ("POST", "/predict", {"json": body(4)}, 422, {"error": "too_many_images"}),
        ("POST", "/predict/none", {"json": body()}, 404, {"error": "unknown_model", "model": None}),
        ("POST", "/predict", {"headers": {"X-API-Key": "no"}}, 401, {"error": "unauthorized"}),
        ("GET", "/predict", {}, 405, {"error": "method_not_allowed"}),
        ("POST", "/v2/models/student/infer", {"json": {"id": "theirs", "inputs": [tensor]}}, 200,
         {"route": "/v2/models/{model}/infer", "protocol": "v2"}),
        ("GET", "/v2/models/student", {}, 200, {"path": "/v2/models/student", "method": "GET"}),
        ("GET", "/no%22where%0A", {}, 404, {"path": "/no\"where\n"}),
    ]  # fmt: skip
    for number, (method, path, request, status, fields) in enumerate(cases):
        request_id = f"case-{number}"
        headers = request.pop("headers", {}) | {"X-Request-ID": request_id}
        answer = client.request(method, path, headers=headers, **request)
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, request_id)
        line = observed.line(request_id)
        assert line["status"] == status
        assert {name: line[name] for name in fields} == fields
        if "theirs" in str(request):
            assert answer.json()["id"] == "theirs"  # of the body: it is not the request's


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ü", '"', "{}", "a\tb"])
def test_an_invalid_request_id_is_replaced(client: httpx.Client, given: str) -> None:
    answers = [
        client.post("/predict", json=body(), headers={"X-Request-ID": given.encode()}) for _ in range(2)
    ]
    ids = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(HEX.fullmatch(one) for one in ids)
    assert len(set(ids)) == 2


def test_requests_rejected_before_their_route_is_known_have_an_id_and_a_line(observed: Observed) -> None:
    for data, status, code in (
        (b"GET / HTTP/9\r\n\r\n", 400, "malformed_request"),
        (b"GET / HT", 408, "slow_head"),
    ):
        with connect(observed.service.url) as connection:
            connection.sendall(data)
            found, headers, _ = read_answer(connection)
        assert found == status
        line = observed.line(headers["x-request-id"])
        assert (line["status"], line["error"]) == (status, code)


def test_a_client_that_hangs_up_has_a_line(observed: Observed) -> None:
    with connect(observed.service.url) as connection:
        head = post("/predict", b"", "X-Request-ID: leaver", f"X-API-Key: {API_KEY}", length=1000)
        connection.sendall(head)
        time.sleep(0.1)
    line = observed.line("leaver")
    assert (line["status"], line["error"]) == (499, "client_gone")


def test_a_span_has_the_stages_of_its_request_as_events(observed: Observed, client: httpx.Client) -> None:
    before = time.time_ns()
    headers = {
        "X-Request-ID": "spanned",
        "traceparent": f"00-{TRACE}-{PARENT}-01",
        "tracestate": "vendor=a, other=b",
    }
    assert client.post("/predict/student", json=body(3), headers=headers).status_code == 200
    span = observed.span("spanned")
    assert (span.name, span.kind, span.status.code) == ("POST /predict", span.SPAN_KIND_SERVER, 0)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=a,other=b"
    assert attributes(span) == {
        "distillery.request_id": "spanned",
        "distillery.model": "student",
        "distillery.model_version": "1",
        "distillery.images": 3,
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
    }
    assert [event.name for event in span.events] == [
        "body received",
        "body decoded",
        "run started",
        "run finished",
        "response encoded",
    ]
    times = [
        span.start_time_unix_nano,
        *(event.time_unix_nano for event in span.events),
        span.end_time_unix_nano,
    ]
    assert times == sorted(times)
    assert before - 1e7 < times[0] < times[-1] < time.time_ns() + 1e7
    assert observed.line("spanned")["trace_id"] == TRACE
    resource = observed.collector.resources[-1]
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("digits", "test")


@pytest.mark.parametrize("tracestate", [b"a=\xff", b"a=" + 600 * b"b", b"=,\t,"])
def test_an_invalid_tracestate_is_left_out_of_the_span(
    observed: Observed, client: httpx.Client, tracestate: bytes
) -> None:
    request_id = f"state-{len(tracestate)}"
    headers = {"X-Request-ID": request_id, "traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": tracestate}
    response = client.post("/predict", json=body(), headers=headers)
    assert (response.status_code, response.headers["X-Request-ID"]) == (200, request_id)
    assert observed.span(request_id).trace_state == ""


@pytest.mark.parametrize("fast", [False, True])
def test_the_sampled_bit_of_the_caller_decides(observed: Observed, client: httpx.Client, fast: bool) -> None:
    """Whether the request takes the fast path, which one with the same headers before it prepares, or not."""
    if fast:
        ready = {"X-Request-ID": "first", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        client.post("/predict", json=body(), headers=ready)
    for number, (flags, sampled) in enumerate((("00", False), ("01", True), ("02", False), ("03", True))):
        trace = f"{number + 1:032x}"
        request_id = f"{fast}-{flags}"
        headers = {"X-Request-ID": request_id, "traceparent": f"00-{trace}-{PARENT}-{flags}"}
        assert client.post("/predict", json=body(), headers=headers).headers["X-Request-ID"] == request_id
        line = observed.line(request_id)
        assert line.get("trace_id") == (trace if sampled else None)
        if sampled:
            assert observed.span(request_id).trace_id.hex() == trace
    eventually(lambda: observed.collector.of(f"{fast}-03"))
    assert not observed.collector.of(f"{fast}-00")


def test_an_invalid_traceparent_begins_a_new_trace(observed: Observed, client: httpx.Client) -> None:
    for number, value in enumerate(("nonsense", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-00")):
        client.post("/predict", json=body(), headers={"X-Request-ID": f"bad-{number}", "traceparent": value})
        span = observed.span(f"bad-{number}")
        assert (span.parent_span_id, span.trace_id.hex() != TRACE) == (b"", True)


def test_an_error_of_the_client_is_none_of_the_span(observed: Observed, client: httpx.Client) -> None:
    client.post("/predict", content=b'{"image":', headers={"X-Request-ID": "wrong"})
    span = observed.span("wrong")
    assert (span.status.code, attributes(span)["error.type"]) == (0, "malformed_body")
    assert [event.name for event in span.events] == ["body received"]


def call(observed: Observed, content: Any, *metadata: tuple[str, str]) -> dict[str, str]:
    """Call ModelInfer and return the trailing metadata, whatever the status."""
    with grpc.insecure_channel(observed.service.grpc) as channel:
        infer = channel.stream_unary(INFER)
        key = ("x-api-key", API_KEY)
        _, call = infer.with_call(iter([content]), metadata=(key, *metadata), timeout=20)
        return dict(call.trailing_metadata())


def test_grpc_has_ids_lines_and_spans_as_well(observed: Observed) -> None:
    content = message().SerializeToString()
    metadata = ("x-request-id", "remote"), ("traceparent", f"00-{TRACE}-{PARENT}-01")
    assert call(observed, content, *metadata)["x-request-id"] == "remote"
    line = observed.line("remote")
    assert (line["protocol"], line["model"], line["status"]) == ("grpc", "student", 200)
    span = observed.span("remote")
    assert (span.name, span.trace_id.hex()) == ("inference.GRPCInferenceService/ModelInfer", TRACE)
    assert attributes(span)["rpc.method"] == "ModelInfer"
    assert HEX.fullmatch(call(observed, content)["x-request-id"])
    with pytest.raises(grpc.RpcError) as caught:
        call(observed, b"\xff", ("x-request-id", "remote-error"))
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "remote-error"
    assert observed.line("remote-error")["error"] == "malformed_body"
