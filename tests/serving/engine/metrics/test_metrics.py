"""/metrics adds up what all processes count; no text of a client becomes a label."""

import multiprocessing
import resource
import ssl
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from distillery.machine import usable_cores
from serving.codecs.base import Codec
from serving.codecs.errors import FeedbackError, RequestError
from serving.codecs.open_inference.grpc import GrpcCodec
from serving.codecs.open_inference.rest import OpenInferenceCodec
from serving.codecs.predict import PredictCodec
from serving.engine.metrics.exposition import Exposition
from serving.engine.metrics.recorder import CPU_SAMPLE_SECONDS, ProcessMetrics, RequestMetrics, RunMetrics
from serving.engine.metrics.series import (
    IN_FLIGHT,
    INFERENCE_SECONDS,
    MAX_RUN_IMAGES,
    PROCESS_CPU_SECONDS,
    REJECTED_REQUESTS,
    REQUESTS,
    ROUTE_SECONDS,
    RUNS,
    SECONDS,
    Metrics,
    metrics_table,
)
from serving.engine.shared_memory import SharedMemoryError, SharedRows
from serving.http.middleware.route_metrics import ROUTES
from serving.model.repository import load_repository
from serving.model.session import Session
from serving.service import PREDICTION_ROUTES, PROTOCOLS
from tests.support.counting import count_a_run
from tests.support.service import Service, eventually
from tests.support.training.samples import sample_test

MODELS = ("teacher", "student")
SLOTS = {(name, "1"): str(slot) for slot, name in enumerate(MODELS)}
STUDENT = SLOTS["student", "1"]
ALL_ROUTES = (*PREDICTION_ROUTES, *ROUTES)
REST, V2 = PredictCodec(), OpenInferenceCodec()
DIGITS = sample_test().images.tolist()
TLS = (
    ssl.create_default_context()
)  # is not needed, but making one for each client takes longer than a request
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(params=["service", "workers_service"])
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    service: Service = request.getfixturevalue(request.param)
    with httpx.Client(base_url=service.url, timeout=10) as client:
        yield client


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(client: httpx.Client) -> Samples:
    return samples_of(client.get("/metrics").text)


def metrics() -> Metrics:
    """Metrics of two processes."""
    return Metrics(metrics_table(len(MODELS), PROTOCOLS, ALL_ROUTES, 64), 2)


def exposed(shared: Metrics) -> Samples:
    return samples_of(Exposition(shared, lambda: SLOTS).text())


def settled(client: httpx.Client) -> Samples:
    """The counts after every process has published those of earlier tests."""
    found, before = scrape(client), {}
    while of_requests(found) != of_requests(before):
        time.sleep(0.25)
        found, before = scrape(client), found
    return found


