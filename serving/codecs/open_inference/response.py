"""Encode an inference response of the Open Inference Protocol: JSON, followed by the binary tensors requested."""

from typing import Any

import numpy as np
import orjson

from serving.codecs.base import Prediction, Query, Reply, Timing
from serving.codecs.open_inference.outputs import SPECS, accepted_images, available, tensor_of
from serving.model.repository import Manifest
from serving.model.tensors import Scores

HEADER_LENGTH = b"inference-header-content-length"
JSON = (b"content-type", b"application/json")
_OCTETS = (b"content-type", b"application/octet-stream")


def write_response(model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
    """Encode the outputs in the order requested; float32 is little-endian wherever onnxruntime runs."""
    outputs: list[dict[str, Any]] = []
    blobs: list[Any] = []
    accepted = accepted_images(prediction)
    for name, binary, classes in available(query.outputs, prediction):
        tensor = tensor_of(prediction, name)
        values: Any = tensor.ravel()
        count = len(tensor)
        shape = count, values.size // count
        output: dict[str, Any] = {"name": name, "datatype": SPECS[name].datatype, "shape": shape}
        parameters: dict[str, int] = {} if accepted is None else {"accepted": accepted}
        if classes:
            values = _most_probable(tensor, classes)
            output |= {"datatype": "BYTES", "shape": (count, len(values) // count)}
            if binary:
                values = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in values)
        if binary:
            parameters["binary_data_size"] = memoryview(values).nbytes
            blobs.append(values)
        else:
            output["data"] = values
        if parameters:
            output["parameters"] = parameters
        outputs.append(output)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if query.id is not None:
        document["id"] = query.id
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return Reply(200, text, (JSON, timing.header()))
    headers = (_OCTETS, (HEADER_LENGTH, b"%d" % len(text)), timing.header())
    return Reply(200, b"".join((text, *blobs)), headers)


def _most_probable(scores: Scores, count: int) -> list[str]:
    """Return the `count` most probable digits per image as "score:digit" (Triton's classification extension)."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [f"{scores[row, digit]:f}:{digit}" for row, digits in enumerate(best) for digit in digits]
