"""Requests and answers of the Open Inference Protocol over REST, with tensors in JSON or as bytes behind it."""

import json
from typing import Any

import httpx

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/student/infer"


def tensor(images: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", **fields}


def binary(images: Any, **fields: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request with its images as bytes."""
    document = {"inputs": [tensor(images, parameters={"binary_data_size": images.nbytes})], **fields}
    text = json.dumps(document).encode()
    return {LENGTH: str(len(text))}, text + images.tobytes()


def split(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of an answer, and the bytes behind it by output."""
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    document = json.loads(answer.content[:length])
    blobs, start = {}, length
    for output in document["outputs"]:
        if size := output.get("parameters", {}).get("binary_data_size"):
            blobs[output["name"]] = answer.content[start : start + size]
            start += size
    assert start == len(answer.content)
    return document, blobs