def of_requests(samples: Samples) -> Samples:
    """Without what changes while the service is idle but for scrapes."""
    idle = ("distillery_process_", "distillery_event_loop_")
    return {
        key: value
        for key, value in samples.items()
        if not key[0].startswith(idle) and ("route", "/metrics") not in key[1]
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    if "model" in labels:
        labels.setdefault("version", "1" if labels["model"] else "")
    return samples.get((f"distillery_{name}", tuple(sorted(labels.items()))), 0.0)


def test_counts_of_all_processes_add_up(client: httpx.Client) -> None:
    requests, threads = 20, 4
    before = settled(client)

    def send() -> None:
        for number in range(requests):
            # A new connection each time, so that both API processes get some.
            with httpx.Client(base_url=client.base_url, verify=TLS) as one:
                one.post("/predict/teacher", json={"images": DIGITS[number : number + 3]})
                one.post("/predict/teacher", json={"image": "nonsense"})
                one.post(f"/predict/nobody-{number}", json={})

    senders = [threading.Thread(target=send) for _ in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    total = requests * threads
    answers = (("teacher", "200"), ("teacher", "422"), ("", "404"))
    found: Samples = {}

    def growth(name: str, **labels: str) -> float:
        return value(found, name, **labels) - value(before, name, **labels)

    def all_are_counted() -> bool:
        nonlocal found
        found = scrape(client)
        counts = {
            growth("requests_total", model=model, protocol="rest", status=status) for model, status in answers
        }
        return counts == {total}

    eventually(all_are_counted)
    assert value(found, "requests_in_flight", model="teacher") == 0
    assert growth("images_total", model="teacher") == 3 * total
    digits = [growth("predictions_total", model="teacher", digit=str(n)) for n in range(10)]
    assert sum(digits) == 3 * total
    assert growth("request_duration_seconds_count", model="teacher") == 2 * total
    assert growth("queue_wait_seconds_count", model="teacher") == total
    assert growth("batch_size_images_sum", model="teacher") == 3 * total
    runs = growth("batch_size_images_count", model="teacher")
    assert runs == growth("inference_duration_seconds_count", model="teacher")
    assert 0 < runs <= total
    for name in ("request_duration", "queue_wait", "inference_duration"):
        assert 0 < growth(f"{name}_seconds_sum", model="teacher") < 60


def test_no_text_of_a_client_becomes_a_label(client: httpx.Client) -> None:
    assert client.post("/predict/nobody", json={}).status_code == 404
    models = {manifest["name"] for manifest in client.get("/models").json()["models"]}
    labels = {label for _, pairs in settled(client) for key, label in pairs if key == "model"}
    assert labels == {"", *models}


def test_both_executors_give_the_digits_of_the_session(client: httpx.Client, two_models: Path) -> None:
    images = sample_test().images.numpy()
    for name, entry in load_repository(two_models).items():
        answer = client.post(f"/predict/{name}", json={"images": images.tolist()}).json()
        expected = Session(entry.path).run(images).probabilities.argmax(axis=1).tolist()
        assert [one["digit"] for one in answer["predictions"]] == expected


def test_requests_are_counted_by_the_template_of_their_route(client: httpx.Client) -> None:
    requests = {
        ("/predict", "2xx"): ("POST", "/predict/teacher", {"image": DIGITS[0]}),
        ("/predict", "4xx"): ("POST", "/predict/teacher", {}),
        ("/read", "4xx"): ("POST", "/read/teacher", {}),
        ("/v2/models/{model}/infer", "4xx"): ("POST", "/v2/models/teacher/infer", {}),
        ("/models/{model}", "2xx"): ("GET", "/models/teacher", None),
        ("/v2/models/{model}/ready", "4xx"): ("GET", "/v2/models/teacher/versions/none/ready", None),
        ("/health/live", "4xx"): ("PUT", "/health/live", None),
        ("/", "3xx"): ("GET", "/", None),
        ("unknown", "4xx"): ("GET", "/no-such-path/%22", None),
    }
    before = settled(client)
    for (_, status), (method, path, body) in requests.items():
        answer = client.request(method, path, json=body, headers={"Accept": "application/json"})
        assert f"{answer.status_code // 100}xx" == status, path
    found: Samples = {}

    def growth(name: str, **labels: str) -> float:
        return value(found, name, **labels) - value(before, name, **labels)

    def all_are_counted() -> bool:
        nonlocal found
        found = scrape(client)
        return all(
            growth("route_requests_total", route=route, status=status) == 1 for route, status in requests
        )

    eventually(all_are_counted)
    for route in {route for route, _ in requests}:
        count = sum(route == one for one, _ in requests)
        assert growth("route_request_duration_seconds_count", route=route) == count
        assert 0 < growth("route_request_duration_seconds_sum", route=route) < 60
    labels = {label for (name, pairs) in found for key, label in pairs if key == "route"}
    assert labels == {*ALL_ROUTES, "unknown"}


def test_the_durations_of_a_route_are_those_of_its_models() -> None:
    shared = metrics()
    durations = (1e-6, 3e-4, 3.1e-4, 9e-4, 0.09, 0.2, 1.5, 9.0)
    for model in MODELS:
        requests = RequestMetrics(shared.row(0), SLOTS[model, "1"])
        for seconds in durations:
            requests.answered(REST, 200, seconds=seconds)
            requests.answered(V2, 200, seconds=1e-3)
        requests.answered(REST, 499, seconds=None)
        requests.publish()
        requests.publish()
    found = exposed(shared)
    for bound in ROUTE_SECONDS:
        expected = 2 * sum(seconds <= bound for seconds in durations)
        bucket = value(
            found, "route_request_duration_seconds_bucket", route="/predict", le=floatToGoString(bound)
        )
        assert bucket == expected, bound
    total = value(found, "route_request_duration_seconds_sum", route="/predict")
    assert total == pytest.approx(2 * sum(durations))
    assert value(found, "route_request_duration_seconds_count", route=V2.route) == 2 * len(durations)
    assert value(found, "route_requests_total", route="/predict", status="4xx") == 2
    assert value(found, "request_duration_seconds_count", model="student") == 2 * len(durations)


def test_models_are_described_by_their_manifests(client: httpx.Client, two_models: Path) -> None:
    found = scrape(client)
    for name, entry in load_repository(two_models).items():
        manifest = entry.manifest
        labels = {
            "version": manifest.version,
            "precision": manifest.precision,
            "architecture": manifest.architecture,
        }
        assert value(found, "model_info", model=name, **labels) == 1
        assert value(found, "model_test_accuracy_ratio", model=name) == manifest.test_accuracy
        assert manifest.acceptance
        accepted = manifest.acceptance.accepted / manifest.acceptance.digits
        assert value(found, "model_validation_accepted_ratio", model=name) == pytest.approx(accepted)
        assert value(found, "model_size_bytes", model=name) == manifest.size_bytes
        assert value(found, "model_parameters", model=name) == manifest.parameters


def test_cpu_time_of_all_processes_grows_with_predictions(
    client: httpx.Client, request: pytest.FixtureRequest
) -> None:
    executor = request.node.callspec.params["client"]
    processes = ("api", "worker") if executor == "workers_service" else ("api",)

    def cpu_seconds() -> list[float]:
        found = scrape(client)
        return [value(found, "process_cpu_seconds_total", process=process) for process in processes]

    before = cpu_seconds()
    assert all(before)
    for _ in range(20):
        client.post("/predict/teacher", json={"images": DIGITS})
    eventually(lambda: all(now > then + 0.001 for now, then in zip(cpu_seconds(), before, strict=True)))


def test_a_service_reports_its_processes(client: httpx.Client, request: pytest.FixtureRequest) -> None:
    kinds = {"service": {"api": 2, "worker": 0}, "workers_service": {"api": 2, "worker": 2}}
    expected = kinds[request.node.callspec.params["client"]]
    found = scrape(client)
    for kind, processes in expected.items():
        assert value(found, "processes", process=kind) == processes
        memory = value(found, "process_resident_memory_bytes", process=kind)
        descriptors = value(found, "process_open_fds", process=kind)
        if processes:
            assert 20e6 < memory / processes < 2e9
            assert 5 < descriptors / processes < value(found, "process_max_fds", process=kind)
        else:
            assert (memory, descriptors) == (0, 0)
    assert value(found, "event_loop_lag_seconds_count") > 0
    assert 0 <= value(found, "cpu_throttled_periods_total") <= value(found, "cpu_periods_total")


def test_a_service_reports_its_build_and_limits(client: httpx.Client) -> None:
    found = scrape(client)
    ((build, one),) = [
        (labels, value) for (name, labels), value in found.items() if name.endswith("build_info")
    ]
    assert one == 1
    assert dict(build)["onnxruntime"] == version("onnxruntime")
    assert value(found, "requests_in_flight_limit") == 2 * 1024
    assert value(found, "usable_cores") == usable_cores()
    assert time.time() - 3600 < value(found, "start_time_seconds") < time.time()


def test_rejected_requests_are_counted_by_reason(client: httpx.Client) -> None:
    before = settled(client)
    reasons = {"invalid_shape": b'{"image": [1]}', "malformed_body": b"[", "unknown_model": b"{}"}
    for reason, body in reasons.items():
        path = "/predict/nobody" if reason == "unknown_model" else "/predict/student"
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.json()["error"]["code"] == reason

    def growth() -> dict[str, float]:
        found = scrape(client)
        return {
            dict(labels)["reason"]: found[name, labels] - before[name, labels]
            for name, labels in found
            if name == REJECTED_REQUESTS and found[name, labels] != before[name, labels]
        }

    eventually(lambda: growth() == dict.fromkeys(reasons, 1))


def test_a_sample_of_live_images_is_compared_with_the_teacher(
    service: Service, model_repository: Path
) -> None:
    """And the comparison is no request, run or image of the teacher."""
    models = load_repository(model_repository)
    digits = {
        name: Session(models[name].path).run(sample_test().images.numpy()[:1]).digits
        for name in ("teacher", "student")
    }
    agrees = str(digits["student"] == digits["teacher"]).lower()
    with httpx.Client(base_url=service.url, timeout=10) as client:
        before = settled(client)

        def growth(name: str, **labels: str) -> float:
            return value(scrape(client), name, **labels) - value(before, name, **labels)

        def compared() -> float:
            assert client.post("/predict/student", json={"image": DIGITS[0]}).status_code == 200
            return growth("teacher_comparisons_total", model="student", agrees=agrees)

        eventually(lambda: compared() >= 2)
        other = {"true": "false", "false": "true"}[agrees]
        assert growth("teacher_comparisons_total", model="student", agrees=other) == 0
        assert growth("inference_duration_seconds_count", model="teacher") == 0
        assert growth("images_total", model="teacher") == 0


def test_cpu_time_of_runs_is_estimated_from_some_of_them() -> None:
    shared = metrics()
    runs = RunMetrics(shared.row(0), STUDENT)
    measured = 0
    for run in range(31):
        started = runs.cpu_started(run * CPU_SAMPLE_SECONDS / 9.9)
        if started is not None:
            measured += 1
            runs.cpu_ended(started - 0.25)  # as if it had taken a quarter of a second more
    runs.publish()
    runs.publish()
    assert measured == 4  # the first, and one in ten
    found = value(exposed(shared), "run_cpu_seconds_total", model="student")
    assert found == pytest.approx(31 * 0.25, abs=0.1)


def test_cpu_time_is_that_of_the_process() -> None:
    row = metrics().row(0)
    recorder, started = ProcessMetrics(row, "worker"), time.process_time()
    recorder.publish()
    recorder.publish()
    assert started <= row.of(PROCESS_CPU_SECONDS, process="worker") <= time.process_time()


def test_a_request_whose_body_is_incomplete_is_in_flight(client: httpx.Client) -> None:
    def in_flight() -> float:
        return value(scrape(client), "requests_in_flight", model="student")

    complete = threading.Event()

    def slow_body() -> Iterator[bytes]:
        yield b'{"image": '
        complete.wait(10)
        yield b"0}"

    sender = threading.Thread(
        target=httpx.post,
        args=(f"{client.base_url}/predict/student",),
        kwargs={"content": slow_body(), "headers": {"Content-Type": "application/json"}},
    )
    sender.start()
    try:
        eventually(lambda: in_flight() == 1)
    finally:
        complete.set()
        sender.join()
    eventually(lambda: in_flight() == 0)


def test_buckets_resolve_from_20_microseconds_to_5_seconds() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (2e-5, 5.0)
    assert all(1 < upper / lower <= 1.7 for lower, upper in pairwise(SECONDS))


def test_recording_a_request_costs_a_fraction_of_publishing_it() -> None:
    row = metrics().row(0)
    requests, runs = RequestMetrics(row, STUDENT), RunMetrics(row, STUDENT)

    def cpu_seconds(*, publish: bool) -> float:
        started = time.process_time()
        for number in range(500):
            runs.ran(1, 1e-5, number * 1e-6, 1e-5)
            requests.predicted([number % 10], 1e-5, number * 1e-6, 1e-4, 1e-5, 1e-5)
            requests.answered(REST, 200, seconds=number * 1e-6)
            if publish:
                requests.publish()
                runs.publish()
        return time.process_time() - started

    recording = min(cpu_seconds(publish=False) for _ in range(5))
    publishing = min(cpu_seconds(publish=True) for _ in range(3))
    assert recording < publishing / 3  # about a tenth


def test_a_histogram_is_the_one_that_prometheus_client_makes_of_the_same_observations() -> None:
    shared, registry = metrics(), CollectorRegistry()
    theirs = Histogram(INFERENCE_SECONDS, "help", ("model", "version"), buckets=SECONDS, registry=registry)
    ours = RunMetrics(shared.row(0), STUDENT)
    for amount in (1e-6, 2e-5, 1e-3, 1e-3, 2e-3, 9.0):
        theirs.labels("student", "1").observe(amount)
        ours.ran(1, 0.0, amount, 0.0)
    ours.publish()
    found = exposed(shared)
    for sample in next(iter(registry.collect())).samples:
        if not sample.name.endswith("_created"):
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert found[key] == pytest.approx(sample.value, rel=1e-12), key


def test_every_codec_has_its_series() -> None:
    codecs: list[type[Codec]] = [Codec, GrpcCodec]
    for codec in codecs:
        codecs += codec.__subclasses__()
    assert {codec.name for codec in codecs[1:]} == set(PROTOCOLS)
    assert {codec.route for codec in codecs[1:]} == set(PREDICTION_ROUTES)


def test_every_series_exists_from_the_start() -> None:
    """Prometheus sees no increase in a series that appears with its first count."""
    found = exposed(metrics())
    statuses = {int(dict(labels)["status"]) for name, labels in found if name == REQUESTS}
    errors = [RequestError]
    for error in errors:
        errors += [one for one in error.__subclasses__() if one is not FeedbackError]
    assert statuses == {200, 499} | {error.status for error in errors}
    for model, protocol, status in product((*MODELS, ""), PROTOCOLS, statuses):
        labels = {
            "model": model,
            "protocol": protocol,
            "status": str(status),
            "version": "1" if model else "",
        }
        assert found[REQUESTS, tuple(labels.items())] == 0
    assert len(found) < 1000


def test_an_idle_process_publishes_no_requests() -> None:
    row = metrics().row(0)
    requests, in_flight = RequestMetrics(row, STUDENT), row.of(IN_FLIGHT, slot=STUDENT)
    requests.in_flight = 1
    requests.publish()
    in_flight[...] = 7
    requests.publish()
    assert in_flight == 7
    requests.in_flight = 0
    requests.publish()
    assert in_flight == 6


def test_requests_of_a_version_with_old_and_new_files_are_in_flight_together() -> None:
    row = metrics().row(0)
    old, new, in_flight = (
        RequestMetrics(row, STUDENT),
        RequestMetrics(row, STUDENT),
        row.of(IN_FLIGHT, slot=STUDENT),
    )
    old.in_flight, new.in_flight = 2, 3
    for requests in (old, new):
        requests.publish()
    assert in_flight == 5
    old.in_flight = 0
    old.publish()
    assert in_flight == 3


def test_a_process_that_replaces_a_dead_one_continues_its_counts() -> None:
    shared = metrics()
    first = RequestMetrics(shared.row(0), STUDENT)
    first.in_flight = 3
    first.predicted([7], 1e-5, 1e-5, 1e-5, 1e-5, 1e-5)
    first.answered(REST, 200, seconds=1e-3)
    first.publish()
    shared.process_died("api", 0)
    before = exposed(shared)
    assert value(before, "requests_in_flight", model="student") == 0
    assert value(before, "last_prediction_timestamp_seconds", model="student") > 0
    assert value(before, "process_restarts_total", process="api") == 1
    second = RequestMetrics(shared.row(0), STUDENT)
    second.answered(REST, 200, seconds=1e-3)
    second.answered(V2, 503, seconds=None)
    second.publish()
    after = exposed(shared)
    assert value(after, "requests_total", model="student", protocol="rest", status="200") == 2
    assert value(after, "requests_total", model="student", protocol="v2", status="503") == 1
    assert all(after[key] >= before[key] for key in before)
    assert set(after) == set(before)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_count_in_the_memory_of_their_parent(method: str) -> None:
    shared, context = metrics(), multiprocessing.get_context(method)
    child = context.Process(target=count_a_run, args=(shared, 1, STUDENT))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert value(exposed(shared), "batch_size_images_sum", model="student") == 8


def test_a_run_larger_than_any_exact_size_is_counted() -> None:
    shared = Metrics(metrics_table(len(MODELS), PROTOCOLS, ALL_ROUTES, 100_000), 1)
    runs = RunMetrics(shared.row(0), STUDENT)
    for images in (MAX_RUN_IMAGES, MAX_RUN_IMAGES + 1):
        runs.ran(images, 1e-5, 1e-4, 1e-5)
    runs.publish()
    assert shared.totals().of(RUNS, slot=STUDENT, images=str(MAX_RUN_IMAGES)) == 2
    assert value(exposed(shared), "batch_size_images_sum", model="student") == 2 * MAX_RUN_IMAGES + 1


def test_memory_that_cannot_be_allocated_is_a_one_line_error() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # applies to anonymous memory too
    try:
        with pytest.raises(SharedMemoryError, match="no 8,000 bytes of shared memory: File too large"):
            SharedRows(1, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
