"""/metrics adds up what all processes count; no text of a client becomes a label."""

import ssl
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.engine.metrics import IN_FLIGHT, PROCESS_CPU_SECONDS, SECONDS, BulkHistogram
from serving.engine.recorder import CpuMetrics, RequestMetrics, RunMetrics
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.samples import sample_test
from tests.support.service import Service, eventually

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


def scrape(client: httpx.Client) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def settled(client: httpx.Client) -> Samples:
    """The counts after every process has published those of earlier tests."""
    found, before = scrape(client), {}
    while without_cpu(found) != without_cpu(before):
        time.sleep(0.25)
        found, before = scrape(client), found
    return found


def without_cpu(samples: Samples) -> Samples:
    return {key: value for key, value in samples.items() if "cpu_seconds" not in key[0]}


def value(samples: Samples, name: str, **labels: str) -> float:
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


def test_cpu_time_is_that_of_the_process() -> None:
    recorder = CpuMetrics("worker")
    counter = PROCESS_CPU_SECONDS.labels("worker")
    before, started = counter._value.get(), time.process_time()
    recorder.publish()
    recorder.publish()
    assert started <= counter._value.get() - before <= time.process_time()


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
    requests, runs = RequestMetrics("recorded"), RunMetrics("recorded")

    def cpu_seconds(*, publish: bool) -> float:
        started = time.process_time()
        for number in range(500):
            runs.ran(1, 1e-5, number * 1e-6, 1e-5)
            requests.predicted([number % 10], 1e-5, number * 1e-6, 1e-4, 1e-5, 1e-5)
            requests.answered("rest", 200, seconds=number * 1e-6)
            if publish:
                requests.publish()
                runs.publish()
        return time.process_time() - started

    recording = min(cpu_seconds(publish=False) for _ in range(5))
    publishing = min(cpu_seconds(publish=True) for _ in range(3))
    assert recording < publishing / 3  # about a tenth


def test_prometheus_client_is_the_version_whose_internals_are_used() -> None:
    assert version("prometheus_client") == "0.26.0"


def test_observations_added_in_bulk_equal_single_ones() -> None:
    registry = CollectorRegistry()
    single, bulk = (
        BulkHistogram(name, "help", buckets=(1, 2, 4), registry=registry) for name in ("single", "bulk")
    )
    for amount in (0.5, 1.5, 1.5, 9):
        single.observe(amount)
    bulk.add([1, 2, 0, 1], 12.5)
    samples = {
        (sample.name.removeprefix(metric.name), sample.labels.get("le")): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if metric.name == "single" and not sample.name.endswith("_created")
    }
    assert samples["_count", None] == 4
    for (suffix, bound), amount in samples.items():
        assert registry.get_sample_value(f"bulk{suffix}", {"le": bound} if bound else {}) == amount


def test_an_idle_process_publishes_no_requests() -> None:
    requests = RequestMetrics("idle")
    requests.in_flight = 1
    requests.publish()
    elsewhere = IN_FLIGHT.labels("idle")
    elsewhere.set(7)
    requests.publish()
    assert elsewhere._value.get() == 7
    requests.in_flight = 0
    requests.publish()
    assert elsewhere._value.get() == 0
