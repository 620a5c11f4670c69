"""The Open Inference Protocol over gRPC: what its messages ask for, and how they are answered.

`serving.grpc.server` carries the bytes; what the messages hold is in `open_inference.proto`.
"""

import math
from collections.abc import Container, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from serving.codecs.base import Protocol, Query, Reply, Request, Timing
from serving.codecs.bodies import Limits
from serving.codecs.errors import (
    InvalidInput,
    InvalidRange,
    InvalidShape,
    InvalidType,
    MalformedBody,
    RequestError,
    TooManyImages,
)
from serving.codecs.open_inference.open_inference_pb2 import (
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
    ModelInferTarget,
    ModelMetadataResponse,
)
from serving.engine.batching import Prediction
from serving.model.repository import INPUTS, OUTPUTS, Manifest
from serving.model.session import Images

_Message = TypeVar("_Message", bound=Message)

PLATFORM = "onnxruntime_onnx"  # Triton's name for it

_INPUT = INPUTS[0]
_OUTPUTS = tuple(spec.name for spec in OUTPUTS)
_UNSUPPORTED = ("classification", "sequence_id", "shared_memory_region")
_QUICK_BYTES = 64 * 1024  # so many values one by one take two milliseconds; as raw bytes, none


class Wishes(NamedTuple):
    """What the answer repeats: the request's id, and the names of the outputs asked for."""

    id: str
    outputs: tuple[str, ...]


class GrpcInference(Protocol):
    """`ModelInfer` and its answer, as serialised messages."""

    name = "grpc"

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Metadata has nothing to say about the message."""

    def is_quick(self, request: Request) -> bool:
        return len(request.content) <= _QUICK_BYTES

    def decode(self, request: Request, limits: Limits) -> Query:
        message = _parse(ModelInferRequest, request.content)
        outputs = _outputs(message)
        return Query(_images(message, limits), Wishes(message.id, outputs))

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        wishes: Wishes = query.wishes
        tensors = {"logits": prediction.logits, "probabilities": prediction.probabilities}
        message = ModelInferResponse(model_name=model.name, model_version=model.version, id=wishes.id)
        for name in wishes.outputs:
            tensor = tensors[name]
            message.outputs.add(name=name, datatype="FP32", shape=tensor.shape)
            message.raw_output_contents.append(tensor.tobytes())
        return Reply(200, message.SerializeToString(), (timing.header(),))

    def refuse(self, error: RequestError) -> Reply:
        return Reply(error.status, str(error).encode())


def target(content: bytes) -> tuple[str, str]:
    """The model and the version that a `ModelInferRequest` names, its tensors left unread."""
    message = _parse(ModelInferTarget, content)
    return message.model_name, message.model_version


def describe(model: Manifest) -> ModelMetadataResponse:
    """What `ModelMetadata` answers."""
    tensor = ModelMetadataResponse.TensorMetadata
    return ModelMetadataResponse(
        name=model.name,
        versions=[model.version],
        platform=PLATFORM,
        inputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in model.inputs],
        outputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in model.outputs],
    )


def _parse(kind: type[_Message], content: bytes) -> _Message:
    try:
        return kind.FromString(content)
    except DecodeError:
        raise MalformedBody("the message is no ModelInferRequest") from None


def _outputs(message: ModelInferRequest) -> tuple[str, ...]:
    _refuse_parameters("the request", message.parameters)
    names: list[str] = []
    for output in message.outputs:
        if output.name not in _OUTPUTS:
            raise InvalidInput(
                f"there is no output {output.name[:40]!r}; the model has {', '.join(_OUTPUTS)}"
            )
        if output.name in names:
            raise InvalidInput(f"outputs asks for {output.name!r} twice")
        _refuse_parameters(f"output {output.name}", output.parameters)
        names.append(output.name)
    return tuple(names) or _OUTPUTS


def _images(message: ModelInferRequest, limits: Limits) -> Images:
    names = [tensor.name[:40] for tensor in message.inputs[:5]]
    if names != [_INPUT.name]:
        raise InvalidInput(f"the inputs are {names}; expected one, {_INPUT.name}")
    (tensor,) = message.inputs
    _refuse_parameters(f"input {_INPUT.name}", tensor.parameters)
    if tensor.datatype != _INPUT.datatype:
        raise InvalidType(f"the datatype of image is {tensor.datatype[:40]!r}; expected {_INPUT.datatype}")
    shape = list(tensor.shape)
    if shape[1:] != list(_INPUT.shape[1:]) or shape[0] < 1:
        raise InvalidShape(f"the shape of image is {shape[:10]}; expected [N, 28, 28], N at least 1")
    if shape[0] > limits.max_images:
        raise TooManyImages(f"image holds {shape[0]} images; one request may carry {limits.max_images}")
    size = math.prod(shape)
    if not message.raw_input_contents:
        return np.frombuffer(_unpack(tensor.contents, size), np.uint8).reshape(shape)
    if len(message.raw_input_contents) != 1 or tensor.HasField("contents"):
        raise InvalidInput("expected one entry in raw_input_contents, or contents in the input; never both")
    (raw,) = message.raw_input_contents
    if len(raw) != size:
        raise InvalidShape(f"raw_input_contents has {len(raw):,} bytes; shape {shape} takes {size:,}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _unpack(contents: InferTensorContents, size: int) -> bytes:
    """The bytes of `uint_contents`, where UINT8 goes."""
    found = [field.name for field, _ in contents.ListFields()]
    if found not in ([], ["uint_contents"]):
        raise InvalidType(f"the contents of image are in {', '.join(found)}; UINT8 goes into uint_contents")
    if len(contents.uint_contents) != size:
        raise InvalidShape(f"uint_contents has {len(contents.uint_contents):,} values; expected {size:,}")
    try:
        return bytes(contents.uint_contents)
    except ValueError:
        raise InvalidRange(f"uint_contents holds {max(contents.uint_contents)}; expected 0–255") from None


def _refuse_parameters(place: str, parameters: Container[str]) -> None:
    """Refuse what would change the answer's meaning; other parameters are ignored, as Triton does."""
    for name in _UNSUPPORTED:
        if name in parameters:
            raise InvalidInput(f"{place} has the parameter {name!r}, which this service does not support")
