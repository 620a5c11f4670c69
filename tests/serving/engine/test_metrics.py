"""/metrics adds up what all processes count, and no client's words become a label."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.systems.servers import running_service
from serving.engine.metrics import IN_FLIGHT, PROCESS_CPU_SECONDS, SECONDS
from serving.engine.recorder import CpuMetrics, RequestMetrics, RunMetrics
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.samples import sample_test

DIGITS = sample_test().images.tolist()
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module", params=["inprocess", "workers"])
def service(request: pytest.FixtureRequest, two_models: Path) -> Iterator[str]:
    with running_service(two_models, "--api-servers", "2", "--executor", request.param) as url:
        yield url


def scrape(url: str) -> Samples:
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def eventually(condition: Callable[[], object], seconds: float = 5) -> None:
    """Processes publish what they counted a few times a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_counts_of_all_processes_add_up(service: str) -> None:
    requests, threads = 20, 4

    def ask() -> None:
        for number in range(requests):
            with httpx.Client(base_url=service) as client:  # connections anew, so both processes get some
                client.post("/predict/teacher", json={"images": DIGITS[number : number + 3]})
                client.post("/predict/teacher", json={"image": "nonsense"})
                client.post("/predict/nobody-{number}", json={})

    askers = [threading.Thread(target=ask) for _ in range(threads)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    total = requests * threads
    answers = {"teacher": ("200", "422"), "": ("404",)}

    def counts() -> set[float]:
        found, labels = scrape(service), {"protocol": "rest"}
        return {
            value(found, "distillery_requests_total", model=model, status=status, **labels)
            for model, statuses in answers.items()
            for status in statuses
        }

    eventually(lambda: counts() == {total})
    found = scrape(service)
    assert value(found, "distillery_requests_in_flight", model="teacher") == 0
    assert value(found, "distillery_images_total", model="teacher") == 3 * total
    digits = [value(found, "distillery_predictions_total", model="teacher", digit=str(n)) for n in range(10)]
    assert sum(digits) == 3 * total
    assert value(found, "distillery_request_duration_seconds_count", model="teacher") == 2 * total
    assert value(found, "distillery_queue_wait_seconds_count", model="teacher") == total
    assert value(found, "distillery_batch_size_images_sum", model="teacher") == 3 * total
    runs = value(found, "distillery_batch_size_images_count", model="teacher")
    assert runs == value(found, "distillery_inference_duration_seconds_count", model="teacher")
    assert runs
    assert runs <= total
    for name in ("request_duration", "queue_wait", "inference_duration"):
        seconds = value(found, f"distillery_{name}_seconds_sum", model="teacher")
        assert seconds
        assert 0 < seconds < 60
    models = {label for _, labels in found for key, label in labels if key == "model"}
    assert models == {"", "student", "teacher"}


def test_both_executors_answer_what_the_session_says(service: str, two_models: Path) -> None:
    images = sample_test().images.numpy()
    for name, entry in load_repository(two_models).items():
        answer = httpx.post(f"{service}/predict/{name}", json={"images": images.tolist()}).json()
        expected = Session(entry.path).run(images)[1].argmax(axis=1).tolist()
        assert [one["digit"] for one in answer["predictions"]] == expected


def test_models_are_described_by_their_manifests(service: str, two_models: Path) -> None:
    found = scrape(service)
    for name, entry in load_repository(two_models).items():
        manifest = entry.manifest
        labels = {
            "version": manifest.version,
            "precision": manifest.precision,
            "architecture": manifest.architecture,
        }
        assert value(found, "distillery_model_info", model=name, **labels) == 1
        assert value(found, "distillery_model_test_accuracy_ratio", model=name) == manifest.test_accuracy
        assert value(found, "distillery_model_size_bytes", model=name) == manifest.size_bytes
        assert value(found, "distillery_model_parameters", model=name) == manifest.parameters


def test_cpu_time_of_all_processes_grows_with_predictions(
    service: str, request: pytest.FixtureRequest
) -> None:
    executor = request.node.callspec.params["service"]
    processes = ("api", "worker") if executor == "workers" else ("api",)

    def cpu_seconds() -> list[float]:
        found = scrape(service)
        return [value(found, "distillery_process_cpu_seconds_total", process=name) or 0 for name in processes]

    before = cpu_seconds()
    assert all(before)
    with httpx.Client(base_url=service) as client:
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


def test_a_request_that_waits_is_in_flight(service: str) -> None:
    with httpx.Client(base_url=service) as client:
        held = threading.Event()

        def slow_body() -> Iterator[bytes]:
            yield b'{"image": '
            held.wait(10)
            yield b"0}"

        asker = threading.Thread(
            target=client.post,
            args=("/predict/student",),
            kwargs={"content": slow_body(), "headers": {"Content-Type": "application/json"}},
        )
        asker.start()
        try:
            eventually(lambda: value(scrape(service), "distillery_requests_in_flight", model="student") == 1)
        finally:
            held.set()
            asker.join()
    eventually(lambda: value(scrape(service), "distillery_requests_in_flight", model="student") == 0)


def test_buckets_resolve_from_20_microseconds_to_5_seconds() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (2e-5, 5.0)
    assert all(1 < upper / lower <= 1.7 for lower, upper in pairwise(SECONDS))


def test_what_is_noted_of_a_request_costs_a_twentieth_of_the_cheapest_one() -> None:
    requests, runs = RequestMetrics("noted"), RunMetrics("noted")
    cheapest_us, rounds = 74, 2000  # student-int8, batched: docs/serving.md, "CPU time of a request"

    def note() -> float:
        began = time.process_time()
        for number in range(rounds):
            runs.ran(1, 1e-5, number * 1e-6, 1e-5)
            requests.predicted([number % 10], 1e-5, number * 1e-6, 1e-4, 1e-5, 1e-5)
            requests.answered("rest", 200, seconds=number * 1e-6)
        return (time.process_time() - began) * 1e6 / rounds

    assert min(note() for _ in range(5)) < cheapest_us / 20


def test_an_idle_process_publishes_nothing() -> None:
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
