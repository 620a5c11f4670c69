"""Feedback on predictions over gRPC: the id in the trailing metadata of a call is that of its labels."""

from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from serving.engine.admission.api_keys import hash_of
from tests.support.requests.grpc_calls import INFER, message
from tests.support.service import Service, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test()


def infer(address: str, number: int, *metadata: tuple[str, str]) -> str:
    """Classify the first digits in one call; return its id."""
    content = message(
        input={"shape": [number, 28, 28]}, raw_input_contents=[DIGITS.images[:number].numpy().tobytes()]
    )
    with grpc.insecure_channel(address) as channel:
        _, call = channel.stream_unary(INFER).with_call(
            iter([content.SerializeToString()]), metadata=metadata, timeout=20
        )
        trailing = dict(call.trailing_metadata())
    return str(trailing["x-request-id"])


def label(url: str, request_id: str, number: int, key: str = "") -> dict[str, Any]:
    """Send the true digits of a request's images; return the response."""
    labels = [
        {"id": request_id, "digit": int(digit), "index": index}
        for index, digit in enumerate(DIGITS.labels[:number])
    ]
    answer = httpx.post(f"{url}/feedback", json={"labels": labels}, headers={"X-API-Key": key})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("sent", [None, "mine/17.grpc"])
def test_labels_of_a_call_are_counted_by_the_id_of_the_client_or_of_the_service(
    service: Service, sent: str | None
) -> None:
    request_id = infer(service.grpc, 3, *([("x-request-id", sent)] if sent else []))
    assert sent in {None, request_id}
    assert label(service.url, request_id, 3) == {"counted": 3, "repeated": 0, "rejected": []}
    assert label(service.url, request_id, 3) == {"counted": 0, "repeated": 3, "rejected": []}
    [beyond] = label(service.url, request_id, 4)["rejected"]
    assert beyond["message"] == f"index is 3, but the request {request_id!r} had 3 images, counted from 0"


def test_clients_label_their_own_calls_only(two_models: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(f'[[keys]]\nname = "{name}"\nhash = "{hash_of(name)}"\n' for name in ("alice", "bob"))
    )
    flags = ("--api-servers", "1", "--api-keys", str(file), "--grpc-port", "0")
    with running_service(two_models, *flags) as service:
        request_id = infer(service.grpc, 1, ("x-api-key", "alice"))
        [rejected] = label(service.url, request_id, 1, "bob")["rejected"]
        assert rejected["code"] == "unknown_request"
        assert label(service.url, request_id, 1, "alice")["counted"] == 1
