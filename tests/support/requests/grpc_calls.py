"""Calls over gRPC in the messages of Triton's client, and their counts in the metrics."""

import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as theirs

INFER = "/inference.GRPCInferenceService/ModelInfer"


def image_input(images: Any, name: str = "image") -> Any:
    tensor = triton.InferInput(name, images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def message(**changes: Any) -> Any:
    """Return a valid request for one image in Triton's message, with `changes`."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]} | changes.pop("input", {})
    fields = {"model_name": "student", "inputs": [tensor], "raw_input_contents": [bytes(784)]}
    return theirs.ModelInferRequest(**(fields | changes))


def error_of(address: str, content: Any, key: str | None = None) -> tuple[grpc.StatusCode, str]:
    """Return code and details of a call's error; `content` is a message or an iterator of bytes."""
    with grpc.insecure_channel(address) as channel:
        metadata = (("x-api-key", key),) if key else ()
        pieces = content if isinstance(content, Iterator) else iter([content.SerializeToString()])
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(INFER)(pieces, metadata=metadata, timeout=20)
        return caught.value.code(), caught.value.details()


def counts(url: str) -> dict[tuple[str, str], float]:
    """Return the number of completed gRPC requests by model and status."""
    return {
        (sample.labels["model"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
        for sample in family.samples
        if sample.name == "distillery_requests_total" and sample.labels["protocol"] == "grpc"
    }


def settled_counts(url: str) -> dict[tuple[str, str], float]:
    """Return the counts once all processes have published the requests of earlier tests."""
    found = None
    while found != (found := counts(url)):
        time.sleep(1)
    return found
