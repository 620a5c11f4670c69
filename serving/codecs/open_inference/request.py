"""Decode an inference request of the Open Inference Protocol: JSON, and the binary tensor that may follow it.

Specification: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and its
extension for binary tensors.
"""

from typing import Any

import numpy as np

from serving.codecs.base import BodyLimits, Query
from serving.codecs.bodies.json_text import parse_json
from serving.codecs.bodies.pixels import describe, explain_image, explain_pixels, image_bytes
from serving.codecs.errors import InvalidInput, InvalidShape, InvalidType, MalformedBody, TooManyImages
from serving.codecs.open_inference.fields import Object, as_object, parameters_of
from serving.codecs.open_inference.outputs import ALL_OUTPUTS, request_id, requested_outputs
from serving.model.repository import INPUTS
from serving.model.tensors import Images

_IMAGE = INPUTS[0].name
_DATATYPE = INPUTS[0].datatype
_SIDE, _PIXELS = 28, 28 * 28


def read_request(content: bytes, json_bytes: int | None, limits: BodyLimits) -> Query:
    """Decode a body of `json_bytes` of JSON followed by a binary tensor; None: the whole body is JSON.

    With 0, the body is the pixels of its images (Triton's "raw binary request"). Raises `RequestError`.
    """
    if json_bytes is None:
        json_bytes = len(content)
    elif json_bytes == 0:
        return Query(_raw_images(content, limits), outputs=ALL_OUTPUTS[True])
    elif json_bytes > len(content):
        raise MalformedBody(
            f"Inference-Header-Content-Length is {json_bytes:,}, but the body has {len(content):,} bytes"
        )
    text = content[:json_bytes]
    try:
        document = parse_json(text, limits.max_images)
    except MalformedBody as error:
        raise MalformedBody(
            f"{error}, up to byte {json_bytes:,}; "
            "with a binary tensor, Inference-Header-Content-Length is the length of the JSON"
        ) from None
    tensor = _input(as_object(document, "the body"))
    images = _images(tensor, text, content, limits)
    return Query(images, request_id(document), requested_outputs(document))


def _input(document: Object) -> Object:
    """Return the input tensor; these models have exactly one."""
    inputs = document.get("inputs")
    if type(inputs) is not list:
        raise InvalidInput(f"inputs is {describe(inputs)}; expected a list with one tensor, {_IMAGE!r}")
    if not inputs:
        raise InvalidInput(f"inputs is empty; expected one tensor, {_IMAGE!r}")
    for index, tensor in enumerate(inputs):
        name = as_object(tensor, f"inputs[{index}]").get("name")
        if name != _IMAGE:
            raise InvalidInput(f"inputs[{index}].name is {describe(name)}; expected {_IMAGE!r}")
        if index:
            raise InvalidInput(f"inputs has {_IMAGE!r} twice")
    first: Object = inputs[0]
    return first


def _images(tensor: Object, text: bytes, content: bytes, limits: BodyLimits) -> Images:
    if tensor.get("datatype") != _DATATYPE:
        raise InvalidType(f"inputs[0].datatype is {describe(tensor.get('datatype'))}; expected {_DATATYPE!r}")
    count = _count(tensor.get("shape"), limits)
    size = parameters_of(tensor, "inputs[0].").get("binary_data_size")
    follows = len(content) - len(text)
    if size is None:
        if "data" not in tensor:
            raise InvalidInput(
                "inputs[0] has neither data nor parameters.binary_data_size; expected one of them"
            )
        if follows:
            raise MalformedBody(f"{follows:,} bytes follow the JSON, but no input has binary_data_size")
        return _from_lists(tensor["data"], count, text)
    if "data" in tensor:
        raise InvalidInput("inputs[0] has both data and parameters.binary_data_size; expected one of them")
    if type(size) is not int or size != count * _PIXELS:
        raise InvalidShape(
            f"inputs[0].parameters.binary_data_size is {describe(size)}; "
            f"shape [{count},28,28] of {_DATATYPE} takes {count * _PIXELS:,} bytes"
        )
    if follows != size:
        raise MalformedBody(
            f"{follows:,} bytes follow the JSON, but inputs[0].parameters.binary_data_size is {size:,}"
        )
    return np.frombuffer(content, np.uint8, size, len(text)).reshape(count, _SIDE, _SIDE)


def _count(shape: Any, limits: BodyLimits) -> int:
    """Return the number of images in a tensor of this shape."""
    if type(shape) is not list or len(shape) != 3 or set(map(type, shape)) != {int} or shape[1:] != [28, 28]:
        found = str(shape)[:60] if type(shape) is list else describe(shape)
        raise InvalidShape(f"inputs[0].shape is {found}; expected [N,28,28] with N images")
    count: int = shape[0]
    if count < 1:
        raise InvalidShape(f"inputs[0].shape is {shape}; expected [N,28,28] with N ≥ 1")
    if count > limits.max_images:
        raise TooManyImages(f"inputs[0].shape is {shape}; the limit is {limits.max_images} images")
    return count


def _from_lists(data: Any, count: int, text: bytes) -> Images:
    """Convert flat or nested lists of pixels; `bytes` validates them, but accepts true and false as 1 and 0."""
    if type(data) is not list:
        raise InvalidType(f"inputs[0].data is {describe(data)}; expected a list of pixels")
    booleans = b"true" in text or b"false" in text  # possibly outside the pixels
    if data and type(data[0]) is not list:
        if len(data) != count * _PIXELS:
            raise InvalidShape(
                f"inputs[0].data has {len(data):,} values; shape [{count},28,28] takes {count * _PIXELS:,}"
            )
        if booleans:
            explain_pixels("inputs[0].data", data)
        try:
            pixels = bytes(data)
        except (TypeError, ValueError):
            explain_pixels("inputs[0].data", data)
            raise
    else:
        if len(data) != count:
            raise InvalidShape(f"inputs[0].data has {len(data):,} lists; shape [{count},28,28] takes {count}")
        parts = [image_bytes(image) for image in data]
        if booleans or not all(parts):
            for index, image in enumerate(data):
                name = f"inputs[0].data[{index}]"
                if type(image) is not list:
                    raise InvalidType(f"{name} is {describe(image)}; expected 28 rows of 28 integers")
                explain_image(name, image)
        pixels = b"".join(parts)
    return np.frombuffer(pixels, np.uint8).reshape(count, _SIDE, _SIDE)


def _raw_images(content: bytes, limits: BodyLimits) -> Images:
    count, rest = divmod(len(content), _PIXELS)
    if rest or not count:
        raise InvalidShape(
            f"Inference-Header-Content-Length is 0, so the body is pixels: found {len(content):,} bytes, "
            f"expected N times {_PIXELS}"
        )
    if count > limits.max_images:
        raise TooManyImages(f"the body has {count} images; the limit is {limits.max_images}")
    return np.frombuffer(content, np.uint8).reshape(count, _SIDE, _SIDE)
