"""A service that answers over gRPC, and questions for it in the messages of Triton's own client."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as theirs

from tests.support.service import running_service

INFER = "/inference.GRPCInferenceService/ModelInfer"
KEY = "correct horse"
FLAGS = ("--api-servers", "2", "--max-images", "200", "--max-body-bytes", "200000")
# With a key, so impatient that its limits can be met in a test, and with workers.
STRICT_FLAGS = (
    "--api-servers", "1", "--api-key", KEY, "--request-timeout", "0.6", "--max-in-flight", "2", "--executor", "workers",
)  # fmt: skip


class Addresses(NamedTuple):
    http: str
    grpc: str


@contextmanager
def running_grpc(models_dir: Path, *flags: str) -> Iterator[Addresses]:
    """Run a service that answers over gRPC too."""
    with running_service(models_dir, *flags, "--grpc-port", "0") as service:
        yield Addresses(service.url, service.grpc)


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
