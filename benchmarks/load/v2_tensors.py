"""Images to, and probabilities from, the Open Inference Protocol (KServe V2) with binary tensors.

A request is JSON that describes the tensors, followed by their bytes; the header Inference-Header-Content-Length
gives the length of the JSON. Responses have the same form.
https://github.com/kserve/open-inference-protocol (extension of binary tensor data)
"""

import json
from http.client import HTTPMessage

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from serving.model.tensors import Images

LENGTH = "Inference-Header-Content-Length"


def pack(images: Images) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a request for the probabilities of `uint8 [N,28,28]`."""
    tensor = {
        "name": "image",
        "shape": list(images.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": images.nbytes},
    }
    output = {"name": "probabilities", "parameters": {"binary_data": True}}
    document = json.dumps({"inputs": [tensor], "outputs": [output]}, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(document))}
    return headers, document + images.tobytes()


def unpack(headers: HTTPMessage, body: bytes) -> NDArray[np.float32]:
    """Return the probabilities, `float32 [N,10]`. Raises `BenchmarkError` for a response without them."""
    length = headers[LENGTH]
    tensors = json.loads(body[: int(length)])["outputs"] if length else []
    if [(tensor["name"], tensor["datatype"]) for tensor in tensors] != [("probabilities", "FP32")]:
        raise BenchmarkError(f"the response has no binary tensor of probabilities: {body[:300]!r}")
    return np.frombuffer(body[int(length) :], dtype="<f4").reshape(tensors[0]["shape"])
