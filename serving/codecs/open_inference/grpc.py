"""The codec of the Open Inference Protocol over gRPC.

`serving.grpc.server` transports the messages; `open_inference.proto` defines them.
"""

import math
from collections.abc import Container, Mapping, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from serving.codecs.base import (
    BodyLimits,
    Codec,
    Head,
    Prediction,
    Query,
    Reply,
    RequestedOutput,
    Timing,
)
from serving.codecs.errors import (
    InvalidInput,
    InvalidRange,
    InvalidShape,
    InvalidType,
    MalformedBody,
    RequestError,
    TooManyImages,
)
from serving.codecs.open_inference.config import platform
from serving.codecs.open_inference.open_inference_pb2 import (
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
    ModelInferTarget,
    ModelMetadataResponse,
)
from serving.codecs.open_inference.outputs import ALL_OUTPUTS, SPECS, accepted_images, available, tensor_of
from serving.model.repository import INPUTS, Manifest
from serving.model.tensors import Images

_Message = TypeVar("_Message", bound=Message)

_INPUT = INPUTS[0]
_UNSUPPORTED = ("classification", "sequence_id", "shared_memory_region")
_MAX_INLINE_BYTES = 64 * 1024  # two milliseconds if sent as single values, microseconds as raw bytes


class GrpcCodec(Codec):
    """`ModelInferRequest` and `ModelInferResponse` as serialised messages."""

    name = "grpc"
    route = "inference.GRPCInferenceService/ModelInfer"

    def check(self, headers: Mapping[bytes, bytes], query: bytes = b"") -> Head:  # noqa: ARG002
        return Head(headers.get(b"x-api-key", b""))

    def decodes_inline(self, head: Head, content: bytes) -> bool:  # noqa: ARG002
        return len(content) <= _MAX_INLINE_BYTES

    def decode(self, head: Head, content: bytes, limits: BodyLimits) -> Query:  # noqa: ARG002
        message = _parse(ModelInferRequest, content)
        outputs = _outputs(message)
        return Query(_images(message, limits), message.id, outputs)

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        message = ModelInferResponse(model_name=model.name, model_version=model.version, id=query.id)
        accepted = accepted_images(prediction)
        for name, _, _ in available(query.outputs, prediction):
            tensor = tensor_of(prediction, name)
            shape = len(tensor), tensor.size // len(tensor)
            output = message.outputs.add(name=name, datatype=SPECS[name].datatype, shape=shape)
            if accepted is not None:
                output.parameters["accepted"].int64_param = accepted
            message.raw_output_contents.append(tensor.tobytes())
        return Reply(200, message.SerializeToString(), (timing.header(),))

    def reject(self, error: RequestError) -> Reply:
        return Reply(error.status, str(error).encode())


def target(content: bytes) -> tuple[str, str]:
    """Return model name and version of a `ModelInferRequest` without parsing its tensors."""
    message = _parse(ModelInferTarget, content)
    return message.model_name, message.model_version


def describe(model: Manifest, versions: Sequence[str]) -> ModelMetadataResponse:
    """Return the response of `ModelMetadata`, for a model of which `versions` are served."""
    tensor = ModelMetadataResponse.TensorMetadata
    return ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=platform(model),
        inputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in model.inputs],
        outputs=[
            tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in model.served_outputs
        ],
    )


def _parse(kind: type[_Message], content: bytes) -> _Message:
    try:
        return kind.FromString(content)
    except DecodeError:
        raise MalformedBody("the message is not a ModelInferRequest") from None


def _outputs(message: ModelInferRequest) -> Sequence[RequestedOutput]:
    _reject_parameters("the request", message.parameters)
    outputs: list[RequestedOutput] = []
    for output in message.outputs:
        if output.name not in SPECS:
            raise InvalidInput(f"there is no output {output.name[:40]!r}; the model has {', '.join(SPECS)}")
        if any(output.name == other.name for other in outputs):
            raise InvalidInput(f"outputs has {output.name!r} twice")
        _reject_parameters(f"output {output.name}", output.parameters)
        outputs.append(RequestedOutput(output.name, binary=True))
    return outputs or ALL_OUTPUTS[True]


def _images(message: ModelInferRequest, limits: BodyLimits) -> Images:
    names = [tensor.name[:40] for tensor in message.inputs[:5]]
    if names != [_INPUT.name]:
        raise InvalidInput(f"the inputs are {names}; expected one, {_INPUT.name}")
    (tensor,) = message.inputs
    _reject_parameters(f"input {_INPUT.name}", tensor.parameters)
    if tensor.datatype != _INPUT.datatype:
        raise InvalidType(f"the datatype of image is {tensor.datatype[:40]!r}; expected {_INPUT.datatype}")
    shape = list(tensor.shape)
    if shape[1:] != list(_INPUT.shape[1:]) or shape[0] < 1:
        raise InvalidShape(f"the shape of image is {shape[:10]}; expected [N, 28, 28], N at least 1")
    if shape[0] > limits.max_images:
        raise TooManyImages(f"image has {shape[0]} images; the limit is {limits.max_images}")
    size = math.prod(shape)
    if not message.raw_input_contents:
        return np.frombuffer(_uint_contents(tensor.contents, size), np.uint8).reshape(shape)
    if len(message.raw_input_contents) != 1 or tensor.HasField("contents"):
        raise InvalidInput("expected one entry in raw_input_contents, or contents in the input, not both")
    (raw,) = message.raw_input_contents
    if len(raw) != size:
        raise InvalidShape(f"raw_input_contents has {len(raw):,} bytes; shape {shape} takes {size:,}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _uint_contents(contents: InferTensorContents, size: int) -> bytes:
    """Return the values of `uint_contents`, the field for UINT8."""
    found = [field.name for field, _ in contents.ListFields()]
    if found not in ([], ["uint_contents"]):
        raise InvalidType(
            f"the contents of image are in {', '.join(found)}; expected uint_contents for UINT8"
        )
    if len(contents.uint_contents) != size:
        raise InvalidShape(f"uint_contents has {len(contents.uint_contents):,} values; expected {size:,}")
    try:
        return bytes(contents.uint_contents)
    except ValueError:
        raise InvalidRange(f"uint_contents has {max(contents.uint_contents)}; expected 0–255") from None


def _reject_parameters(place: str, parameters: Container[str]) -> None:
    """Reject parameters that would change the response; others are ignored, as by Triton."""
    for name in _UNSUPPORTED:
        if name in parameters:
            raise InvalidInput(f"{place} has the parameter {name!r}, which is not supported")
