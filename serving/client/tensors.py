"""Binary tensors of the Open Inference Protocol: a JSON document that describes them, then their bytes.

The header Inference-Header-Content-Length gives the bytes of JSON, in requests and in responses.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/extension_binary_tensor_data.md
"""

import json
from typing import Any

from serving.model.tensors import Images

LENGTH = "Inference-Header-Content-Length"


def pack(images: Images, **fields: Any) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a request for `uint8 [N, 28, 28]`; `fields` are added to its document."""
    tensor = {
        "name": "image",
        "shape": images.shape,
        "datatype": "UINT8",
        "parameters": {"binary_data_size": images.nbytes},
    }
    document = json.dumps({"inputs": [tensor], **fields}, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(document))}
    return headers, document + images.tobytes()


def unpack(length: str | None, body: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the document of a response, and the bytes of its binary outputs by name.

    `length` is the value of the header `LENGTH`; without one the whole body is JSON. Raises `ValueError` when the
    lengths do not add up, `KeyError` or `TypeError` when it is no inference response.
    """
    start = len(body) if length is None else int(length)
    document = json.loads(body[:start])
    outputs = {}
    for output in document["outputs"]:
        if size := output.get("parameters", {}).get("binary_data_size"):
            outputs[output["name"]] = body[start : start + size]
            start += size
    if start != len(body):
        raise ValueError(f"the body has {len(body):,} bytes; its document and tensors take {start:,}")
    return document, outputs
