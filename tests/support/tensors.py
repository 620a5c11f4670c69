"""Requests and responses of the Open Inference Protocol over REST, with tensors in JSON or as bytes after it."""

from typing import Any

import httpx

from serving.client.tensors import LENGTH, pack, unpack

__all__ = ["INFER", "LENGTH", "binary", "split", "tensor"]

INFER = "/v2/models/student/infer"


def tensor(images: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", **fields}


def binary(images: Any, **fields: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request with its images as bytes; Triton's client sends no Content-Type either."""
    headers, body = pack(images, **fields)
    return {LENGTH: headers[LENGTH]}, body


def split(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of a response, and the bytes after it by output."""
    return unpack(answer.headers.get(LENGTH), answer.content)
