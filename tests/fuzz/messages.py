"""Fuzz target of gRPC messages: parse and decode a `ModelInferRequest`, and encode the response."""

import random

import numpy as np
from google.protobuf.message import DecodeError

from serving.codecs.base import Head
from serving.codecs.errors import RequestError
from serving.codecs.open_inference.grpc import GrpcCodec, target
from serving.codecs.open_inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from tests.fuzz.bodies import LIMITS, MANIFEST, TIMING, check_images, predict
from tests.fuzz.target import Mutation, Target

CODEC = GrpcCodec()


def request(**changes: object) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]} | changes.pop("input", {})  # type: ignore[operator]
    fields = {"model_name": "student", "model_version": "1", "id": "7", "inputs": [tensor]}
    return ModelInferRequest(**(fields | changes)).SerializeToString()


def seeds() -> list[bytes]:
    contents = {"uint_contents": [index % 256 for index in range(784)]}
    return [
        request(raw_input_contents=[bytes(784)]),
        request(input={"shape": [2, 28, 28]}, raw_input_contents=[bytes(1568)]),
        request(input={"contents": contents}),
        request(input={"contents": {"int_contents": [1]}}),
        request(input={"contents": {"uint_contents": [256] * 784}}),
        request(outputs=[{"name": "logits"}, {"name": "accepted"}], raw_input_contents=[bytes(784)]),
        request(parameters={"priority": {"int64_param": 1}}, raw_input_contents=[bytes(784)]),
        request(input={"shape": [-1, 28, 28]}, raw_input_contents=[bytes(784)]),
        request(input={"shape": [1 << 62, 28, 28]}, raw_input_contents=[b""]),
        request(inputs=[]),
        b"",
    ]


def decode(data: bytes) -> None:
    """Decode a message as the service does; fail unless it is valid or rejected with a status that gRPC maps."""
    try:
        target(data)
        CODEC.decodes_inline(Head(), data)
        query = CODEC.decode(Head(), data, LIMITS)
        check_images(query)
        prediction = predict(query.images)
        reply = CODEC.encode(MANIFEST, query, prediction, TIMING)
    except RequestError as error:
        rejection = CODEC.reject(error)
        assert rejection.status in {400, 422}, rejection
        assert 0 < len(rejection.content.decode()) < 2000
    else:
        response = ModelInferResponse.FromString(reply.content)
        assert response.id == query.id
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
            size = {"FP32": 4, "BOOL": 1}[output.datatype]
            assert int(np.prod(output.shape)) * size == len(content)


def mutate(data: bytes, max_size: int, choices: random.Random, mutation: Mutation) -> bytes:
    """Mutate bytes, or fields of the message."""
    if choices.random() < 0.4:
        return mutation(data, max_size)
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError:
        message = ModelInferRequest.FromString(choices.choice(seeds()))
    change(message, choices, max_size)
    return message.SerializeToString()[:max_size]


def change(message: ModelInferRequest, choices: random.Random, max_size: int) -> None:
    """Change a field."""
    tensor = message.inputs[0] if message.inputs else message.inputs.add()
    number = choices.choice((0, 1, 2, 8, 28, 784, -1, 256, 1 << 31, 1 << 62))
    word = choices.choice(("image", "UINT8", "logits", "confidence", "\u20ac", "x" * 300, ""))
    match choices.randrange(9):
        case 0:
            tensor.shape.append(number)
        case 1:
            tensor.shape[:1] = [number]
        case 2:
            message.raw_input_contents.append(bytes(min(max(number, 0), max_size)))
        case 3:
            del message.raw_input_contents[:]
        case 4:
            tensor.contents.uint_contents.extend([number & 0xFFFF] * choices.choice((1, 784)))
        case 5:
            tensor.contents.fp32_contents.append(number)
        case 6:
            message.outputs.add(name=word)
        case 7:
            tensor.name, tensor.datatype, message.id = choices.choice(("image", word)), word, word
        case 8:
            choices.choice((message, tensor)).parameters[word].int64_param = number


WORDS = (b"image", b"UINT8", b"student", b"logits", b"\x1c", b"\xff" * 9 + b"\x01")
TARGETS = (Target("grpc", seeds, decode, WORDS, mutate),)
