"""Requests and responses of the Open Inference Protocol over REST, with tensors in JSON or as bytes after it."""

from typing import Any

import httpx
import numpy as np

from serving.client.tensors import LENGTH, pack, unpack
from serving.model.session import Outputs

__all__ = ["INFER", "LENGTH", "NUMPY", "binary", "outputs", "split", "tensor"]

INFER = "/v2/models/student/infer"
NUMPY: dict[str, Any] = {"FP32": "<f4", "BOOL": np.bool_}


def outputs(found: Outputs) -> dict[str, Any]:
    """The outputs of a session by name, in the shapes of the protocol."""
    served = found._asdict()
    del served["digits"]
    return {
        name: np.asarray(values, NUMPY["BOOL" if name == "accepted" else "FP32"]).reshape(len(values), -1)
        for name, values in served.items()
        if values is not None
    }


def tensor(images: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", **fields}


def binary(images: Any, **fields: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request with its images as bytes; Triton's client sends no Content-Type either."""
    headers, body = pack(images, **fields)
    return {LENGTH: headers[LENGTH]}, body


def split(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of a response, and the bytes after it by output."""
    return unpack(answer.headers.get(LENGTH), answer.content)
