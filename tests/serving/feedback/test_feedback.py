"""`POST /feedback` and `GET /feedback` of real services: counted once, in any process, for one's own requests only."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.engine.admission.api_keys import hash_of
from serving.engine.feedback import Accuracy
from tests.support.service import Service, eventually, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test()
IMAGES = DIGITS.images.tolist()
LABELS = DIGITS.labels.tolist()


@pytest.fixture(scope="module")
def service(one_model: Path) -> Iterator[Service]:
    with running_service(one_model, "--api-servers", "2") as service:
        yield service


def predict(url: str, *images: Any, **headers: str) -> tuple[str, list[int]]:
    """Return the id of a request on a connection of its own, and the digits."""
    response = httpx.post(f"{url}/predict", json={"images": list(images)}, headers=headers)
    assert response.status_code == 200
    return response.headers["X-Request-ID"], [one["digit"] for one in response.json()["predictions"]]


def send(url: str, document: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/feedback", json=document, headers=headers)


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def accuracy(url: str, model: str = "student") -> dict[str, Any]:
    [found] = [one for one in httpx.get(f"{url}/feedback").json()["models"] if one["model"] == model]
    return dict(found)


def counts(url: str) -> dict[str, float]:
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if "feedback_total{" in line]
    return {json.dumps(line.split("{")[1].split(",")[0]): float(line.split()[-1]) for line in lines}


def test_labels_of_requests_of_any_process_are_counted(service: Service) -> None:
    before = accuracy(service.url)
    requests = [predict(service.url, IMAGES[index]) for index in range(40)]  # the kernel picks the process
    for (request_id, _), label in zip(requests, LABELS, strict=False):
        assert send(service.url, {"id": request_id, "digit": label}).json() == {
            "counted": 1,
            "repeated": 0,
            "rejected": [],
        }
    correct = sum(digits == [label] for (_, digits), label in zip(requests, LABELS, strict=False))
    after = accuracy(service.url)
    assert after["labels"] - before["labels"] == 40
    assert after["correct"] - before["correct"] == correct
    low, high = after["interval"]
    assert low < after["accuracy"] < high <= 1
    assert sum(counts(service.url).values()) == after["labels"]


def test_images_of_a_request_have_an_index_and_a_list_labels_many(service: Service) -> None:
    request_id, digits = predict(service.url, *IMAGES[:3])
    labels = [{"id": request_id, "digit": digit, "index": index} for index, digit in enumerate(digits)]
    answer = send(service.url, {"labels": [*labels, labels[0], {"id": "never sent", "digit": 1}]}).json()
    assert (answer["counted"], answer["repeated"]) == (3, 1)
    assert [(one["position"], one["code"]) for one in answer["rejected"]] == [(4, "unknown_request")]
    status, code, message = error_of(send(service.url, {"id": request_id, "digit": 1, "index": 3}))
    assert (status, code) == (422, "invalid_range")
    assert message == f"index is 3, but the request {request_id!r} had 3 images, counted from 0"


def test_the_same_label_again_changes_nothing_and_another_one_is_rejected(service: Service) -> None:
    request_id, [digit] = predict(service.url, IMAGES[0])
    other = (digit + 1) % 10
    assert send(service.url, {"id": request_id, "digit": other}).json()["counted"] == 1
    before = accuracy(service.url)
    assert send(service.url, {"id": request_id, "digit": other}).json()["repeated"] == 1
    status, code, message = error_of(send(service.url, {"id": request_id, "digit": digit}))
    assert (status, code) == (409, "already_labelled")
    assert f"was labelled {other} before, and now {digit}; a label cannot be changed" in message
    assert accuracy(service.url) == before


def test_an_unknown_id_is_rejected_with_how_long_ids_are_known(service: Service) -> None:
    status, code, message = error_of(send(service.url, {"id": "made-up", "digit": 1}))
    assert (status, code) == (404, "unknown_request")
    assert "'made-up'" in message
    assert "of the last 3600 s, and the last 65,536 of each process" in message


def test_ids_of_clients_are_used_and_the_last_request_counts(service: Service) -> None:
    for image in IMAGES[:2]:
        request_id, _ = predict(service.url, image, **{"X-Request-ID": "mine/17"})
        assert request_id == "mine/17"
        time.sleep(0.3)  # until then, another process may find the request before
        assert send(service.url, {"id": "mine/17", "digit": 3}).json()["counted"] == 1


BAD: dict[str, tuple[Any, int, str, str]] = {
    "digit too large": ({"id": "a", "digit": 10}, 422, "invalid_input", "found 10"),
    "digit negative": ({"id": "a", "digit": -1}, 422, "invalid_input", "found -1"),
    "digit a string": ({"id": "a", "digit": "7"}, 422, "invalid_input", "found '7'"),
    "digit true": ({"id": "a", "digit": True}, 422, "invalid_input", "found true"),
    "digit huge": ({"id": "a", "digit": 2**70}, 422, "invalid_input", "digit"),
    "no id": ({"digit": 1}, 422, "invalid_input", "id: Field required"),
    "id empty": ({"id": "", "digit": 1}, 422, "invalid_input", "id: String should have at least 1"),
    "id long": ({"id": "x" * 129, "digit": 1}, 422, "invalid_input", "at most 128"),
    "index negative": ({"id": "a", "digit": 1, "index": -1}, 422, "invalid_input", "found -1"),
    "another field": ({"id": "a", "digit": 1, "label": 2}, 422, "invalid_input", "label: unknown setting"),
    "a list": ([1], 422, "invalid_input", "the body is a list; expected"),
    "no labels": ({"labels": []}, 422, "invalid_input", "labels"),
    "too many labels": ({"labels": [{"id": "a", "digit": 1}] * 257}, 422, "invalid_input", "at most 256"),
    "a bad label": ({"labels": [{"id": "a", "digit": 11}]}, 422, "invalid_input", "labels.0.digit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_rejected_with_value_and_fix(case: str, service: Service) -> None:
    document, status, code, message = BAD[case]
    found = error_of(send(service.url, document))
    assert found[:2] == (status, code)
    assert message in found[2]
    assert len(found[2]) < 500


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", {}, 400, "malformed_body"),
        (b"", {}, 400, "malformed_body"),
        (b'{"id": "\xff", "digit": 1}', {}, 400, "malformed_body"),
        (b"[" * 60_000, {}, 400, "malformed_body"),
        (b" " * 65_537, {}, 413, "body_too_large"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
    ],
)
def test_bad_bodies_are_rejected(
    content: bytes, headers: dict[str, str], status: int, code: str, service: Service
) -> None:
    all_headers = {"Content-Type": "application/json"} | headers
    response = httpx.post(f"{service.url}/feedback", content=content, headers=all_headers)
    assert error_of(response)[:2] == (status, code)


def test_labels_survive_the_death_of_the_process_that_made_the_prediction(one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "2") as service:
        ids = [predict(service.url, IMAGES[0])[0] for _ in range(10)]
        time.sleep(0.5)  # what a process has not published yet dies with it
        killed, _ = service.children()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: len(service.children()) == 2 and killed not in service.children())
        eventually(lambda: httpx.get(f"{service.url}/health/ready").status_code == 200)
        for request_id in ids:
            assert send(service.url, {"id": request_id, "digit": LABELS[0]}).json()["counted"] == 1
        assert accuracy(service.url)["labels"] == 10


def test_ids_expire(one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "1", "--feedback-expiry", "0.3") as service:
        request_id, _ = predict(service.url, IMAGES[0])
        eventually(lambda: send(service.url, {"id": request_id, "digit": 1}).status_code == 404, 5)
        assert httpx.get(f"{service.url}/feedback").json()["expiry_seconds"] == 0.3


def test_feedback_can_be_turned_off(one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "1", "--no-feedback") as service:
        assert send(service.url, {"id": "a", "digit": 1}).status_code == 404
        assert "/feedback" not in httpx.get(f"{service.url}/openapi.json").json()["paths"]


def test_clients_label_their_own_requests_only(one_model: Path, tmp_path: Path) -> None:
    keys = {"alice": "key-of-alice", "bob": "key-of-bob"}
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(f'[[keys]]\nname = "{name}"\nhash = "{hash_of(key)}"\n' for name, key in keys.items())
    )
    with running_service(one_model, "--api-servers", "1", "--api-keys", str(file)) as service:
        alice, bob = ({"X-API-Key": key} for key in keys.values())
        request_id, [digit] = predict(service.url, IMAGES[0], **alice)
        label = {"id": request_id, "digit": digit}
        assert error_of(send(service.url, label, **bob))[:2] == (404, "unknown_request")
        assert error_of(send(service.url, label))[:2] == (401, "unauthorized")
        assert send(service.url, label, **alice).json()["counted"] == 1


def test_a_service_with_a_key_needs_it_for_feedback(strict_service: Service) -> None:
    assert error_of(send(strict_service.url, {"id": "a", "digit": 1}))[:2] == (401, "unauthorized")


def test_the_interval_is_that_of_wilson() -> None:
    # Brown, Cai and DasGupta (2001): 0 of 20 and 18 of 20
    for correct, low, high in ((0, 0.0, 0.1611), (18, 0.6990, 0.9721)):
        found = Accuracy("student", "1", 20, correct).interval()
        assert found == pytest.approx((low, high), abs=5e-4)
    assert Accuracy("student", "1", 0, 0).interval() == (0.0, 1.0)
